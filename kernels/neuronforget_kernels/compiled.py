"""The sums of a piece as one would write them, fused by `torch.compile`: one pass over `a` and `g` on a CPU.

The first call compiles, for some seconds, and needs a C++ compiler; `rows` needs neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import no_type_check

import torch
from torch import Tensor

#: From activations, gradients (or None), pivot and weights (or None) to sums [sum, neuron], max and -min [2, neuron].
PieceSums = Callable[[Tensor, Tensor | None, Tensor, Tensor | None], tuple[Tensor, Tensor]]


@no_type_check  # the compiler would trace what tests check
def terms(a: Tensor, g: Tensor | None, pivot: Tensor) -> list[Tensor]:
    """Return what each of `accumulators.SUMS` adds for each row, fp32 [row, neuron]; 0 where it lacks a `g`."""
    a = a.float()
    d = a - pivot
    if g is None:
        zero = torch.zeros_like(a)
        return [d, zero, zero, d * d, zero, zero, a * a, a.abs(), (a > 0).float(), zero]
    g = g.float()
    p = a * g
    return [d, g, p, d * d, g * g, p * p, a * a, a.abs(), (a > 0).float(), p.abs()]


@no_type_check
def piece_sums(a: Tensor, g: Tensor | None, pivot: Tensor, w: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sums of a piece's rows, each times its weight in `w` [row, 1], and the extremes."""
    added = [x.sum(0) if w is None else (x * w).sum(0) for x in terms(a, g, pivot)]
    wide = a.float()
    return torch.stack(added), torch.stack([wide.amax(0), -wide.amin(0)])


@cache
def compiled_piece_sums() -> PieceSums | None:
    """Return `piece_sums` compiled for any number of rows and neurons; None, with a warning, where that fails."""
    fused: PieceSums = torch.compile(piece_sums, dynamic=True)
    try:
        fused(torch.ones(3, 5), torch.ones(3, 5), torch.zeros(5), None)
    except RuntimeError as error:  # what PyTorch raises without a compiler, or on a Python that it cannot compile
        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"torch.compile does not work here, so moments are not compiled: {reason}", stacklevel=2)
        return None
    return fused
