"""Ranking: p-values against scipy and enumeration, their adjustment against enumeration, ties told as ties."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.stats import permutation_test

import neuronforget as nf
from neuronforget.errors import InputError
from neuronforget.evaluation.ranking import adjusted_p, paired_p, ranked


def test_p_is_that_of_every_pattern_of_signs() -> None:
    values = np.array([0.3, -0.1, 0.4, 0.2, 0.0])
    patterns = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in itertools.product((1, -1), repeat=5)
    ]
    assert paired_p(values) == np.mean([x >= abs(values.sum()) - 1e-12 for x in patterns])
    assert paired_p(np.ones(8)) == 2 / 2**8 and paired_p(np.zeros(8)) == 1
    assert np.isnan(paired_p(np.array([1.0, np.nan])))


def test_many_differences_are_sampled_as_scipy_does() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0.25, 1, 60)
    found = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=9999, rng=1).pvalue
    assert paired_p(values) == pytest.approx(found, abs=0.015)
    under_null = [paired_p(draw.normal(0, 1, 20), i) < 0.1 for i in range(300)]
    assert 0.05 < np.mean(under_null) < 0.16


def test_p_is_adjusted_by_the_largest_difference_of_any_pair_of_edits() -> None:
    values = np.array([[0.1, 0.0, 0.2, 0.1], [0.3, 0.1, 0.2, 0.4], [0.9, 0.7, 0.8, 0.6]])
    gaps = [np.subtract(values[j], values[i]) for i, j in itertools.combinations(range(3), 2)]
    gaps = [gap / np.linalg.norm(gap) for gap in gaps]
    most = [max(abs(np.dot(signs, gap)) for gap in gaps) for signs in itertools.product((1, -1), repeat=4)]
    assert adjusted_p(values) == [np.mean(np.array(most) >= abs(gaps[i].sum()) - 1e-12) for i in (0, 1)]
    assert adjusted_p(values[1:]) == [paired_p(values[2] - values[1])] and adjusted_p(values[[0, 0]]) == [1.0]


@pytest.mark.parametrize("held", [2**20, 37 * 333, 5])
def test_signs_that_are_drawn_some_at_a_time_give_the_p_of_all_at_once(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronforget.evaluation.ranking.SIGNS", held)
    values = np.random.default_rng(1).normal(size=(5, 37)) + np.arange(5)[:, None] / 5
    signs = np.random.default_rng(7).choice((-1, 1), size=(10_000, 37))
    pairs = list(itertools.combinations(range(5), 2))
    gaps = np.array([values[j] - values[i] for i, j in pairs])
    gaps /= np.linalg.norm(gaps, axis=1)[:, None]
    most, found = np.abs(signs @ gaps.T).max(1), np.abs(gaps.sum(1))
    assert adjusted_p(values, 7) == [(1 + (most >= gap - 1e-12).sum()) / 10_001 for gap in found[:4]]
    sums = np.abs(signs @ gaps[0])
    assert paired_p(values[1] - values[0], 7) == (1 + (sums >= found[0] - 1e-12).sum()) / 10_001


def test_many_subjects_do_not_take_memory_for_all_signs() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2000))
    tracemalloc.start()
    adjusted_p(values)
    paired_p(values[1] - values[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000 * 2000 * 8 / 2  # bytes: half of the signs alone


def test_of_many_equal_edits_the_best_is_seldom_told_from_another() -> None:
    draw = np.random.default_rng(0)
    found = []
    for _ in range(120):
        values = draw.normal(size=(12, 8)) + draw.normal(size=8)
        found.append(min(adjusted_p(values[values.mean(1).argsort()])) < 0.05)
    assert np.mean(found) < 0.1  # Holm's correction of the comparisons with the best alone: .15


def results(columns: dict[str, list[float]], units: list[int]) -> nf.Results:
    rows = tuple({"edit": edit, "scope": "full"} for edit in columns)
    examples = tuple(
        {"edit": edit, "corpus": "forget", "metric": "exact_match", "point": "full"}
        | {"example": i, "unit": u, "value": v}
        for edit, values in columns.items() for i, (u, v) in enumerate(zip(units, values, strict=True))
    )  # fmt: skip
    return nf.Results(rows, examples, {"seed": 0})


def test_edits_are_ranked_and_ties_are_ties() -> None:
    units = [i // 2 for i in range(24)]  # two phrasings of each fact
    draw = np.random.default_rng(0)
    low = draw.uniform(0, 0.2, 24).tolist()
    same = [v + d for v, d in zip(low, draw.normal(0.005, 0.1, 24), strict=True)]
    high = [v + 0.5 for v in low]
    found = ranked(results({"worst": high, "best": low, "tie": same}, units))
    assert [place.edit for place in found] == ["best", "tie", "worst"]
    assert [place.tied() for place in found] == [True, True, False]
    assert found[2].difference == pytest.approx(0.5) and found[2].p == 2 / 2**12 and found[2].adjusted == found[2].p
    assert ranked(results({"worst": high, "best": low}, units), higher=True)[0].edit == "worst"


def test_an_edit_that_broke_the_model_is_last_and_spoils_nothing() -> None:
    units = list(range(8))
    high, low, nan = [1.0] * 8, [0.0] * 8, [float("nan"), *[0.0] * 7]
    for edits in ({"nan": nan, "worst": high, "best": low}, {"worst": high, "nan": nan, "best": low}):
        best, worst, broken = ranked(results(edits, units))
        assert (best.edit, worst.edit, broken.edit) == ("best", "worst", "nan")
        assert worst.adjusted == 2 / 2**8 and not worst.tied()
        assert np.isnan([broken.value, broken.p, broken.adjusted]).all() and not broken.tied()
    with pytest.raises(nf.InputError, match="are NaN"):
        ranked(results({"a": nan, "b": nan}, units))


def test_p_does_not_hang_on_the_unit() -> None:
    draw = np.random.default_rng(0).normal(size=10)
    assert paired_p(draw) == paired_p(draw * 1e-14) == paired_p(draw * 1e14)
    assert paired_p(np.full(10, 1e-14)) == 2 / 2**10


def test_what_cannot_be_ranked_is_refused() -> None:
    one = results({"a": [0.0, 1.0]}, [0, 1])
    with pytest.raises(InputError, match="to rank edits two of neurons/full"):
        ranked(one)
    two = results({"a": [0.0, 1.0], "b": [0.0, 1.0]}, [0, 1])
    other = nf.Results(two.rows, two.examples[:-1], two.info)
    with pytest.raises(InputError, match="not measured on the same examples"):
        ranked(other)
