"""The sums of pieces as one would write them, fused by `torch.compile`: one pass over `a` and `g` on a CPU.

Each kind of block (one piece or several, of one row or more, with gradients or without, by dtype) is compiled once, for
some seconds, and needs a C++ compiler; `blocks` needs neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import no_type_check

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import SUMS
from neuronforget_kernels.blocks import BY_PIECE, Block, blocks_of
from neuronforget_kernels.layout import Layout

#: From activations, gradients (or None) [piece, row, neuron], pivot and weights [piece, row, 1] to sums
#: [piece, sum, neuron], max and -min [2, piece, neuron].
PieceSums = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
#: Rows that are worked on by one call. Pieces of different lengths are copied to go together: worth it for short ones.
ROWS, MIXED = 1024, 64


@no_type_check  # the compiler would trace what tests check
def terms(a: Tensor, g: Tensor | None, pivot: Tensor) -> list[Tensor]:
    """Return what each of `accumulators.SUMS` adds for each row, fp32 [row, neuron]; 0 where it lacks a `g`."""
    a = a.float()
    d = a - pivot
    if g is None:
        zero = torch.zeros_like(a)
        return [d, zero, zero, a * a, d * d, zero, zero, a.abs(), (a > 0).float(), zero]
    g = g.float()
    p = a * g
    return [d, g, p, a * a, d * d, g * g, p * p, a.abs(), (a > 0).float(), p.abs()]


@no_type_check
def piece_sums(a: Tensor, g: Tensor | None, pivot: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the rows of pieces that are equally long, each times its weight, and the extremes.

    Rows of weight 0 count for the extremes alone, be they infinite.
    """
    added = [torch.where(w > 0, x * w, 0.0).sum(1) for x in terms(a, g, pivot)]
    wide = a.float()
    return torch.stack(added, 1), torch.stack([wide.amax(1), -wide.amin(1)])


@cache
def compiled_piece_sums() -> PieceSums | None:
    """Return `piece_sums` compiled for any shape; None, with a warning, where that fails."""
    fused: PieceSums = torch.compile(piece_sums, dynamic=True)
    try:
        fused(torch.ones(2, 3, 5), torch.ones(2, 3, 5), torch.zeros(5), torch.ones(2, 3, 1))
    except RuntimeError as error:  # what PyTorch raises without a compiler, or on a Python that it cannot compile
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"torch.compile does not work here, so moments are not compiled: {reason}", stacklevel=2)
        return None
    return fused


class CompiledSums:
    """What `BlockSums` returns for layers of one width, with every sum, by compiled code."""

    def __init__(self, layout: Layout, width: int, fused: PieceSums) -> None:
        self.fused, self.groups = fused, layout.piece_group
        self.blocks = [(block, *_even(block, layout.weights)) for block in blocks_of(layout, ROWS, MIXED)]
        if len(self.blocks) != 1:
            self.sums = torch.empty((len(layout.low), len(SUMS), width))
            self.extremes = torch.empty((2, len(layout.low), width))

    @torch.inference_mode()
    def __call__(self, a: Tensor, g: Tensor | None, pivot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return sums by piece and the rest [piece, sum, neuron], extremes [max and -min, piece, neuron]; fp32."""
        for block, rows, share in self.blocks:
            shape = len(block.first), -1, a.shape[1]
            grad = None if g is None else g[rows].reshape(shape)
            sums, extremes = self.fused(a[rows].reshape(shape), grad, pivot, share)
            if len(self.blocks) == 1:
                self.sums, self.extremes = sums, extremes
            elif block.opens:
                self.sums[block.pieces], self.extremes[:, block.pieces] = sums, extremes
            else:
                self.sums[block.pieces] += sums
                self.extremes[:, block.pieces] = torch.maximum(self.extremes[:, block.pieces], extremes)
        return self.sums[:, : len(BY_PIECE)], self.sums[:, len(BY_PIECE) :], self.extremes


def _even(block: Block, weights: Tensor | None) -> tuple[slice | Tensor, Tensor]:
    """A block's rows, repeated until every piece has as many, and the weights [piece, row, 1]: of repeated rows 0.

    Without weights they are 1: one kind of code less to compile.
    """
    share = torch.ones(block.count) if weights is None else weights[block.rows]
    if block.even is None:
        return block.rows, share.view(len(block.first), -1, 1)
    read = block.rows if isinstance(block.rows, Tensor) else torch.arange(block.rows.start, block.rows.stop)
    length = torch.diff(block.first, append=torch.tensor([block.count]))[:, None]
    even = block.even.view(len(length), -1)
    own = torch.arange(even.shape[1]) < length
    return read[block.even], (own * share[even])[..., None]
