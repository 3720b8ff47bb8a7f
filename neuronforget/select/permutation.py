"""The permutation null: would this neuron look as specific to forget if the examples' labels meant nothing?

The statistic of a neuron is the mean effect on forget examples minus that on retain examples, over its standard error
with a variance of either corpus (Welch's t). Under the null the labels of the examples are exchangeable, so its
distribution is that over random relabelings, the same for all neurons of one relabeling. By the standard error neurons
are comparable, and where the corpora vary differently about one mean the p-values still hold, the better the more
examples there are (Janssen 1997, doi:10.1016/S0167-7152(97)00043-6): of the difference alone a small forget corpus that
varies more than retain passes for one with a larger mean.

own     `p = (1 + #{relabelings with a statistic at least as large}) / (1 + permutations)`: exact for each neuron
        (Phipson & Smyth 2010), but no smaller than `1 / (1 + permutations)`, which a correction for a hundred
        thousand neurons can hardly reject.
pooled  counts over all neurons' relabeled statistics at once (as SAM does, Tusher et al. 2001): resolves small p
        with few permutations, and is as good as the assumption that the standardised statistics of all
        neurons have one null distribution. Effects that are zero on most examples break it.

Examples are relabelled one by one, whoever they are about: where a corpus is a few people, whose facts stand and fall
together, a neuron may pass for telling these people from those, which says nothing of other people. With `subjects`
whole subjects are relabelled, each by the mean of its examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, subjects_of
from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.select.examples import Effect, effects, zero_ablation

Null = Literal["own", "pooled"]
Side = Literal["larger", "both"]
#: Statistics this close (in standard deviations) are equal: relabelings that tie differ by rounding.
TIE = 1e-4


@checks_kinds
def permutation_null(
    forget: Moments,
    retain: Moments,
    *,
    q: float = 0.05,
    effect: Effect = zero_ablation,
    subjects: tuple[Corpus, Corpus] | None = None,
    null: Null = "pooled",
    side: Side = "larger",
    permutations: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> Neurons:
    """Select neurons at a false-discovery rate of `q` (Benjamini & Hochberg 1995) by their permutation p-values.

    May be empty: then no neuron is specific to forget beyond chance. `subjects` are the two corpora: give them where it
    is to hold for other subjects too, not for other questions about these alone. `info` holds the largest p-value
    selected and the smallest one possible. Raises InputError as `permutation_p` does, and where no p-value could pass
    `q`.
    """
    if not 0 < q < 1:
        raise InputError(f"q must be a rate between 0 and 1, found {q}")
    if null == "own" and 1 / (1 + permutations) > q:
        raise InputError(f"{permutations} permutations give no p-value under {q}: use {int(1 / q)} or more")
    units = [m.examples for m in (forget, retain)] if subjects is None else [len({*subjects_of(c)}) for c in subjects]
    smallest = _smallest(units, q, permutations, forget["mean"].numel() if null == "pooled" else 0)
    p = permutation_p(
        forget, retain, effect=effect, subjects=subjects, null=null, side=side, permutations=permutations, seed=seed,
        progress=progress,
    )  # fmt: skip
    mask = benjamini_hochberg(p, q)
    info = {"rule": "permutation_null", "q": q, "null": null, "side": side, "permutations": permutations, "seed": seed}
    info |= {"unit": "example" if subjects is None else "subject"}
    info |= {"score": getattr(effect, "__name__", "effect"), "largest p": float(p[mask].max()) if mask.any() else None}
    info |= {"smallest possible p": smallest}
    return Neurons.from_mask(mask, forget.layers, **info)


def _smallest(units: Sequence[int], q: float, permutations: int, pooled: int) -> float:
    """The smallest p-value; a neuron's own is no smaller than one in all the ways to label so few units."""
    if pooled:
        return 1 / (1 + permutations * pooled)
    if (ways := comb(sum(units), units[0])) * q < 1:
        raise InputError(
            f"{units[0]} of forget and {units[1]} of retain can be relabelled in {ways} ways only, none of which "
            f"gives a p-value under {q}: take more, or null='pooled'"
        )
    return max(1 / (1 + permutations), 1 / ways)


@checks_kinds
def permutation_p(
    forget: Moments,
    retain: Moments,
    *,
    effect: Effect = zero_ablation,
    subjects: tuple[Corpus, Corpus] | None = None,
    null: Null = "own",
    side: Side = "larger",
    permutations: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Float[Tensor, "layer neuron"]:
    """Return each neuron's p-value: how often random labels separate the examples at least as well.

    `side="larger"` asks whether the effect is larger on forget, "both" whether it differs. Memory beyond the
    effects themselves: a few times one layer's `(examples + permutations) x neurons`; pooled, all layers'
    `permutations x neurons` in fp32 (200 for 24 layers of 5504: 106 MB). Raises InputError for recordings of
    different models, without a per-example table, of one example only, or NaN.
    """
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, found {permutations}")
    pair = effects(forget, retain, effect, subjects)
    labels = relabelings(len(pair[0]), len(pair[1]), permutations, seed)
    layers, found, counts = pair[0].shape[1], [], []
    for i in tqdm(range(layers), desc="permutation null", disable=not progress):
        z = _statistics(torch.cat([x[:, i] for x in pair]), labels)
        z = z.abs() if side == "both" else z
        found.append(z[0])
        if null == "own":
            counts.append((z[1:] >= z[0] - TIE).sum(0))
        else:
            counts.append(z[1:].flatten().sort().values)
    if null == "own":
        return (1 + torch.stack(counts).double()) / (1 + permutations)
    observed = torch.stack(found)
    total = permutations * observed.numel()
    below = sum(torch.searchsorted(ranked, observed - TIE) for ranked in counts)
    return (1 + total - below).double() / (1 + total)  # type: ignore[union-attr]


def benjamini_hochberg(p: Float[Tensor, "layer neuron"], q: float) -> Bool[Tensor, "layer neuron"]:
    """Return the i smallest of m p-values, i the last with `p_(i) <= q i / m`: false-discovery rate `q`."""
    ranked = p.flatten().sort().values
    passing = (ranked <= q * torch.arange(1, len(ranked) + 1, dtype=p.dtype) / len(ranked)).nonzero()
    return p <= ranked[passing[-1, 0]] if len(passing) else torch.zeros_like(p, dtype=torch.bool)


def relabelings(forget: int, retain: int, permutations: int, seed: int) -> Float[Tensor, "relabeling example"]:
    """Return weights of the difference of means: the true labels (forget first), then random ones."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([1 / forget] * forget + [-1 / retain] * retain)
    orders = [torch.arange(forget + retain)]
    orders += [torch.randperm(forget + retain, generator=generator) for _ in range(permutations)]
    return weights[torch.stack(orders)]


def _statistics(x: Float[Tensor, "example neuron"], labels: Tensor) -> Float[Tensor, "relabeling neuron"]:
    """Welch's t under each labeling, as `t / sqrt(1 + t^2 / (N - 2))`: ranks alike and is finite; 0 for a constant.

    Of equally large corpora that ranks as the difference of means over its standard deviation over all labelings does.
    """
    total, forget = len(x), int((labels[0] > 0).sum())
    retain = total - forget
    centred = x.double() - x.double().mean(0)
    deviation = centred.var(0).sqrt()
    scaled = torch.where(deviation > 0, centred / deviation.clamp_min(torch.finfo(torch.float64).tiny), 0.0).float()
    chosen = (labels > 0).float() / forget
    mean, square = chosen @ scaled, chosen @ scaled.square()
    # The values sum to 0, their squares to N - 1: what is not in forget is in retain.
    gap, other = mean * (total / retain), mean * (forget / retain)
    spread = (square - mean.square()).clamp_min(0) / (forget - 1)
    spread += ((scaled.square().sum(0) - forget * square) / retain - other.square()).clamp_min(0) / (retain - 1)
    size = (gap.square() + max(total - 2, 1) * spread).sqrt()
    return torch.where(size > 0, gap / size.clamp_min(torch.finfo(torch.float32).tiny), 0.0) * max(total - 2, 1) ** 0.5
