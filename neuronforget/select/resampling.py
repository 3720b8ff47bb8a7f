"""Stability: would other examples of the same corpora have selected the same neurons?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores
from neuronforget.select.examples import Effect, effects, zero_ablation


@dataclass(frozen=True, eq=False)
class Stability:
    """Jaccard index (shared over all selected) of pairs of selections, each pair from two halves of the examples.

    `jaccard` is the mean over pairs, `low` and `high` hold 95% of the pairs; `chance` is the mean of equally large
    random selections (as many of each layer). `frequency` is each neuron's share of the selections, of which there
    are `resamples`, two a pair.
    """

    jaccard: float
    low: float
    high: float
    chance: float
    frequency: Float[Tensor, "layer neuron"]
    layers: tuple[int, ...]
    resamples: int

    def __repr__(self) -> str:
        spread = f"{self.jaccard:.3f} [{self.low:.3f}, {self.high:.3f}], chance {self.chance:.3f}"
        return f"Stability(Jaccard {spread}; {self.resamples} resamples)"

    @checks_kinds
    def at_least(self, share: float) -> Neurons:
        """Return the neurons that at least `share` of the selections hold."""
        return Neurons.from_mask(self.frequency >= share, self.layers, rule="stability", share=share)


@checks_kinds
def stability(
    forget: Moments,
    retain: Moments,
    rule: Callable[[Scores], Neurons],
    *,
    effect: Effect = zero_ablation,
    subjects: tuple[Corpus, Corpus] | None = None,
    resamples: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> Stability:
    """Select by `rule` from either half of both corpora's examples, halved at random again and again, and compare.

    Halves share no example, so that noise is selected again by chance alone; bootstrap samples share the noise of their
    common examples, and of pure noise have six times chance in common. A half says less than the whole: of all examples
    the overlap would be larger (complementary pairs: Shah & Samworth 2013, doi:10.1111/j.1467-9868.2011.01034.x).

    `rule` is a selection of one argument, `functools.partial(nf.select.per_layer, k=0.05)`; it sees the mean effect
    on forget minus that on retain. Examples are drawn one by one, whoever they are about; with `subjects`, the two
    corpora, whole subjects are, each by the mean of its examples. `resamples` counts selections, two for each way to
    halve (an odd number is rounded up). Raises InputError for recordings of different models, without a per-example
    table, of one example (subject) only, of other corpora than `subjects`, or NaN.
    """
    if resamples < 2:
        raise InputError(f"stability compares selections: resamples must be 2 or more, found {resamples}")
    resamples += resamples % 2
    pair, generator = effects(forget, retain, effect, subjects), np.random.default_rng(seed)
    weights = [torch.from_numpy(_halves(len(x), resamples // 2, generator)) for x in pair]
    masks = []
    for row in tqdm(range(resamples), desc="stability", disable=not progress):
        f, r = (torch.tensordot(w[row], x, 1).double() for w, x in zip(weights, pair, strict=True))
        masks.append(rule(Scores(f - r, "resampled", "positive: larger on forget", forget.layers)).mask())
    found = torch.stack(masks)
    overlap = np.concatenate([pairwise_jaccard(two) for two in found.split(2)])
    low, high = np.quantile(overlap, [0.025, 0.975])
    chance = pairwise_jaccard(_random_like(found, generator))
    return Stability(float(overlap.mean()), float(low), float(high), float(chance.mean()), found.double().mean(0),
                     forget.layers, resamples)  # fmt: skip


def pairwise_jaccard(masks: Bool[Tensor, "selection layer neuron"]) -> np.ndarray:
    """Return the Jaccard index of every pair of selections; two empty ones are equal."""
    flat = masks.flatten(1).float()
    shared = flat @ flat.T
    sizes = shared.diagonal()
    union = sizes[:, None] + sizes[None] - shared
    index = torch.where(union > 0, shared / union.clamp_min(1), 1.0)
    return index[tuple(torch.triu_indices(len(flat), len(flat), 1))].double().numpy()


def _halves(examples: int, ways: int, generator: np.random.Generator) -> np.ndarray:
    """Weights of the mean over one half, then over the other, of each way to halve; fp32 [2 ways, example].

    Of an odd number one example is left out, another one in each way.
    """
    half = examples // 2
    weights = np.zeros((ways, 2, examples), dtype=np.float32)
    orders = generator.permuted(np.tile(np.arange(examples), (ways, 1)), axis=1)
    for side in range(2):
        np.put_along_axis(weights[:, side], orders[:, side * half : (side + 1) * half], 1 / half, 1)
    return weights.reshape(2 * ways, examples)


def _random_like(masks: Tensor, generator: np.random.Generator) -> Tensor:
    """Random selections with as many neurons of each layer as each of `masks`."""
    noise = torch.from_numpy(generator.random(tuple(masks.shape), dtype=np.float32))
    rank = noise.argsort(-1).argsort(-1)
    return rank < masks.sum(-1, keepdim=True)
