"""The moments on CPU: sums of pieces (`blocks`, or compiled code), then examples and groups in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import (
    ABS,
    ABS_AG,
    AG2,
    G2,
    GRADIENT,
    POSITIVE,
    SHIFT,
    SHIFT2,
    SQUARE,
    SUMS,
    S,
    U,
)
from neuronforget_kernels.blocks import BASES, BlockSums, names_of
from neuronforget_kernels.compiled import PieceSums
from neuronforget_kernels.layout import Layout, pivot_of
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS

#: Columns worked on together: a row of them is contiguous memory of this many values.
COLUMNS = 1024
#: Elements of a block of columns of the per-example table.
TABLE = 32_768
#: Fields that are sums over a group's examples.
_TOTALS = {S: "s", U: "u", ABS: "abs_sum", POSITIVE: "positive", ABS_AG: "abs_ag", AG2: "ag2", G2: "g2"}
#: Fields that are sums of what examples' sums give, multiplied or (one alone) without sign.
_PRODUCTS = {"s2": (S, S), "u2": (U, U), "us": (U, S), "abs_s": (S,)}


def row_moments(
    a: Tensor, g: Tensor | None, layout: Layout, want: int, entries: int, fused: PieceSums | None = None
) -> tuple[Tensor, Tensor]:
    """Return every field [group, field, neuron] (fp64) in `want` and table entry [entry, example, neuron] (fp32).

    `entries` are those accumulators in `want` that the table needs: of none there is no table. Fields that `want`
    leaves out are 0, or anything where `fused` adds up the pieces.
    """
    g = g if want & GRADIENT else None
    fields = torch.zeros((layout.groups, len(PIECE_FIELDS), a.shape[1]), dtype=torch.float64)
    table = torch.zeros((len(TABLE_FIELDS), layout.examples, a.shape[1])) if entries else None
    pivot, names = pivot_of(a[layout.sample]), names_of(want) if fused is None else list(SUMS)
    parts = -(-a.shape[1] // max(64, min(COLUMNS, TABLE // max(1, layout.examples))))
    width = -(-a.shape[1] // (16 * max(1, parts))) * 16
    for start in range(0, a.shape[1], max(1, width)):
        columns = slice(start, start + width)
        own = a[:, columns], None if g is None else g[:, columns], pivot[columns]
        found = _sums_for(layout, own[0].shape[1], want)(*own) if fused is None else _fused_sums(*own, layout, fused)
        sums, extremes = _by_example(layout, *found)
        if table is not None:
            by = dict(zip(names, sums.unbind(1), strict=True))
            _enter(table[..., columns], by, extremes, pivot[columns], layout.counts)
        for group, row in enumerate(fields[..., columns]):
            chosen = torch.nonzero(layout.group == group)[:, 0] if layout.grouped else slice(None)
            wide = _wide(layout, sums.shape[-1])[:, : len(layout.counts[chosen])]
            _fill(row, names, sums[chosen], pivot[columns].double(), extremes[:, chosen], layout.counts[chosen], wide)
    return fields, table if table is not None else fields.new_zeros((len(TABLE_FIELDS), 0, 0))


def _sums_for(layout: Layout, width: int, want: int) -> BlockSums:
    """Made for a batch's first layer, kept for the others."""
    if (key := (BlockSums, width, want)) not in layout.kept:
        layout.kept[key] = BlockSums(layout, width, want)
    return layout.kept[key]


def _wide(layout: Layout, width: int) -> Tensor:
    """Room for as many fp64 values of each example and neuron as `_fill` has use for, kept likewise."""
    if (key := ("wide", width)) not in layout.kept:
        shape = len(BASES) + len(_PRODUCTS), layout.examples, width
        layout.kept[key] = torch.empty(shape, dtype=torch.float64)
    return layout.kept[key]


def _fused_sums(a: Tensor, g: Tensor | None, pivot: Tensor, layout: Layout, fused: PieceSums) -> tuple[Tensor, Tensor]:
    """Every sum [piece, sum, neuron], and extremes [max and -min, piece, neuron], fp32."""
    sums = torch.empty((len(layout.low), len(SUMS), a.shape[1]))
    extremes = torch.empty((2, len(layout.low), a.shape[1]))
    for piece, rows in enumerate(map(slice, layout.low.tolist(), layout.high.tolist())):
        share = None if layout.weights is None else layout.weights[rows, None]
        sums[piece], extremes[:, piece] = fused(a[rows], None if g is None else g[rows], pivot, share)
    return sums, extremes


def _by_example(layout: Layout, sums: Tensor, extremes: Tensor) -> tuple[Tensor, Tensor]:
    """From pieces to examples, added in fp64 and rounded as the table holds them."""
    if layout.one_piece_each:
        return sums, extremes
    size = layout.examples, extremes.shape[-1]
    whole = sums.new_zeros((size[0], *sums.shape[1:]), dtype=torch.float64)
    index, lowest = layout.owner[:, None].expand_as(extremes[0]), extremes.new_full(size, -torch.inf)
    extremes = torch.stack([lowest.scatter_reduce(0, index, values, "amax") for values in extremes])
    return whole.index_add_(0, layout.owner, sums.double()).float(), extremes


def _enter(table: Tensor, by: dict[int, Tensor], extremes: Tensor, pivot: Tensor, counts: Tensor) -> None:
    """The table's entries, those that the sums allow."""
    for row, name in ((0, S), (1, U), (3, SQUARE)):
        if name in by:
            table[row].copy_(by[name])
    if SHIFT in by:
        table[2].copy_(torch.addcmul(by[SHIFT].double(), counts.double()[:, None], pivot.double()))
    torch.where(extremes[0] >= extremes[1], extremes[0], -extremes[1], out=table[4])
    table[4].masked_fill_(counts[:, None] == 0, 0.0)


@torch.inference_mode()
def _fill(
    fields: Tensor, names: list[int], sums: Tensor, pivot: Tensor, extremes: Tensor, counts: Tensor, wide: Tensor
) -> None:
    """The fields of one group from its examples' sums [example, sum, neuron]."""
    total, bases = sums.sum(0, dtype=torch.float64), sum(name in BASES for name in names)
    wide, products = wide[:bases].copy_(sums[:, :bases].transpose(0, 1)), wide[len(BASES) :]
    of = dict(zip(names, wide, strict=False))
    made = [field for field, factors in _PRODUCTS.items() if of.keys() >= set(factors)]
    for field, into in zip(made, products, strict=False):
        first, *second = (of[factor] for factor in _PRODUCTS[field])
        torch.mul(first, second[0], out=into) if second else torch.abs(first, out=into)
    kept = [i for i, name in enumerate(names) if name in _TOTALS]
    where = [PIECE_FIELDS.index(field) for field in (*(_TOTALS[names[i]] for i in kept), *made)]
    fields[where] = torch.cat([total[kept], products[: len(made)].sum(1)])
    row = dict(zip(PIECE_FIELDS, fields.unbind(), strict=True))
    if len(counts):
        row["max"].copy_(extremes[0].amax(0)), row["min"].copy_(extremes[1].amax(0)).neg_()
    if SHIFT in of and float(counts.sum()):
        _spread(row, of[SHIFT], dict(zip(names, total, strict=True)), pivot, counts.double()[:, None])


def _spread(row: dict[str, Tensor], shift: Tensor, total: dict[int, Tensor], pivot: Tensor, counts: Tensor) -> None:
    """Means and sums of squared deviations, of tokens and of the examples' means; `shift` is used up."""
    tokens = counts.sum()
    mean = total[SHIFT] / tokens
    torch.add(pivot, mean, out=row["mean"])
    if SHIFT2 in total:
        torch.sub(total[SHIFT2], tokens * mean * mean, out=row["m2"]).clamp_(min=0)
    seen = counts[:, 0] > 0
    shift, counts = (shift, counts) if bool(seen.all()) else (shift[seen], counts[seen])
    pool = shift.div_(counts).mean(0)
    torch.add(pivot, pool, out=row["pool_mean"])
    torch.sum(shift.sub_(pool).square_(), 0, out=row["pool_m2"])
