"""The moments on CPU: sums of pieces (`blocks`, or compiled code), then examples and groups in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import GRADIENT, SHIFT, SQUARE, SUMS, S, U
from neuronforget_kernels.blocks import BlockSums, names_of
from neuronforget_kernels.compiled import CompiledSums, PieceSums
from neuronforget_kernels.layout import Layout, pivot_of
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS
from neuronforget_kernels.totals import Totals

#: Columns worked on together: a row of them is contiguous memory of this many values.
COLUMNS = 1024
#: Elements of a block of columns of the per-example table.
TABLE = 32_768


def row_moments(
    a: Tensor, g: Tensor | None, layout: Layout, want: int, entries: int, fused: PieceSums | None = None
) -> tuple[Tensor, Tensor]:
    """Return every field [group, field, neuron] (fp64) in `want` and table entry [entry, example, neuron] (fp32).

    `entries` are those accumulators in `want` that the table needs: of none there is no table. Fields that `want`
    leaves out hold anything.
    """
    g = g if want & GRADIENT else None
    fields = torch.zeros((layout.groups, len(PIECE_FIELDS), a.shape[1]), dtype=torch.float64)
    table = torch.zeros((len(TABLE_FIELDS), layout.examples, a.shape[1])) if entries else None
    pivot, names = pivot_of(a[layout.sample]), SUMS if fused else names_of(want)
    parts = -(-a.shape[1] // max(64, min(COLUMNS, TABLE // max(1, layout.examples))))
    width = -(-a.shape[1] // (16 * max(1, parts))) * 16
    for start in range(0, a.shape[1], max(1, width)):
        columns = slice(start, start + width)
        own, near = (a[:, columns], None if g is None else g[:, columns]), pivot[columns]
        pieces = _sums_for(layout, own[0].shape[1], want, fused)
        sums, rest, extremes = pieces(*own, near)
        sums, extremes = _by_example(layout, sums), _peaks_by_example(layout, extremes)
        if table is not None:
            by = dict(zip(names, sums.unbind(1), strict=False))
            _enter(table[..., columns], by, extremes, near, layout.counts)
        for group, row in enumerate(fields[..., columns]):
            of = _totals(layout, group, pieces.groups, names, sums.shape[-1])
            of.fill(row, sums[of.examples], rest[of.parts], extremes[:, of.examples], near)
    return fields, table if table is not None else fields.new_zeros((len(TABLE_FIELDS), 0, 0))


def _sums_for(layout: Layout, width: int, want: int, fused: PieceSums | None) -> BlockSums | CompiledSums:
    """Made for a batch's first layer, kept for the others."""
    if (key := ("sums", width, want, fused)) not in layout.kept:
        layout.kept[key] = CompiledSums(layout, width, fused) if fused else BlockSums(layout, width, want)
    return layout.kept[key]


def _totals(layout: Layout, group: int, parts: Tensor, names: tuple[int, ...], width: int) -> Totals:
    """Made and kept likewise."""
    if (key := (Totals, group, names, width)) not in layout.kept:
        layout.kept[key] = Totals(layout, group, parts, names, width)
    return layout.kept[key]


def _by_example(layout: Layout, sums: Tensor) -> Tensor:
    """From pieces to examples, added in fp64 and rounded as the table holds them."""
    if layout.one_piece_each:
        return sums
    whole = sums.new_zeros((layout.examples, *sums.shape[1:]), dtype=torch.float64)
    return whole.index_add_(0, layout.owner, sums.double()).float()


def _peaks_by_example(layout: Layout, extremes: Tensor) -> Tensor:
    """Extremes [max and -min, example, neuron] of those of pieces."""
    if layout.one_piece_each:
        return extremes
    lowest = extremes.new_full((2, layout.examples, extremes.shape[-1]), -torch.inf)
    return lowest.scatter_reduce_(1, layout.owner[None, :, None].expand_as(extremes), extremes, "amax")


def _enter(table: Tensor, by: dict[int, Tensor], extremes: Tensor, pivot: Tensor, counts: Tensor) -> None:
    """The table's entries, those that the sums allow."""
    for row, name in ((0, S), (1, U), (3, SQUARE)):
        if name in by:
            table[row].copy_(by[name])
    if SHIFT in by:
        table[2].copy_(torch.addcmul(by[SHIFT].double(), counts.double()[:, None], pivot.double()))
    torch.where(extremes[0] >= extremes[1], extremes[0], -extremes[1], out=table[4])
    table[4].masked_fill_(counts[:, None] == 0, 0.0)
