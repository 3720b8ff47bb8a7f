"""The moments on CPU: in-place work on blocks of rows that stay in the cache, no compiler needed.

Blocks hold fewer than 32768 elements: from there on ATen starts threads for every single operation, which costs
more than the operation. Each block is read once; its sums are added to its piece's in fp32, pieces in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import (
    ABS,
    ABS_AG,
    AG2,
    G2,
    GRADIENT,
    PEAK,
    POSITIVE,
    SHIFT,
    SHIFT2,
    SQUARE,
    S,
    U,
)
from neuronforget_kernels.compiled import PieceSums
from neuronforget_kernels.layout import Layout, pivot_of
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS

#: Elements of a block, and columns of one: a row of a block is contiguous memory of this many values.
BLOCK, COLUMNS = 32767, 1024
#: Rows of a piece's sums, in the order of `accumulators`; then max and -min.
_SUMS = (S, U, SHIFT, SQUARE, SHIFT2, ABS, POSITIVE, ABS_AG, AG2, G2)


def row_moments(
    a: Tensor, g: Tensor | None, layout: Layout, want: int, fused: PieceSums | None = None
) -> tuple[Tensor, Tensor]:
    """Return every field [group, field, neuron] (fp64) and table entry [entry, example, neuron] (fp32) in `want`.

    Those that `want` leaves out are 0, or anything where `fused` adds up the pieces.
    """
    g = g if want & GRADIENT else None
    fields = torch.zeros((layout.groups, len(PIECE_FIELDS), a.shape[1]), dtype=torch.float64)
    table = torch.zeros((len(TABLE_FIELDS), layout.examples, a.shape[1]))
    pivot = pivot_of(a[layout.sample])
    pieces = list(zip(layout.low.tolist(), layout.high.tolist(), strict=True))
    parts = -(-a.shape[1] // max(64, min(COLUMNS, BLOCK // max(1, layout.examples))))
    width = -(-a.shape[1] // (16 * max(1, parts))) * 16
    for start in range(0, a.shape[1], max(1, width)):
        columns = slice(start, start + width)
        own = a[:, columns], None if g is None else g[:, columns], pivot[columns]
        sums, extremes = _piece_sums(*own, pieces, layout.weights, want, fused)
        _finish(sums, extremes, pivot[columns].double(), layout, fields[..., columns], table[..., columns])
    return fields, table


def _piece_sums(
    a: Tensor,
    g: Tensor | None,
    pivot: Tensor,
    pieces: list[tuple[int, int]],
    weights: Tensor | None,
    want: int,
    fused: PieceSums | None,
) -> tuple[Tensor, Tensor]:
    """Sums [sum, piece, neuron] and extremes [max and -min, piece, neuron], fp32."""
    width = a.shape[1]
    sums = torch.zeros((len(_SUMS), len(pieces), width))
    extremes = torch.full((2, len(pieces), width), -torch.inf)
    longest = max((high - low for low, high in pieces), default=1)
    most = longest if fused is not None else max(1, min(BLOCK // width, longest))
    block = _Block(most, width, want) if fused is None else None
    for piece, (low, high) in enumerate(pieces):
        into = sums[:, piece], extremes[:, piece]
        for first in range(low, high, most):
            rows = slice(first, min(first + most, high))
            grad, share = None if g is None else g[rows], None if weights is None else weights[rows, None]
            if block is None:
                assert fused is not None
                found = fused(a[rows], grad, pivot, share)
                into[0].copy_(found[0]), into[1].copy_(found[1])
            elif rows.stop - first == high - low:  # a piece of one block needs no second addition
                block.reduce(a[rows], grad, pivot, share, *into)
            else:
                block.reduce(a[rows], grad, pivot, share, block.sums, block.extremes)
                into[0].add_(block.sums)
                torch.maximum(into[1], block.extremes, out=into[1])
    return sums, extremes


class _Block:
    """The buffers of one block of rows, reused for all, and the operations that read it."""

    def __init__(self, rows: int, width: int, want: int) -> None:
        self.want = want
        self.act, self.grad, self.product, self.spare, self.weighted = torch.empty((5, rows, width)).unbind()
        self.sums, self.extremes = torch.zeros((len(_SUMS), width)), torch.full((2, width), -torch.inf)

    def reduce(
        self, a: Tensor, g: Tensor | None, pivot: Tensor, w: Tensor | None, sums: Tensor, extremes: Tensor
    ) -> None:
        """Write the block's sums and extremes."""
        want, rows, row = self.want, len(a), dict(zip(_SUMS, sums.unbind(), strict=True))
        act = a if a.dtype is torch.float32 else self.act[:rows].copy_(a)
        spare, product, weighted = self.spare[:rows], self.product[:rows], self.weighted[:rows]

        def add(name: int, values: Tensor) -> None:
            torch.sum(values if w is None else torch.mul(values, w, out=weighted), 0, out=row[name])

        if want & PEAK:
            torch.amax(act, 0, out=extremes[0])
            torch.amin(act, 0, out=extremes[1]).neg_()
        if want & SQUARE:
            add(SQUARE, torch.mul(act, act, out=spare))
        if want & ABS:
            add(ABS, torch.abs(act, out=spare))
        if want & POSITIVE:
            add(POSITIVE, torch.gt(act, 0, out=spare))
        if want & SHIFT:
            add(SHIFT, torch.sub(act, pivot, out=spare))
        if want & SHIFT2:
            add(SHIFT2, spare.mul_(spare))
        if g is None or not want & GRADIENT:
            return
        grad = g if g.dtype is torch.float32 else self.grad[:rows].copy_(g)
        if want & U:
            add(U, grad)
        if want & G2:
            add(G2, torch.mul(grad, grad, out=spare))
        if want & (S | ABS_AG | AG2):
            torch.mul(act, grad, out=product)
        if want & S:
            add(S, product)
        if want & AG2:
            add(AG2, torch.mul(product, product, out=spare))
        if want & ABS_AG:
            add(ABS_AG, product.abs_())


def _finish(sums: Tensor, extremes: Tensor, pivot: Tensor, layout: Layout, fields: Tensor, table: Tensor) -> None:
    """From pieces to examples and to groups, in fp64, for one block of columns."""
    if not layout.one_piece_each:
        shape = layout.examples, sums.shape[-1]
        index = layout.owner[:, None].expand(len(layout.owner), shape[1])
        total = sums.new_zeros((len(sums), *shape), dtype=torch.float64)
        sums = total.index_add_(1, layout.owner, sums.double())
        empty = extremes.new_full(shape, -torch.inf)
        extremes = torch.stack([empty.scatter_reduce(0, index, values, "amax") for values in extremes])
    by = dict(zip(_SUMS, sums.unbind(), strict=True))
    counts = layout.counts.double()[:, None]
    table[0].copy_(by[S])
    table[1].copy_(by[U])
    torch.addcmul(by[SHIFT].double(), counts, pivot, out=(total := torch.empty_like(by[SHIFT], dtype=torch.float64)))
    table[2].copy_(total)
    table[3].copy_(by[SQUARE])
    low = extremes[1].neg()
    torch.where(extremes[0] >= extremes[1], extremes[0], low, out=table[4])
    table[4].masked_fill_(counts == 0, 0.0)
    by |= {S: table[0], U: table[1]}  # fields add what the table holds, rounded as it is
    for group, row in enumerate(fields):
        own = torch.nonzero(layout.group == group)[:, 0] if layout.grouped else slice(None)
        if layout.examples:
            _fill(row, {name: values[own] for name, values in by.items()}, pivot, extremes[:, own], counts[own])


def _fill(fields: Tensor, by: dict[int, Tensor], pivot: Tensor, extremes: Tensor, counts: Tensor) -> None:
    """The fields of one group from its examples' sums."""
    row = dict(zip(PIECE_FIELDS, fields.unbind(), strict=True))
    tokens = float(counts.sum())
    for name, key in (("abs_sum", ABS), ("positive", POSITIVE), ("abs_ag", ABS_AG), ("ag2", AG2), ("g2", G2)):
        torch.sum(by[key], 0, dtype=torch.float64, out=row[name])
    torch.amax(extremes[0], 0, out=(peak := torch.empty_like(pivot, dtype=torch.float32)))
    row["max"].copy_(peak)
    row["min"].copy_(torch.amax(extremes[1], 0, out=peak)).neg_()
    s, u, shift = by[S].double(), by[U].double(), by[SHIFT].double()
    spare = torch.empty_like(s)
    torch.sum(s, 0, out=row["s"])
    torch.sum(u, 0, out=row["u"])
    torch.sum(torch.abs(s, out=spare), 0, out=row["abs_s"])
    torch.sum(torch.mul(s, s, out=spare), 0, out=row["s2"])
    torch.sum(torch.mul(u, s, out=spare), 0, out=row["us"])
    torch.sum(torch.mul(u, u, out=spare), 0, out=row["u2"])
    if not tokens:
        return
    mean = shift.sum(0).div_(tokens)
    torch.add(pivot, mean, out=row["mean"])
    torch.sum(by[SHIFT2], 0, dtype=torch.float64, out=row["m2"])
    row["m2"].addcmul_(mean, mean, value=-tokens).clamp_(min=0)
    seen = counts[:, 0] > 0
    shift, counts = (shift, counts) if bool(seen.all()) else (shift[seen], counts[seen])
    shift.div_(counts)
    pool = shift.mean(0)
    torch.add(pivot, pool, out=row["pool_mean"])
    shift.sub_(pool)
    torch.sum(shift.mul_(shift), 0, out=row["pool_m2"])
