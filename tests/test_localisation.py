"""Judging a localisation, against loops over neurons and models measured by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, spearmanr
from torch import Tensor

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import knockout, localisation, nll
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.recording import write_norms
from neuronforget.results.intervals import beyond_draws, of_auc
from neuronforget.scores import Scores
from neuronforget.scores.experts import auroc as area_under_roc


def scored(lm_or_shape: Any, seed: int = 0) -> Scores:
    shape = lm_or_shape if isinstance(lm_or_shape, tuple) else lm_or_shape.shape
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Scores(values, "noise", "positive: noise", tuple(range(shape[0])))


def truth_of(scores: Scores, k: int = 6, seed: int = 1) -> Neurons:
    """True neurons that a noisy copy of the scores points to."""
    noisy = scores.values + 0.5 * scored(tuple(scores.values.shape), seed).values
    return nf.select.top(Scores(noisy, "noisy", "", scores.layers), k)


def test_recall_is_the_share_of_true_neurons_in_the_top_and_chance_is_a_random_top() -> None:
    scores = scored((2, 20))
    truth = truth_of(scores)
    rows = localisation.recall_curve(scores, truth, [1, 6, 0.5, 40])
    assert [row["k"] for row in rows] == [1, 6, 20, 40] and rows[-1]["recall"] == 1
    for row in rows:
        found = nf.select.top(scores, row["k"])
        assert row["recall"] == pytest.approx(found.recall(truth))
        assert row["precision"] == pytest.approx(len(found & truth) / row["k"]) and row["chance"] == row["k"] / 40
        inside = hypergeom(40, 6, row["k"]).cdf(row["high"] * 6) - hypergeom(40, 6, row["k"]).cdf(row["low"] * 6 - 1)
        assert inside >= 0.95
    assert [row["k"] for row in localisation.recall_curve(scores, truth)] == [1, 2, 5, 10, 20, 40]


def test_auroc_counts_pairs_of_a_true_neuron_and_another() -> None:
    scores = scored((2, 20))
    truth = truth_of(scores)
    mask = truth.mask()
    wins = [float(t > o) for t in scores.values[mask] for o in scores.values[~mask]]
    value, low, high = localisation.auroc(scores, truth)
    assert value == pytest.approx(np.mean(wins)) and 0 <= low < value < high <= 1


def test_rank_correlation_is_scipys_and_its_interval_covers_what_repeated_samples_give() -> None:
    scores, exact = scored((2, 100)), scored((2, 100))
    exact = Scores(exact.values + 0.7 * scored((2, 100), 5).values, "exact", "", exact.layers)
    value, low, high = localisation.spearman(scores, exact)
    assert value == pytest.approx(spearmanr(scores.values.flatten(), exact.values.flatten()).statistic)
    draw, resampled = np.random.default_rng(0), []
    for _ in range(300):
        index = draw.integers(200, size=200)
        resampled.append(spearmanr(scores.values.flatten()[index], exact.values.flatten()[index]).statistic)
    assert high - low == pytest.approx(np.subtract(*np.quantile(resampled, [0.975, 0.025])), rel=0.35)
    assert localisation.spearman(scores, scores)[0] == pytest.approx(1)


def test_captured_effect_is_a_share_of_the_best_k() -> None:
    scores, exact = scored((2, 20)), scored((2, 20), 3)
    effects = exact.values.flatten()
    for row in localisation.captured_effect(scores, exact, [1, 5, 40]):
        order = scores.values.flatten().argsort(descending=True)[: row["k"]]
        best = sum(sorted(effects.tolist(), reverse=True)[: row["k"]])
        assert row["effect"] == pytest.approx(float(effects[order].sum())) and row["best"] == pytest.approx(best)
        assert best <= 0 or row["share"] == pytest.approx(row["effect"] / best)
    five = localisation.captured_effect(scores, exact, [5])[0]
    generator = np.random.default_rng(0)
    shares = [generator.choice(effects.numpy(), 5, replace=False).sum() / five["best"] for _ in range(20000)]
    assert five["chance"] == pytest.approx(np.mean(shares), abs=0.01)
    assert (five["high"] - five["low"]) / 2 == pytest.approx(1.96 * np.std(shares), rel=0.03)
    assert all(r["share"] == pytest.approx(1) for r in localisation.captured_effect(exact, exact, [1, 5]))


@pytest.mark.parametrize("family_bias", [False, True])
def test_the_weight_change_of_an_edit_is_that_of_each_neurons_own_weights(
    lm: LM, corpus: Corpus, family_bias: bool
) -> None:
    if family_bias:
        from families import build

        lm = LM(build("llama", vocab_size=len(lm.tokenizer)), lm.tokenizer)
    edit = nf.erase.finetune(lm, corpus, loss=nf.losses.ga, steps=2, lr=1e-2, progress=False)
    found = localisation.weight_change(lm, edit)
    before = {n: p.detach().clone() for n, p in lm.parameters.items()}
    with edit.on(lm):
        moved = {n: (p.detach() - before[n]).double() for n, p in lm.parameters.items()}
    for row, j in ((0, 3), (1, 39)):
        mlp = f"model.layers.{row}.mlp"
        parts = [moved[f"{mlp}.{kind}_proj.weight"][j] for kind in ("gate", "up")]
        parts += [moved[f"{mlp}.down_proj.weight"][:, j]]
        parts += [moved[f"{mlp}.{kind}_proj.bias"][j : j + 1] for kind in ("gate", "up")] if family_bias else []
        assert float(found[row, j]) == pytest.approx(float(torch.cat(parts).norm()), rel=1e-5)


def test_an_edit_of_the_true_neurons_alone_is_precise_and_one_of_others_is_not(lm: LM) -> None:
    truth = nf.select.per_layer(scored(lm), 5)
    assert localisation.edit_precision(lm, nf.erase.ablate(lm, truth), truth)[::2] == (1, 1)
    others = nf.erase.ablate(lm, truth.random_like(0))
    assert localisation.edit_precision(lm, others, truth)[0] < 0.5


@pytest.mark.parametrize("kind", ["knock_out", "keep_only"])
def test_curves_measure_the_model_with_the_top_ablated_or_kept(lm: LM, corpus: Corpus, kind: Any) -> None:
    scores = scored(lm)
    before = {n: p.detach().clone() for n, p in lm.parameters.items()}

    def loss(model: LM) -> np.ndarray:
        return measure(model, corpus, [nll])["nll"]

    curve = knockout.ablation_curve(lm, scores, loss, kind=kind, ks=[8, 40, 80], controls=2, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in lm.parameters.items())
    top = nf.select.top(scores, 8)
    gone = top if kind == "knock_out" else nf.select.top(scores, 80) - top
    untouched, everything = loss(lm), nf.select.top(scores, 80)
    with nf.erase.ablate(lm, gone).on(lm):
        np.testing.assert_allclose(curve.values[1], loss(lm))
    with nf.erase.ablate(lm, everything).on(lm):
        ends = [untouched, loss(lm)] if kind == "knock_out" else [loss(lm), untouched]
    for i, end in ((0, ends[0]), (-1, ends[1])):
        np.testing.assert_allclose(curve.values[i], end)
        np.testing.assert_allclose(curve.control[:, i], np.stack([end, end]))
    assert curve.ks == (0, 8, 40, 80) and len(curve.rows) == 8
    gap = (curve.values - curve.control.mean(0)).mean(1)
    by_hand = sum((gap[i] + gap[i + 1]) / 2 * w for i, w in enumerate((8, 32, 40))) / 80
    value, low, high = curve.area
    assert value == pytest.approx(by_hand) and low <= value <= high
    share = np.array(curve.ks) / 80
    each = [np.trapezoid(curve.values - control, share, axis=0) for control in curve.control]
    assert (value, low, high) == pytest.approx(beyond_draws(np.array(each)))


def test_one_more_random_draw_is_seldom_told_from_the_others_and_a_selection_is() -> None:
    draw, units = np.random.default_rng(0), 60
    sets = 0.3 * draw.normal(size=(400, 6, 1)) + draw.normal(size=(400, 1, units)) + draw.normal(size=(400, 6, units))
    found = np.array([beyond_draws(one[0] - one[1:]) for one in sets])
    assert 0.01 < np.mean((found[:, 1] > 0) | (found[:, 2] < 0)) < 0.08
    assert np.mean([beyond_draws(one[0] + 2 - one[1:])[1] > 0 for one in sets]) > 0.9
    gaps = sets[0, 0] - sets[0, 1:]
    means, half = gaps.mean(1), (found[0, 2] - found[0, 1]) / 2
    assert half == pytest.approx(2.7764451 * np.sqrt(np.var(gaps.mean(0), ddof=1) / 60 + np.var(means, ddof=1) * 1.2))
    assert np.isnan(beyond_draws(gaps[:1])[1:]).all() and np.isnan(beyond_draws(gaps * np.nan)).all()
    gaps[0, 3] = np.nan
    assert beyond_draws(gaps) == beyond_draws(np.delete(gaps, 3, 1))


def test_the_interval_of_an_auroc_holds_it_where_a_score_finds_some_true_neurons_and_not_the_others() -> None:
    draw, held = np.random.default_rng(0), {"auroc": 0, "DeLong": 0, "shift alone": 0}
    for _ in range(60):
        values = torch.tensor(draw.normal(size=(1, 400)))
        mask = torch.zeros((1, 400), dtype=torch.bool)
        mask[0, :20] = True
        values[0, :20] += 9 * torch.tensor(draw.random(20) < 0.9)
        value, low, high = localisation.auroc(Scores(values, "x", "", (0,)), nf.Neurons.from_mask(mask, (0,)))
        error = float(area_under_roc(values[mask], values[~mask])[1])
        shift = of_auc(value, 20, 380)
        assert low <= shift[0] <= value <= shift[1] <= high
        for name, ends in (
            ("auroc", (low, high)), ("DeLong", (value - 1.96 * error, value + 1.96 * error)), ("shift alone", shift)
        ):  # fmt: skip
            held[name] += ends[0] <= 0.95 <= ends[1]
    assert held["auroc"] > 0.9 * 60 > held["DeLong"], held


def test_examples_without_a_value_are_counted_not_hidden(lm: LM) -> None:
    def broken(_: LM) -> np.ndarray:
        return np.array([1.0, np.nan, 3.0])

    curve = knockout.ablation_curve(lm, scored(lm), broken, ks=[8], progress=False)
    assert all((row["value"], row["n"], row["nan"]) == (2.0, 3, 1) for row in curve.rows)
    rows = knockout.selected_minus_random(lm, nf.select.top(scored(lm), 8), broken, progress=False)
    assert all(
        (row["selected"], row["random"], row["value"], row["n"], row["nan"]) == (2.0, 2.0, 0.0, 3, 1) for row in rows
    )


def test_levels_and_their_difference_are_means_over_the_examples_that_have_all_of_them(lm: LM) -> None:
    """One example has no value with the selection, another with one control of two: both are left out everywhere."""
    table = iter([[5.0, np.nan, 7.0, 30.0], *[[1.0, 2.0, 2.0, np.nan], [2.0, 90.0, 4.0, 6.0]] * 2])
    rows = knockout.selected_minus_random(
        lm, nf.select.top(scored(lm), 8), lambda _: np.array(next(table)), controls=2, progress=False
    )
    for row in rows:
        assert (row["n"], row["nan"]) == (4, 2)
        assert row["selected"] == (5 + 7) / 2 and row["random"] == (1 + 2 + 2 + 4) / 4
        assert row["value"] == row["selected"] - row["random"] and row["low"] < row["value"] < row["high"]
    none = knockout.selected_minus_random(
        lm, nf.select.top(scored(lm), 8), lambda _: np.full(3, np.nan), controls=2, progress=False
    )
    for row in none:
        assert row["nan"] == row["n"] == 3
        assert all(math.isnan(row[key]) for key in ("selected", "random", "value", "low", "high"))


def test_a_selection_is_compared_with_random_ones_of_equal_count_layers_and_norms(lm: LM, corpus: Corpus) -> None:
    neurons, seen = nf.select.top(scored(lm), 10), []

    def off(model: LM) -> np.ndarray:
        """Which neurons are off, as a measure: the sum of their numbers, by example."""
        gone = torch.stack([lm.parameters[s.write.name].detach().norm(dim=0) == 0 for s in model.sites])
        seen.append(gone)
        return np.array([float(gone.sum()), float(gone[0].sum())])

    rows = knockout.selected_minus_random(lm, neurons, off, norms=write_norms(lm), controls=2, progress=False)
    assert [row["control"] for row in rows] == ["count", "layer", "norm"] and len(seen) == 7
    selected, counts, layers, norms = seen[0], seen[1:3], seen[3:5], seen[5:7]
    assert torch.equal(selected, neurons.mask())
    assert all(int(m.sum()) == 10 and not (m & selected).any() for m in (*counts, *layers, *norms))
    assert all(torch.equal(m.sum(1), selected.sum(1)) for m in (*layers, *norms))
    assert not torch.equal(*counts) and not torch.equal(*layers)
    assert rows[1]["value"] == 0 and rows[0]["n"] == 2 and rows[0]["controls"] == 2


@pytest.mark.usefixtures("untyped")
def test_rankings_that_do_not_fit_are_refused_before_any_work(lm: LM) -> None:
    scores, other = scored(lm), scored((3, 7))
    truth, none = truth_of(scores), truth_of(scores) - truth_of(scores)

    def never(_: LM) -> np.ndarray:
        raise AssertionError("measured before the check")

    flat = Scores(torch.zeros(lm.shape, dtype=torch.float64), "flat", "", (0, 1))
    for call, message in (
        (lambda: localisation.recall_curve(scores, truth, [81]), "cannot select"),
        (lambda: localisation.recall_curve(scores, truth, []), "ks is empty"),
        (lambda: localisation.recall_curve(other, truth), "different models"),
        (lambda: localisation.auroc(scores, none), "some must be"),
        (lambda: localisation.spearman(scores, other), "different models"),
        (lambda: localisation.spearman(scores, flat), "one and the same"),
        (lambda: localisation.captured_effect(scores, flat), "nothing to capture"),
        (lambda: localisation.edit_precision(lm, nf.erase.ablate(lm, truth), none), "do not fit"),
        (lambda: knockout.ablation_curve(lm, other, never), "another model"),
        (lambda: knockout.ablation_curve(lm, scores, never, ks=[500]), "cannot select"),
        (lambda: knockout.ablation_curve(lm, scores, never, kind="up"), "'knock_out' or 'keep_only'"),
        (lambda: knockout.ablation_curve(lm, scores, never, controls=0), "controls"),
        (lambda: knockout.selected_minus_random(lm, none, never), "empty"),
        (lambda: knockout.selected_minus_random(lm, truth, never, controls=0), "controls"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_intervals_are_finite_at_the_ends() -> None:
    scores = scored((2, 20))
    truth = nf.select.top(scores, 6)
    value, low, high = localisation.auroc(scores, truth)
    assert (value, high) == (1, 1) and 0.5 < low < 0.9  # six true neurons and 34 others do not say that it is 1
    assert np.isnan(localisation.auroc(scores, nf.select.top(scores, 1))[1:]).all()  # one says nothing
    assert all(math.isfinite(x) for x in localisation.spearman(scores, scores))
    worst: Tensor = -scores.values
    assert localisation.auroc(Scores(worst, "worst", "", scores.layers), truth)[0] == 0


def test_a_score_whose_low_end_means_forget_ranks_by_that_end() -> None:
    high = scored((2, 20))
    low = Scores(-high.values, "turned", "", high.layers, end="low")
    truth, exact = truth_of(high), scored((2, 20), 3)
    assert localisation.recall_curve(low, truth) == localisation.recall_curve(high, truth)
    assert localisation.auroc(low, truth) == localisation.auroc(high, truth)
    assert localisation.spearman(low, exact) == localisation.spearman(high, exact)
    assert localisation.captured_effect(low, exact) == localisation.captured_effect(high, exact)
