"""Random sets as a yardstick: where effects add, the score that says what they are agrees entirely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import nll
from neuronforget.metrics.subsets import subset_effects
from neuronforget.models import LM
from neuronforget.scores import Scores

ACTS, DIRECTION = np.random.default_rng(0).normal(size=(3, 2, 40)), np.random.default_rng(1).normal(size=16)


def written(model: LM) -> np.ndarray:
    """What the MLPs write along a direction, for three examples of fixed activations: linear, so that effects add."""
    weights = np.stack([model.parameters[s.write.name].detach().double().numpy().T for s in model.sites])
    return np.einsum("nlf,lfd,d->n", ACTS, weights, DIRECTION)


def own(lm: LM) -> Scores:
    """Minus each neuron's own part of that: what its ablation changes."""
    weights = torch.stack([lm.parameters[s.write.name].detach().double().T for s in lm.sites])
    values = -torch.einsum("lf,lfd,d->lf", torch.tensor(ACTS).mean(0), weights, torch.tensor(DIRECTION))
    return Scores(values, "own", "positive: ablating it raises the measure", (0, 1))


def test_where_effects_add_the_true_score_agrees_and_a_random_one_does_not(lm: LM) -> None:
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    found = subset_effects(lm, written, size=0.2, n=60, progress=False)
    assert all(torch.equal(before[name], p) for name, p in lm.parameters.items())
    true = own(lm)
    np.testing.assert_allclose(found.predicted(true), found.effects, atol=1e-6)
    assert found.values.shape == (60, 3) and all(len(s) == 16 for s in found.subsets)
    assert found.agreement(true)[0] == pytest.approx(1) and found.agreement(true)[1] > 0.99
    turned = replace(true, values=-true.values)
    assert found.agreement(turned)[0] == pytest.approx(-1)
    assert found.agreement(replace(turned, end="low"))[0] == pytest.approx(1)
    draws = [torch.randn((2, 40), generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(20)]
    random = np.array([found.agreement(replace(true, values=values)) for values in draws])
    assert abs(random[:, 0].mean()) < 0.1 and np.mean((random[:, 1] <= 0) & (random[:, 2] >= 0)) >= 0.8


def test_effects_are_the_loss_changes_of_joint_ablation(lm: LM, corpus: Corpus) -> None:
    def loss(model: LM) -> np.ndarray:
        return measure(model, corpus, [nll])["nll"]

    found = subset_effects(lm, loss, size=8, n=6, progress=False)
    for subset, effect in zip(found.subsets, found.effects, strict=True):
        with nf.erase.ablate(lm, subset).on(lm):
            off = loss(lm).mean()
        assert effect == pytest.approx(off - loss(lm).mean())
    score = nf.attribute(lm, corpus, progress=False)
    sums = [sum(float(score.values[layer, j]) for layer, j in subset) for subset in found.subsets]
    assert found.agreement(score)[0] == pytest.approx(spearmanr(sums, found.effects).statistic)


def test_sets_are_those_of_the_seed(lm: LM) -> None:
    one, same, other = (subset_effects(lm, written, size=5, n=4, seed=s, progress=False) for s in (1, 1, 2))
    assert one.subsets == same.subsets and np.array_equal(one.values, same.values)
    assert not set(one.subsets) & set(other.subsets) and len(set(one.subsets)) == 4
    assert len({layer for subset in one.subsets for layer, _ in subset}) == 2


def test_examples_without_a_value_leave_the_effect_to_the_others(lm: LM) -> None:
    found = subset_effects(lm, lambda _: np.array([1.0, np.nan]), n=4, progress=False)
    assert found.effects.tolist() == [0, 0, 0, 0]
    with pytest.raises(InputError, match="one and the same"):
        found.agreement(own(lm))


@pytest.mark.usefixtures("untyped")
def test_sizes_are_checked_before_any_work(lm: LM) -> None:
    def never(_: LM) -> np.ndarray:
        raise AssertionError("measured before the check")

    for settings, message in (
        ({"n": 3}, "four or more"),
        ({"size": 81}, "cannot select"),
        ({"size": 0}, "cannot select"),
        ({"size": 80}, "one and the same"),
    ):
        with pytest.raises(InputError, match=message):
            subset_effects(lm, never, **settings)  # type: ignore[arg-type]
    found = subset_effects(lm, written, n=4, progress=False)
    with pytest.raises(InputError, match="different models"):
        found.agreement(Scores(torch.ones(3, 7), "x", "", (0, 1, 2)))


def test_measures_that_give_no_rank_are_refused(lm: LM) -> None:
    scores = nf.Scores(torch.rand(lm.shape, dtype=torch.float64), "any", "", tuple(s.layer for s in lm.sites))
    with pytest.raises(InputError, match="one number per example"):
        subset_effects(lm, lambda _: np.float64(1.0), n=4, progress=False)
    with pytest.raises(InputError, match="of 4 subsets is NaN"):
        subset_effects(lm, lambda _: np.full(3, np.nan), n=4, progress=False).agreement(scores)
    for size in (1.5, True):
        with pytest.raises(InputError, match=r"cannot select|size must be a number"):
            subset_effects(lm, lambda _: np.zeros(3), n=4, size=size, progress=False)
