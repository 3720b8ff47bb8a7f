"""Does a score add up? Random sets of neurons are ablated, and each joint effect compared with the sum of scores.

Single ablations do not add, so agreement with `exact` says little about sets. Here the yardstick is joint: the rank
correlation, over random sets, of what a set did with the sum of the scores of its neurons (the linear datamodeling
score of Park et al. 2023, arXiv:2303.14186, with neurons in place of training examples). The sets are measured once
and serve any number of scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from neuronforget import select
from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.metrics.knockout import Measure, anywhere_in, measured, seed_of
from neuronforget.metrics.localisation import Interval, layers_of, rank_correlation
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores
from neuronforget.scores.scores import check_same


@dataclass(frozen=True, eq=False)
class SubsetEffects:
    """What ablating each of `subsets` did to a measure: `values` [subset, example], ablated minus untouched."""

    subsets: tuple[Neurons, ...] = field(repr=False)
    values: Float[np.ndarray, "subset example"] = field(repr=False)
    seed: int = 0

    @property
    def effects(self) -> Float[np.ndarray, "subset"]:
        """Each subset's effect, mean over examples that have a value."""
        return np.nanmean(self.values, 1)

    def predicted(self, scores: Scores) -> Float[np.ndarray, "subset"]:
        """Return the sum of the scores of each subset's neurons. Raises InputError for scores of another model."""
        masks = [subset.mask() for subset in self.subsets]
        check_same((scores.layers, scores.values), (self.subsets[0].layers, masks[0]))
        return np.array([float(scores.ranked[mask].sum()) for mask in masks])

    def agreement(self, scores: Scores) -> Interval:
        """Return (Spearman's correlation, low, high) of predicted and measured effects; 95% over the draw of sets.

        1: the score ranks sets as ablating them does, 0: no better than chance, negative: the other way round.
        """
        return rank_correlation(self.predicted(scores), self.effects, "subsets")


@checks_kinds
def subset_effects(
    lm: LM,
    measure: Measure,
    *,
    size: int | float = 0.1,
    n: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> SubsetEffects:
    """Ablate `n` random sets of `size` neurons (below 1: that share), drawn over the whole model, and measure each.

    `measure` gives one number per example, higher where the forget corpus suffers (`measure(lm, forget, [nll])`), as
    a score's high end has to do with it. The model is left as it was. Raises InputError for fewer than four sets, for
    an impossible size, and for sets of all neurons, which could not differ.
    """
    layers, total = layers_of(lm), lm.shape[0] * lm.shape[1]
    if n < 4:
        raise InputError(f"n counts random sets, whose ranks are correlated: four or more are needed, found {n}")
    count = select.how_many(size, total)
    if count == total:
        raise InputError(f"sets of all {total} neurons are one and the same: give a smaller size than {size}")
    nowhere = torch.zeros(lm.shape, dtype=torch.bool)
    subsets = tuple(anywhere_in(nowhere, layers, count, seed_of(seed, i)) for i in range(n))
    clean = measured(lm, subsets[0] - subsets[0], measure)
    if clean.ndim != 1:
        raise InputError(f"measure gives one number per example, found an array of shape {clean.shape}")
    values = [measured(lm, s, measure) - clean for s in tqdm(subsets, desc="random sets", disable=not progress)]
    return SubsetEffects(subsets, np.stack(values), seed)
