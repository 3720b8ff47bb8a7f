"""The retain budget against every subset of a few neurons."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronforget.errors import InputError
from neuronforget.scores import Scores
from neuronforget.select import retain_budget
from neuronforget.select.budget import knapsack

SIGN = "positive: ablating it is predicted to raise the loss"
items = st.lists(st.tuples(st.integers(-4, 9), st.integers(-4, 9)), min_size=1, max_size=8)


def scored(values: list[float], sign: str = SIGN, **info: object) -> Scores:
    return Scores(torch.tensor([values], dtype=torch.float64), "test", sign, (0,), None, dict(info))


def best_subset(pairs: list[tuple[float, float]], budget: float, most: int) -> float:
    """The largest value of any subset of items of positive value within budget and count."""
    useful = [(v, c) for v, c in pairs if v > 0]
    sets = (s for n in range(min(most, len(useful)) + 1) for s in itertools.combinations(useful, n))
    return max(sum(v for v, _ in s) for s in sets if sum(c for _, c in s) <= budget)


@settings(max_examples=120, deadline=None)
@given(items, st.integers(0, 12), st.integers(1, 8))
def test_the_set_is_within_budget_and_the_best_lies_between_it_and_the_bound(
    pairs: list[tuple[int, int]], budget: int, most: int
) -> None:
    values, costs = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    mask, bound = knapsack(values, costs, budget, most)
    best, found = best_subset(pairs, budget, most), float(values[mask].sum())
    assert float(costs[mask].sum()) <= budget and int(mask.sum()) <= most and (values[mask] > 0).all()
    assert found <= best + 1e-9 and best <= bound + 1e-9
    if most >= len(pairs) and min(costs) >= 0:
        assert found >= best / 2 - 1e-9  # greedy, or the best single item: the classical guarantee


def test_with_many_small_items_the_gap_is_small_and_an_ample_budget_is_solved_exactly() -> None:
    draw = torch.Generator().manual_seed(0)
    values, costs = (torch.rand(4000, generator=draw, dtype=torch.float64) for _ in range(2))
    mask, bound = knapsack(values, costs, 50.0, 4000)
    assert 0 <= 1 - float(values[mask].sum()) / bound < 1e-3
    mask, bound = knapsack(values, costs, math.fsum(costs.tolist()) + 1, 4000)
    assert mask.all() and bound == pytest.approx(float(values.sum()))


def test_on_tiny_cases_the_mean_shortfall_is_known_and_the_reported_gap_never_understates_it() -> None:
    draw, short = torch.Generator().manual_seed(0), []
    for _ in range(60):
        values, costs = (torch.rand(9, generator=draw, dtype=torch.float64) for _ in range(2))
        mask, bound = knapsack(values, costs, 1.5, 9)
        best = best_subset(list(zip(values.tolist(), costs.tolist(), strict=True)), 1.5, 9)
        found = float(values[mask].sum())
        assert 1 - found / bound >= 1 - found / best - 1e-12
        short.append(1 - found / best)
    assert sum(short) / len(short) < 0.03


def test_neurons_that_help_retain_are_free_and_pay_for_others_only_on_request() -> None:
    forget, retain = scored([5.0, 1.0, 4.0, -2.0]), scored([3.0, -3.0, 0.5, -9.0])
    plain = retain_budget(forget, retain, 0.5)
    assert (
        plain.members == {(0, 1), (0, 2)}
        and plain.info["effect"] == 5
        and (plain.info["damage"], plain.info["retain change"]) == (0.5, -2.5)
    )
    assert retain_budget(forget, retain, 0.5, credit=True).members == {(0, 0), (0, 1), (0, 2)}
    assert retain_budget(forget, retain, 0.5, k=1).members == {(0, 2)}


@pytest.mark.usefixtures("untyped")
def test_scores_that_predict_no_loss_and_empty_answers_are_refused() -> None:
    forget, retain = scored([5.0, 1.0]), scored([3.0, 2.0])
    for call, message in (
        (lambda: retain_budget(forget, retain, 0.5), "raise epsilon"),
        (lambda: retain_budget(forget, retain, -0.5), "0 or more; found"),
        (lambda: retain_budget(forget, retain, math.nan), "epsilon must be a number; found nan"),
        (lambda: retain_budget(forget, retain, 9.0, k=3), "cannot select"),
        (lambda: retain_budget(forget, scored([1.0]), 9.0), "different models"),
        (lambda: retain_budget(scored([5.0, 1.0], "large: more"), retain, 9.0), "predicts no rise"),
        (lambda: retain_budget(scored([5.0, 1.0], "positive: more active"), retain, 9.0), "predicts no rise"),
        (lambda: retain_budget(scored([5.0, 1.0], retain={"corpus": "r"}), retain, 9.0), "contrast"),
    ):
        with pytest.raises(InputError, match=message):
            call()
