"""Experts: neurons whose response to an example tells the forget corpus from the retain corpus.

A neuron is read as a detector: its response to an example is `peak`, the activation of greatest magnitude over
the example's tokens, with its sign (the papers take the maximum over tokens, which is the peak where that is above
0, and another number where a neuron's deepest activation is larger than its highest). AUROC is the chance that a
forget example's response exceeds a retain example's, ties counting half (Suau et al. 2024, arXiv:2407.12824); AP is
the average precision of the ranking (Suau et al. 2022, arXiv:2110.02802), whose chance level is the share of forget
examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError, not_finite
from neuronforget.moments import Moments
from neuronforget.scores.scores import Scores, both, check_same, compares, reads_examples, sources

Measure = Literal["auroc", "ap"]
Response = Literal["signed", "magnitude"]
#: Responses this close, relative to the neuron's largest, are equal: at tokens that all examples begin with (BOS) they
#: are, but for rounding that hangs on how long a batch is, and so on the corpus.
TIE = 1e-5
SIGNS = {
    "auroc": "above 0.5: responds more to forget examples, below 0.5: to retain examples",
    "ap": "large: its strongest responses are to forget examples",
}


@dataclass(frozen=True, eq=False)
class PeakCounts:
    """How many examples' responses fall between the `edges`, `[layer, neuron, bin]`: `a + b` merges.

    The mergeable stand-in for the per-example table, whose memory grows with the corpus: record a corpus in
    pieces, `PeakCounts.of` each, and add. Two responses in one bin count as a tie, so an AUROC from counts is
    off by at most half the chance that a forget and a retain response share a bin; the first and last bin are
    open-ended.
    """

    counts: Int[Tensor, "layer neuron bin"]
    edges: Float[Tensor, "edge"]
    layers: tuple[int, ...]

    @classmethod
    def of(cls, moments: Moments, edges: Tensor | None = None) -> PeakCounts:
        """Count a recording's peaks. `edges` rise; by default they are 0 and +-(1e-4 to 1e4), 16 to a decade."""
        if edges is None:
            side = torch.logspace(-4, 4, 129, dtype=torch.float64)
            edges = torch.cat([-side.flip(0), torch.zeros(1, dtype=torch.float64), side])
        if not len(edges) or not (edges[1:] > edges[:-1]).all():
            raise InputError("edges must be increasing numbers")
        peaks, edges = peaks_of(moments), edges.double()
        counts = torch.zeros(*peaks.shape[1:], len(edges) + 1, dtype=torch.int64)
        for example in peaks:  # one at a time: nothing of size examples x neurons x bins
            place = torch.bucketize(example.double(), edges, right=True)[..., None]
            counts.scatter_add_(-1, place, torch.ones_like(place))
        return cls(counts, edges, moments.layers)

    def __add__(self, other: PeakCounts) -> PeakCounts:
        if self.layers != other.layers or self.counts.shape[:2] != other.counts.shape[:2]:
            raise InputError("peak counts of different models cannot be added: their layers or widths differ")
        if not torch.equal(self.edges, other.edges):
            raise InputError("peak counts with different edges cannot be added")
        return replace(self, counts=self.counts + other.counts)


@checks_kinds
@reads_examples
@compares(2)
def expert(
    forget: Moments | PeakCounts,
    retain: Moments | PeakCounts | None = None,
    *,
    measure: Measure = "auroc",
    response: Response = "signed",
) -> Scores:
    """Score how well each neuron's response detects forget examples, by AUROC or AP.

    Exact from per-example tables (`nf.record(..., per_example=True)`; the error of an AUROC is DeLong's),
    up to ties from `PeakCounts` of both corpora. `response="magnitude"` ranks by `|peak|`, for gated MLPs whose
    neurons also respond with large negative activations. Raises InputError without a table, or with fewer
    than two examples of a corpus.
    """
    name, error = f"expert:{measure}" + (":magnitude" if response == "magnitude" else ""), None
    if isinstance(forget, Moments) and isinstance(retain, Moments):
        found, about = both(peaks_of, forget, retain), sources(forget, retain)
        pair = [x if response == "signed" else x.abs() for x in found if x is not None]
        by_layer = list(zip(*(x.unbind(1) for x in pair), strict=True))  # one layer at a time: memory
        if measure == "auroc":
            values, error = (torch.stack(x) for x in zip(*(auroc(*x, tie=TIE) for x in by_layer), strict=True))
        else:
            values = torch.stack([average_precision(*x, tie=TIE) for x in by_layer])
    elif isinstance(forget, PeakCounts) and isinstance(retain, PeakCounts):
        check_same((forget.layers, forget.counts), (retain.layers, retain.counts))
        values, about = _from_counts(forget, retain, measure, response), {"forget": {}, "retain": {}}
    else:
        raise InputError("give moments of both corpora, or peak counts of both")
    return Scores(values, name, SIGNS[measure], forget.layers, error, about)


def peaks_of(moments: Moments) -> Float[Tensor, "example layer neuron"]:
    """Return each example's signed peak. Raises InputError where no per-example table was recorded, and for NaN."""
    if not moments.table:
        raise InputError("these moments have no per-example table: record them with nf.record(..., per_example=True)")
    peaks = moments.table["peak"]
    if not torch.isfinite(peaks).all():
        raise not_finite("per-example peaks")
    return peaks


def auroc(
    positive: Float[Tensor, "positive *neuron"], negative: Float[Tensor, "negative *neuron"], *, tie: float = 0.0
) -> tuple[Float[Tensor, "*neuron"], Float[Tensor, "*neuron"]]:
    """Return P(positive > negative) + P(equal) / 2 over all pairs, and its standard error (DeLong 1988), fp64.

    Equal are values no further apart than `tie` times the neuron's largest magnitude.
    """
    counts, near = [], _near(positive, negative, tie)  # for each value, twice how many of the other kind lie below it
    for of, among in ((positive, negative), (negative, positive)):
        below, at_most = _below(among, of, near)
        counts.append(below + at_most)
    pairs = [x / (2 * len(among)) for x, among in zip(counts, (negative, positive), strict=True)]
    parts = [x.var(0) / len(x) if len(x) > 1 else torch.zeros_like(x[0]) for x in pairs]
    value = counts[0].sum(0) / (2 * len(positive) * len(negative))  # of whole numbers: 1/2 is 1/2, whatever its terms
    return value, (parts[0] + parts[1]).sqrt()


def average_precision(
    positive: Float[Tensor, "positive *neuron"], negative: Float[Tensor, "negative *neuron"], *, tie: float = 0.0
) -> Float[Tensor, "*neuron"]:
    """Return the mean over positives of the precision at their own value (equal values are one threshold)."""
    near = _near(positive, negative, tie)
    above = [len(x) - _below(x, positive, near)[0] for x in (positive, negative)]  # at or above each positive
    return (above[0] / (above[0] + above[1])).mean(0)


def _near(one: Tensor, other: Tensor, tie: float) -> Tensor:
    """How far apart equal values of a neuron may be; fp64 [*neuron]."""
    return tie * torch.maximum(one.abs().amax(0), other.abs().amax(0)).double()


def _below(among: Tensor, of: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """For each value of `of`, how many of the same neuron's `among` are (below, at most) it; fp64, shape of `of`."""
    ranked, wanted = among.double().movedim(0, -1).contiguous().sort(-1).values, of.double().movedim(0, -1)
    sides = ((wanted - near[..., None], False), (wanted + near[..., None], True))
    counts = (torch.searchsorted(ranked, value.contiguous(), right=right) for value, right in sides)
    below, at_most = (count.double().movedim(-1, 0) for count in counts)
    return below, at_most


def _from_counts(forget: PeakCounts, retain: PeakCounts, measure: Measure, response: Response) -> Tensor:
    if not torch.equal(forget.edges, retain.edges):
        raise InputError("the two corpora's peaks were counted between different edges")
    pair = [counts.counts.double() for counts in (forget, retain)]
    if min(counts := [int(x[0, 0].sum()) for x in pair]) < 2:
        raise InputError(f"expert needs 2 or more examples of each corpus, found {counts[0]} and {counts[1]}")
    if response == "magnitude":
        if len(forget.edges) % 2 == 0 or not torch.equal(forget.edges, -forget.edges.flip(0)):
            raise InputError("response='magnitude' needs edges with 0 in the middle, symmetric about it")
        half = len(forget.edges) // 2 + 1
        pair = [x[..., :half].flip(-1) + x[..., -half:] for x in pair]
    f, r = pair
    if measure == "auroc":
        below = r.cumsum(-1) - r / 2
        return (f * below).sum(-1) / (f.sum(-1) * r.sum(-1))
    above = [x.flip(-1).cumsum(-1).flip(-1) for x in (f, r)]
    return (f * above[0] / (above[0] + above[1]).clamp_min(1)).sum(-1) / f.sum(-1)
