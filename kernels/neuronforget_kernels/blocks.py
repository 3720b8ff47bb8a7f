"""The sums of pieces on CPU, no compiler needed: ATen operations on blocks of rows small enough to stay in the cache.

A block holds several short pieces, or a part of a long one. Terms are written beside one another, row by row. In fp32
an `embedding_bag` adds up the rows of each piece, another those of each part of the block for what is not wanted by
piece, as the GPU's items do. Squares take the place of their bases in between. Every operation gives a thread the rows
that it had before: a `sum` over rows would give it columns, and where cores share no cache the rows then travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import (
    ABS,
    ABS_AG,
    AG2,
    G2,
    PEAK,
    POSITIVE,
    SHIFT,
    SHIFT2,
    SQUARE,
    SUMS,
    S,
    U,
)
from neuronforget_kernels.layout import Layout

#: What is added up by piece; the bases among it, their squares, and what else is added up.
BY_PIECE, BASES, SQUARES, OTHERS = SUMS[:4], SUMS[:3], SUMS[4:7], SUMS[7:]
#: Elements of a block's activations; with its gradients and the terms held at a time some eight times as many.
BLOCK = 98_304
#: Parts of a block, as many as threads find work in it, and the longest in rows: one by one these add up in fp32
#: to seven digits.
PARTS, PART_ROWS = 4, 64


def names_of(want: int) -> tuple[int, ...]:
    """Return the sums that the wanted accumulators take, in order; with the squares of all bases or of none."""
    needed = want | (S if want & (ABS_AG | AG2) else 0) | (U if want & G2 else 0) | (SHIFT if want & SHIFT2 else 0)
    bases = [name for name in BASES if needed & name]
    squares = [square for base, square in zip(BASES, SQUARES, strict=True) if base in bases]
    rest = [name for name in OTHERS if want & name]
    return (*bases, *([SQUARE] if want & SQUARE else []), *(squares if want & sum(squares) else []), *rest)


@dataclass(frozen=True, eq=False)
class Block:
    """`count` rows that are read together: those of piece `pieces.start` begin at `first[0]`, and so on.

    `opens` is false for what continues a piece. `even` repeats rows (None: no need) until every piece has as many,
    which leaves its extremes as they are. Its parts, of at most `PART_ROWS` rows, begin at `cuts`, and each is of one
    group, `groups`.
    """

    count: int
    opens: bool
    rows: slice | Tensor
    pieces: slice
    first: Tensor
    even: Tensor | None
    cuts: Tensor
    groups: list[int]


def blocks_of(layout: Layout, most: int, mixed: int | None = None) -> list[Block]:
    """Cut a layout's pieces into blocks of at most `most` rows, counting every piece of one as long as its longest.

    Pieces of more than `mixed` rows go together only where they are equally long.
    """
    found: list[Block] = []
    low, high, group = layout.low.tolist(), layout.high.tolist(), layout.piece_group.tolist()
    begin = longest = 0
    for piece, length in enumerate((layout.high - layout.low).tolist()):
        differs, longest = length != longest, max(longest, length)
        alone = mixed is not None and differs and longest > mixed
        if piece > begin and (alone or (piece - begin + 1) * longest > most):
            found.append(_block(low[begin:piece], high[begin:piece], begin, group))
            begin, longest = piece, length
        if longest > most:
            starts = range(low[piece], high[piece], most)
            found += [_block([x], [min(x + most, high[piece])], piece, group, opens=x == low[piece]) for x in starts]
            begin, longest = piece + 1, 0
    return [*found, _block(low[begin:], high[begin:], begin, group)] if begin < len(low) else found


def _block(low: list[int], high: list[int], begin: int, group: list[int], *, opens: bool = True) -> Block:
    """The block of pieces from number `begin` on, with these first rows and rows after the last.

    `group` is that of every piece.
    """
    length = [stop - start for start, stop in zip(low, high, strict=True)]
    first = list(accumulate(length, initial=0))
    even = None
    if min(length) < max(length):
        last = torch.tensor(length)[:, None] - 1
        even = (torch.tensor(first[:-1])[:, None] + torch.arange(max(length)).clamp(max=last)).flatten()
    if low[1:] == high[:-1]:
        read: slice | Tensor = slice(low[0], high[-1])
    else:
        read = torch.cat([torch.arange(start, stop) for start, stop in zip(low, high, strict=True)])
    own = group[begin : begin + len(low)]
    changes = [0, *(i for i in range(1, len(own)) if own[i] != own[i - 1]), len(own)] if any(own) else [0, len(own)]
    ranges = [(first[start], first[stop], own[start]) for start, stop in pairwise(changes)]
    most = min(PART_ROWS, -(-first[-1] // PARTS))
    parts = [(x, of) for start, end, of in ranges for x in range(start, end, most)]
    cuts, groups = torch.tensor([x for x, _ in parts]), [of for _, of in parts]
    return Block(first[-1], opens, read, slice(begin, begin + len(low)), torch.tensor(first[:-1]), even, cuts, groups)


class BlockSums:
    """The sums of a layout for layers of one width; its buffers, and what it returns, serve the next call.

    `groups` is the group of each row of the sums that are not kept by piece.
    """

    def __init__(self, layout: Layout, width: int, want: int) -> None:
        self.width, self.weights, self.peak, names = width, layout.weights, want & PEAK, names_of(want)
        by_piece, others = ([name for name in names if name in some] for some in (BY_PIECE, OTHERS))
        self.squares = len(names) - len(by_piece) - len(others)
        self.blocks = blocks_of(layout, max(1, BLOCK // max(1, width)))
        self.groups = torch.tensor([group for block in self.blocks for group in block.groups], dtype=torch.long)
        most, pieces = max((block.count for block in self.blocks), default=0), len(layout.low)
        self.act, self.grad = torch.empty((2, most, width)).unbind()
        self.sums = torch.empty((pieces, len(by_piece), width))
        self.rest = torch.empty((len(self.groups), self.squares + len(others), width))
        self.extremes = torch.empty((2, pieces, width))
        room = [torch.empty((most, len(some), width)) for some in (by_piece, others)]
        counts, order = {block.count for block in self.blocks}, torch.arange(most)
        self.terms = {n: Terms(by_piece, room[0][:n], others, room[1][:n], order[:n]) for n in counts}

    @torch.inference_mode()
    def __call__(self, a: Tensor, g: Tensor | None, pivot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums by piece [piece, sum, neuron], the rest, extremes [max and -min, piece, neuron]; fp32."""
        rest = iter(self.rest.split([len(block.groups) for block in self.blocks]))
        for block in self.blocks:
            act, terms = _read(a, block.rows, self.act[: block.count]), self.terms[block.count]
            if self.peak:
                self._peaks(act, block)
            terms.fill(act, None if g is None else _read(g, block.rows, self.grad[: block.count]), pivot)
            share = None if self.weights is None else self.weights[block.rows]
            self._add_pieces(terms, block, share)
            self._add_parts(terms, block, share, next(rest))
        self.extremes[1].neg_()
        return self.sums, self.rest, self.extremes

    def _add_pieces(self, terms: Terms, block: Block, share: Tensor | None) -> None:
        """Add up the rows of each piece of a block."""
        if self.sums.shape[1]:
            into, found = self.sums[block.pieces], terms.added(terms.by_piece, block.first, share)
            into.copy_(found) if block.opens else into.add_(found)

    def _add_parts(self, terms: Terms, block: Block, share: Tensor | None, into: Tensor) -> None:
        """Square the bases, and add up the rows of each part of a block."""
        if self.squares:
            squares = terms.by_piece[:, : self.squares]
            squares.mul_(squares)
            into[:, : self.squares] = terms.added(terms.by_piece, block.cuts, share)[:, : self.squares]
        if into.shape[1] > self.squares:
            into[:, self.squares :] = terms.added(terms.others, block.cuts, share)

    def _peaks(self, act: Tensor, block: Block) -> None:
        runs = (act if block.even is None else act[block.even]).view(len(block.first), -1, self.width)
        high, low = self.extremes[:, block.pieces]
        if block.opens:
            torch.amax(runs, 1, out=high), torch.amin(runs, 1, out=low)
        else:
            torch.maximum(high, runs.amax(1), out=high), torch.minimum(low, runs.amin(1), out=low)


class Terms:
    """Where the terms of a block's rows are written, [row, term, neuron]: those added up by piece, and others."""

    def __init__(self, by_piece: list[int], first: Tensor, others: list[int], second: Tensor, order: Tensor) -> None:
        self.by_piece, self.others, self.order = first, second, order
        self.of = dict(zip([*by_piece, *others], [*first.unbind(1), *second.unbind(1)], strict=True))

    def added(self, terms: Tensor, first: Tensor, share: Tensor | None) -> Tensor:
        """Return the terms' sums [.., term, neuron] over the rows from each `first` on, weighted by `share` [row]."""
        flat = terms.flatten(1)
        return torch.embedding_bag(flat, self.order, first, mode=0, per_sample_weights=share)[0].view(
            len(first), *terms.shape[1:]
        )

    def fill(self, a: Tensor, g: Tensor | None, pivot: Tensor) -> None:
        """Write what each sum adds for each row; the squares are to come in their bases' place."""
        of = self.of
        if SHIFT in of:
            torch.sub(a, pivot, out=of[SHIFT])
        if U in of and g is not None:
            of[U].copy_(g)
        if S in of and g is not None:
            torch.mul(a, g, out=of[S])
        if SQUARE in of:
            torch.mul(a, a, out=of[SQUARE])
        if ABS in of:
            torch.abs(a, out=of[ABS])
        if POSITIVE in of:
            torch.gt(a, 0, out=of[POSITIVE])
        if ABS_AG in of:
            torch.abs(of[S], out=of[ABS_AG])


def _read(x: Tensor, rows: slice | Tensor, into: Tensor) -> Tensor:
    """Return these rows in fp32, where they lie if they can stay there."""
    if isinstance(rows, slice):
        return x[rows] if x.dtype is torch.float32 else into.copy_(x[rows])
    return torch.index_select(x, 0, rows, out=into) if x.dtype is torch.float32 else into.copy_(x[rows])
