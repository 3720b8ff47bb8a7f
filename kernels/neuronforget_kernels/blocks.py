"""The sums of pieces on CPU, no compiler needed: ATen operations on blocks of rows small enough to stay in the cache.

A block holds several short pieces, or a part of a long one. Terms are written beside one another, row by row, and an
`embedding_bag` adds up the rows of every piece, in fp32 and in order; squares then take the place of their bases.
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

#: What is added up as it is and squared, the squares, and the others.
BASES, SQUARES, OTHERS = SUMS[:3], SUMS[3:6], SUMS[6:]
#: Elements of a block's activations; with its gradients and the terms held at a time some eight times as many.
BLOCK = 98_304


def names_of(want: int) -> tuple[int, ...]:
    """Return the sums that the wanted accumulators take: first bases, next the squares of all of them or of none."""
    needed = want | (S if want & (ABS_AG | AG2) else 0) | (U if want & G2 else 0) | (SHIFT if want & SHIFT2 else 0)
    bases = [name for name in BASES if needed & name]
    squares = [square for base, square in zip(BASES, SQUARES, strict=True) if base in bases]
    rest = [name for name in OTHERS if want & name]
    return (*bases, *(squares if any(want & name for name in squares) else []), *rest)


@dataclass(frozen=True, eq=False)
class Block:
    """`count` rows that are read together: those of piece `pieces.start` begin at `first[0]`, and so on.

    `opens` is false for what continues a piece. `even` repeats rows (None: no need) until every piece has as many,
    which leaves its extremes as they are.
    """

    count: int
    opens: bool
    rows: slice | Tensor
    pieces: slice
    first: Tensor
    even: Tensor | None


def blocks_of(layout: Layout, most: int, mixed: int | None = None) -> list[Block]:
    """Cut a layout's pieces into blocks of at most `most` rows, counting every piece of one as long as its longest.

    Pieces of more than `mixed` rows go together only where they are equally long.
    """
    found: list[Block] = []
    held: list[tuple[int, int]] = []
    longest = 0
    for piece, (low, high) in enumerate(zip(layout.low.tolist(), layout.high.tolist(), strict=True)):
        differs, longest = high - low != longest, max(longest, high - low)
        alone = mixed is not None and differs and longest > mixed
        if held and (alone or (len(held) + 1) * longest > most):
            found.append(_block(held, piece))
            held, longest = [], high - low
        if longest > most:
            parts = [(start, min(start + most, high)) for start in range(low, high, most)]
            found += [_block([part], piece + 1, opens=part[0] == low) for part in parts]
            longest = 0
        else:
            held.append((low, high))
    return [*found, _block(held, len(layout.low))] if held else found


def _block(ranges: list[tuple[int, int]], end: int, *, opens: bool = True) -> Block:
    """The block of these pieces, the last of which is number `end - 1`."""
    length = [high - low for low, high in ranges]
    first = list(accumulate(length, initial=0))
    even = None
    if min(length) < max(length):
        last = torch.tensor(length)[:, None] - 1
        even = (torch.tensor(first[:-1])[:, None] + torch.arange(max(length)).clamp(max=last)).flatten()
    if all(stop == start for (_, stop), (start, _) in pairwise(ranges)):
        read: slice | Tensor = slice(ranges[0][0], ranges[-1][1])
    else:
        read = torch.cat([torch.arange(*pair) for pair in ranges])
    return Block(first[-1], opens, read, slice(end - len(ranges), end), torch.tensor(first[:-1]), even)


class BlockSums:
    """The sums of a layout's pieces for layers of one width; its buffers, and what it returns, serve the next call."""

    def __init__(self, layout: Layout, width: int, want: int) -> None:
        self.width, self.weights, self.peak, names = width, layout.weights, want & PEAK, names_of(want)
        bases, others = ([name for name in names if name in some] for some in (BASES, OTHERS))
        self.squares = len(names) - len(bases) - len(others)
        self.blocks = blocks_of(layout, max(1, BLOCK // max(1, width)))
        most, pieces = max((block.count for block in self.blocks), default=0), len(layout.low)
        self.act, self.grad = torch.empty((2, most, width)).unbind()
        self.bases = torch.empty((pieces, len(bases), width))
        self.rest = torch.empty((pieces, self.squares + len(others), width))
        self.extremes = torch.empty((2, pieces, width))
        room = [torch.empty((most, len(some), width)) for some in (bases, others)]
        counts, order = {block.count for block in self.blocks}, torch.arange(most)
        self.terms = {n: Terms(bases, room[0][:n], others, room[1][:n], order[:n]) for n in counts}

    @torch.inference_mode()
    def __call__(self, a: Tensor, g: Tensor | None, pivot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums of bases and of the rest [piece, sum, neuron], extremes [max and -min, piece, neuron]; fp32."""
        for block in self.blocks:
            act, terms = _read(a, block.rows, self.act[: block.count]), self.terms[block.count]
            if self.peak:
                self._peaks(act, block)
            terms.fill(act, None if g is None else _read(g, block.rows, self.grad[: block.count]), pivot)
            self._add(terms.bases, terms.order, block, self.bases)
            self._add(terms.others, terms.order, block, self.rest[:, self.squares :])
            if self.squares:
                self._add(terms.bases.mul_(terms.bases), terms.order, block, self.rest[:, : self.squares])
        self.extremes[1].neg_()
        return self.bases, self.rest, self.extremes

    def _add(self, terms: Tensor, order: Tensor, block: Block, sums: Tensor) -> None:
        """Add up the rows [row, sum * neuron] of each piece of a block."""
        if terms.shape[1]:
            share = None if self.weights is None else self.weights[block.rows]
            found = torch.embedding_bag(terms, order, block.first, mode=0, per_sample_weights=share)[0]
            into, found = sums[block.pieces], found.view(len(block.first), -1, self.width)
            into.copy_(found) if block.opens else into.add_(found)

    def _peaks(self, act: Tensor, block: Block) -> None:
        runs = (act if block.even is None else act[block.even]).view(len(block.first), -1, self.width)
        high, low = self.extremes[:, block.pieces]
        if block.opens:
            torch.amax(runs, 1, out=high), torch.amin(runs, 1, out=low)
        else:
            torch.maximum(high, runs.amax(1), out=high), torch.minimum(low, runs.amin(1), out=low)


class Terms:
    """Where the terms of a block's rows are written, [row, term * neuron]: those of bases, and others."""

    def __init__(self, bases: list[int], first: Tensor, others: list[int], second: Tensor, order: Tensor) -> None:
        self.bases, self.others, self.order = first.flatten(1), second.flatten(1), order
        self.of = dict(zip([*bases, *others], [*first.unbind(1), *second.unbind(1)], strict=True))

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
