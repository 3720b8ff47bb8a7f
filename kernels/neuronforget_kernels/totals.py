"""The fields of a group on CPU: sums over its examples and parts in fp64, then means and squared deviations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import ABS, ABS_AG, AG2, G2, POSITIVE, SHIFT, SHIFT2, S, U
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.reference import PIECE_FIELDS

#: An operation, on what, and into what.
Steps = list[tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]]
#: The mean of an example's rows, less the pivot.
POOL = -1
#: Fields that are sums over examples (the means at first), and those that are sums of squares of these.
_BASES, _SQUARES = {SHIFT: "mean", U: "u", S: "s", POOL: "pool_mean"}, {U: "u2", S: "s2", POOL: "pool_m2"}
#: Fields that are sums of what is not kept by piece.
_REST = {SHIFT2: "m2", ABS: "abs_sum", POSITIVE: "positive", ABS_AG: "abs_ag", AG2: "ag2", G2: "g2"}
# The first four fields are means and squared deviations, of tokens and of examples' means.
assert PIECE_FIELDS[:4] == ("mean", "m2", "pool_mean", "pool_m2")


class Totals:
    """What a group is in every layer of a batch, and room for what its examples' sums give.

    `examples` and `parts` say which examples are the group's, and which rows of the sums with these groups.
    """

    def __init__(self, layout: Layout, group: int, parts: Tensor, names: tuple[int, ...], width: int) -> None:
        self.examples = layout.group == group if layout.grouped else slice(None)
        self.parts = parts == group if layout.grouped else slice(None)
        counts = layout.counts[self.examples, None].double()
        tokens, seen = float(counts.sum()), float(counts.count_nonzero())
        self.sizes = torch.tensor([[tokens], [seen]], dtype=torch.float64)
        bases, fields, self.where = _plan(names)
        self.given, self.centred = len(bases) - (POOL in bases), SHIFT in bases and tokens > 0
        self.wide = torch.empty((fields, len(counts), width), dtype=torch.float64)
        self.steps = _steps(bases, self.wide, torch.where(counts > 0, 1 / counts, 0.0))

    @torch.inference_mode()
    def fill(self, fields: Tensor, sums: Tensor, rest: Tensor, extremes: Tensor, pivot: Tensor) -> None:
        """Write the fields [field, neuron] from the sums of examples and the rest [.., sum, neuron].

        `extremes` are max and -min [2, example, neuron].
        """
        self.wide[: self.given].copy_(sums[:, : self.given].transpose(0, 1))
        for operation, factors, into in self.steps:
            operation(*factors, out=into)
        peaks = extremes.amax(1) if extremes.shape[1] else extremes.new_full((2, extremes.shape[2]), -torch.inf)
        peaks[1].neg_()
        fields.index_copy_(0, self.where, torch.cat([self.wide.sum(1), rest.sum(0, dtype=torch.float64), peaks]))
        if self.centred:
            mean, m2 = fields[:4].unflatten(0, (2, 2)).unbind(1)
            offset = mean / self.sizes
            m2.addcmul_(mean, offset, value=-1).clamp_(min=0)
            torch.add(pivot, offset, out=mean)


def _steps(bases: list[int], wide: Tensor, share: Tensor) -> Steps:
    """What makes the sums over examples from the bases; `share` is 1 over an example's count."""
    of, squared = dict(zip(bases, wide, strict=False)), wide[SHIFT in bases : len(bases)]
    after = len(bases) + len(squared)
    steps: Steps = [(torch.mul, (of[SHIFT], share), of[POOL])] if POOL in of else []
    steps.append((torch.mul, (squared, squared), wide[len(bases) : after]))
    if S in of:
        steps.append((torch.abs, (of[S],), wide[after]))
    if S in of and U in of:
        steps.append((torch.mul, (of[U], of[S]), wide[after + 1]))
    return steps


@cache
def _plan(names: tuple[int, ...]) -> tuple[list[int], int, Tensor]:
    """The bases that these sums allow, how many sums over examples there are, and the number of each field."""
    bases = [name for name in names if name in _BASES] + ([POOL] if SHIFT in names else [])
    fields = [_BASES[name] for name in bases] + [_SQUARES[name] for name in bases if name in _SQUARES]
    fields += (["abs_s"] if S in bases else []) + (["us"] if {S, U} <= {*bases} else [])
    every = [*fields, *(_REST[name] for name in names if name in _REST), "max", "min"]
    return bases, len(fields), torch.tensor([PIECE_FIELDS.index(field) for field in every], dtype=torch.long)
