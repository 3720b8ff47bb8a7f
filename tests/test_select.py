"""Selection rules against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronforget import select
from neuronforget.errors import InputError
from neuronforget.scores import Scores

values = st.lists(st.lists(st.integers(-4, 4), min_size=6, max_size=6), min_size=1, max_size=3)


def scored(rows: list[list[int]]) -> Scores:
    return Scores(torch.tensor(rows, dtype=torch.float64), "test", "", tuple(range(10, 10 + len(rows))))


@settings(max_examples=80, deadline=None)
@given(values, st.integers(1, 6), st.sampled_from(["value", "magnitude"]))
def test_top_and_per_layer_take_the_highest_and_the_first_of_equals(rows: list[list[int]], k: int, by: str) -> None:
    size = abs if by == "magnitude" else float
    ranked = sorted(
        ((-size(x), layer, j) for layer, row in enumerate(rows, 10) for j, x in enumerate(row)),  # type: ignore[operator]
    )
    assert select.top(scored(rows), k, by=by).members == {(layer, j) for _, layer, j in ranked[:k]}  # type: ignore[arg-type]
    for layer in range(10, 10 + len(rows)):
        own = [(layer, j) for _, where, j in ranked if where == layer][:k]
        found = select.per_layer(scored(rows), k, by=by)  # type: ignore[arg-type]
        assert {neuron for neuron in found if neuron[0] == layer} == set(own)


@settings(max_examples=80, deadline=None)
@given(values, st.sampled_from([0.2, 0.5, 1.0]))
def test_threshold_is_a_share_of_the_highest_score(rows: list[list[int]], t: float) -> None:
    high = max(map(max, rows))
    if high <= 0:
        with pytest.raises(InputError, match="no neuron has a positive"):
            select.threshold(scored(rows), t)
        return
    expected = {(layer, j) for layer, row in enumerate(rows, 10) for j, x in enumerate(row) if x >= t * high}
    assert select.threshold(scored(rows), t).members == expected


def test_a_share_is_rounded_to_a_number_of_neurons() -> None:
    rows = scored([list(range(6)), list(range(6, 12))])
    assert len(select.top(rows, 0.25)) == 3 and len(select.per_layer(rows, 0.5)) == 6


def test_a_percentile_takes_what_reaches_it() -> None:
    rows = scored([[1, 2, 3, 4, 5, 6], [-9, 0, 0, 0, 0, 0]])
    cut = np.percentile([1, 2, 3, 4, 5, 6, -9, 0, 0, 0, 0, 0], 75)
    assert select.percentile(rows, 75).members == {(10, j) for j in range(6) if j + 1 >= cut}
    assert (11, 0) in select.percentile(rows, 95, by="magnitude")
    assert select.percentile(rows, 75).info == {"score": "test", "rule": "percentile", "q": 75, "by": "value"}
    half = replace(rows, values=rows.values.bfloat16())
    assert select.percentile(half, 75).members == select.percentile(rows, 75).members
    for q in (0, 101):
        with pytest.raises(InputError, match="percentile lies in"):
            select.percentile(rows, q)


def test_a_ratio_takes_what_forget_needs_ten_times_as_much() -> None:
    forget, retain = scored([[21, 20, 5, 0, 0, 1]]), scored([[2, 2, 0, 0, 1, 1]])
    assert select.ratio(forget, retain).members == {(10, 0), (10, 2)}
    assert select.ratio(forget, retain, alpha=0.5).members == {(10, 0), (10, 1), (10, 2), (10, 5)}
    contrast = replace(forget, info={"retain": {"corpus": "r"}})
    for pair, alpha, message in (
        ((forget, retain), 0.0, "alpha is"),
        ((contrast, retain), 1.0, "of one corpus"),
        ((scored([[-1, 0, 0, 0, 0, 0]]), retain), 1.0, "unsigned"),
        ((scored([[1] * 6]), scored([[1] * 6])), 1.0, "lower alpha"),
        ((replace(forget, name="fisher"), retain), 1.0, "one score on two corpora; found 'fisher' and 'test'"),
        ((forget, scored([[1] * 6, [1] * 6])), 1.0, "different models"),
    ):
        with pytest.raises(InputError, match=message):
            select.ratio(*pair, alpha=alpha)


def test_difference_leaves_out_what_retain_needs() -> None:
    forget, retain = scored([[9, 8, 7, 0, 0, 0]]), scored([[0, 9, 0, 8, 0, 0]])
    assert select.difference(forget, retain, 3, 2).members == {(10, 0), (10, 2)}


def test_a_selection_says_how_it_was_made() -> None:
    assert select.per_layer(scored([[1, 2, 3, 4, 5, 6]]), 2).info == {
        "score": "test",
        "rule": "per_layer",
        "k": 2,
        "by": "value",
    }


@pytest.mark.usefixtures("untyped")
def test_one_is_a_neuron_and_one_point_nought_is_all() -> None:
    scores = scored([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]])
    assert {k: len(select.per_layer(scores, k)) for k in (1, 0.5, 2)} == {1: 2, 0.5: 6, 2: 4}
    for whole in (1.0, np.float32(1), torch.tensor(1.0)):
        assert len(select.per_layer(scores, whole)) == len(select.top(scores, whole)) == 12
    for one in (1, np.int64(1), np.array(1), torch.tensor(1)):
        assert len(select.top(scores, one)) == 1


@pytest.mark.parametrize("k", [0, -1, 7, 0.01])
def test_an_impossible_count_is_refused(k: float) -> None:
    with pytest.raises(InputError, match="cannot select"):
        select.per_layer(scored([[1, 2, 3, 4, 5, 6]]), k)
    with pytest.raises(InputError, match="cannot select"):
        select.top(scored([[1, 2, 3, 4, 5, 6]]), k)


@pytest.mark.usefixtures("untyped")
def test_unknown_rankings_and_thresholds_are_refused() -> None:
    rows = scored([[1, 2, 3, 4, 5, 6]])
    with pytest.raises(InputError, match="by must be 'value' or 'magnitude'; found 'size'"):
        select.top(rows, 2, by="size")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threshold"):
        select.threshold(rows, 1.5)


def test_a_score_whose_low_end_forgets_selects_from_that_end() -> None:
    values = torch.tensor([[3.0, -2.0, 0.5], [1.0, -4.0, 2.0]])
    high = Scores(values, "a", "positive forgets", (0, 1))
    low = Scores(-values, "b", "negative forgets", (0, 1), end="low")
    assert select.top(high, 2) == select.top(low, 2)
    assert select.per_layer(high, 1) == select.per_layer(low, 1) and select.threshold(high, 0.5) == select.threshold(
        low, 0.5
    )
