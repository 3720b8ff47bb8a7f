"""The fields of a group on CPU: sums over its examples and pieces in fp64, then means and squared deviations."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import ABS, ABS_AG, AG2, G2, POSITIVE, SHIFT, SHIFT2, S, U
from neuronforget_kernels.blocks import BY_PIECE
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.reference import PIECE_FIELDS

#: The mean of an example's rows, less the pivot.
POOL = -1
#: Fields that are sums over examples (the means at first), of products of these too or of one without its sign.
_BASES = {SHIFT: "mean", U: "u", S: "s", POOL: "pool_mean"}
_PRODUCTS = {"s2": (S, S), "u2": (U, U), "us": (U, S), "abs_s": (S,), "pool_m2": (POOL, POOL)}
#: Where the extremes are; the first four fields are means and squared deviations, of tokens and of examples' means.
_MIN, _MAX = PIECE_FIELDS.index("min"), PIECE_FIELDS.index("max")
assert PIECE_FIELDS[:4] == ("mean", "m2", "pool_mean", "pool_m2")
#: Fields that are sums of what is not kept by piece.
_REST = {SHIFT2: "m2", ABS: "abs_sum", POSITIVE: "positive", ABS_AG: "abs_ag", AG2: "ag2", G2: "g2"}


class Totals:
    """What a group is in every layer of a batch, and room for what its examples' sums give.

    `examples` and `parts` say which examples are the group's, and which rows of the sums with these groups.
    """

    def __init__(self, layout: Layout, group: int, parts: Tensor, names: tuple[int, ...], width: int) -> None:
        self.examples = layout.group == group if layout.grouped else slice(None)
        self.parts = parts == group if layout.grouped else slice(None)
        counts = layout.counts[self.examples, None].double()
        self.sizes = torch.tensor([[float(counts.sum())], [float(counts.count_nonzero())]], dtype=torch.float64)
        self.share = counts.reciprocal().nan_to_num_(posinf=0.0)
        self.bases, self.products, self.kept, self.where = _plan(names)
        self.wide = torch.empty((len(self.bases) + len(self.products), len(counts), width), dtype=torch.float64)

    @torch.inference_mode()
    def fill(self, fields: Tensor, sums: Tensor, rest: Tensor, extremes: Tensor, pivot: Tensor) -> None:
        """Write the fields [field, neuron] from the sums of examples and the rest [.., sum, neuron].

        `extremes` are max and -min [2, example, neuron].
        """
        wide, of = self.wide, dict(zip(self.bases, self.wide, strict=False))
        given = len(self.bases) - (POOL in of)
        wide[:given].copy_(sums[:, :given].transpose(0, 1))
        if POOL in of:
            torch.mul(of[SHIFT], self.share, out=of[POOL])
        for into, factors in zip(wide[len(self.bases) :], self.products, strict=True):
            first, *second = (of[factor] for factor in factors)
            torch.mul(first, second[0], out=into) if second else torch.abs(first, out=into)
        fields.index_copy_(0, self.where, torch.cat([wide.sum(1), rest.sum(0, dtype=torch.float64)[self.kept]]))
        if wide.shape[1]:
            high, low = extremes.amax(1)
            fields[_MAX].copy_(high), fields[_MIN].copy_(low).neg_()
        else:
            fields[_MAX].fill_(-torch.inf), fields[_MIN].fill_(torch.inf)
        if POOL in of and float(self.sizes[0]):
            mean, m2 = fields[:4].unflatten(0, (2, 2)).unbind(1)
            offset = mean / self.sizes
            m2.addcmul_(mean, offset, value=-1).clamp_(min=0)
            torch.add(pivot, offset, out=mean)


@cache
def _plan(names: tuple[int, ...]) -> tuple[list[int], list[tuple[int, ...]], Tensor, Tensor]:
    """The bases and products that these sums allow, which of the rest are fields, and the number of each field."""
    bases = [name for name in names if name in _BASES] + ([POOL] if SHIFT in names else [])
    products = {field: factors for field, factors in _PRODUCTS.items() if {*factors} <= {*bases}}
    rest = [name for name in names if name not in BY_PIECE]
    fields = [*(_BASES[name] for name in bases), *products, *(_REST[name] for name in rest if name in _REST)]
    kept = torch.tensor([i for i, name in enumerate(rest) if name in _REST], dtype=torch.long)
    where = torch.tensor([PIECE_FIELDS.index(field) for field in fields], dtype=torch.long)
    return bases, [*products.values()], kept, where
