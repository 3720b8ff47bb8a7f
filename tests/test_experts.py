"""Experts against counting every pair, and average precision by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from torch import Tensor

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.scores import PeakCounts, expert
from neuronforget.scores.experts import auroc, average_precision

responses = st.lists(st.integers(-3, 3), min_size=2, max_size=7)


def table(peaks: Tensor) -> Moments:
    """Moments that hold nothing but a table of peaks [example, layer, neuron]."""
    layers, width = peaks.shape[1:]
    fields = {"mean": torch.zeros((layers, width), dtype=torch.float64)}
    n = len(peaks)
    return Moments(fields, n, n, n, 0.0, tuple(range(layers)), table={"peak": peaks.float()}, index=tuple(range(n)))


def pairs_won(positive: list[int], negative: list[int]) -> float:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    return sum(wins) / len(wins)


def precision_by_thresholds(positive: list[int], negative: list[int]) -> float:
    """Sum over falling thresholds of precision times the rise of recall."""
    total, before = 0.0, 0.0
    for t in sorted({*positive, *negative}, reverse=True):
        hits, false = sum(p >= t for p in positive), sum(n >= t for n in negative)
        total += hits / (hits + false) * (hits / len(positive) - before)
        before = hits / len(positive)
    return total


@settings(max_examples=60, deadline=None)
@given(responses, responses)
def test_auroc_and_average_precision_are_what_counting_gives(positive: list[int], negative: list[int]) -> None:
    p, n = (torch.tensor(x, dtype=torch.float64) for x in (positive, negative))
    assert float(auroc(p, n)[0]) == pytest.approx(pairs_won(positive, negative))
    assert float(average_precision(p, n)) == pytest.approx(precision_by_thresholds(positive, negative))


@pytest.mark.parametrize("response", ["signed", "magnitude"])
def test_responses_that_differ_by_rounding_alone_are_equal(response: Any) -> None:
    """A neuron that answers most to the token all examples begin with tells nothing apart."""
    f = torch.tensor([[[2.0, -3.0]], [[2.0, -3.0]]])
    r = f * (1 - 1e-6)
    for measure in ("auroc", "ap"):
        assert expert(table(f), table(r), measure=measure, response=response).values.tolist() == [[0.5, 0.5]]
    r[0] *= 0.9  # this one differs
    assert expert(table(f.abs()), table(r.abs())).values.tolist() == [[0.75, 0.75]]


def test_experts_of_a_model_do_not_hang_on_how_its_corpora_are_batched(lm: LM, corpus: Corpus) -> None:
    halves = Corpus(corpus.examples[::2], "f"), Corpus(corpus.examples[1::2], "r")
    found = [
        expert(
            *(nf.record(lm, c, per_example=True, batch_size=size, tap="torch_hooks", progress=False) for c in halves)
        )
        for size in (1, 2, 16)
    ]
    for other in found[1:]:
        assert torch.equal(other.values, found[0].values)


def test_average_precision_by_hand() -> None:
    # ranking: +, -, +, -, +: precisions at the positives 1, 2/3, 3/5
    found = average_precision(torch.tensor([5.0, 3.0, 1.0]), torch.tensor([4.0, 2.0]))
    assert float(found) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


def test_the_error_of_an_auroc_is_that_of_repeated_samples() -> None:
    draw = np.random.default_rng(0)
    found = [auroc(*(torch.tensor(draw.normal(m, 1, n)) for m, n in ((0.8, 40), (0, 60)))) for _ in range(400)]
    values, errors = (np.array([float(x[i]) for x in found]) for i in (0, 1))
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


@pytest.mark.parametrize("response", ["signed", "magnitude"])
def test_experts_of_a_model_are_found_from_its_table(lm: LM, corpus: Corpus, response: Any) -> None:
    halves = [replace(corpus, examples=part) for part in (corpus.examples[:4], corpus.examples[4:])]
    f, r = (nf.record(lm, c, tap="torch_hooks", per_example=True, progress=False) for c in halves)
    found = nf.attribute(lm, *halves, score=expert, tap="torch_hooks", progress=False, response=response)
    size = np.abs if response == "magnitude" else np.asarray
    peaks = [size(m.table["peak"].numpy()) for m in (f, r)]
    for layer, j in ((0, 0), (0, 17), (1, 39)):
        x, y = (peak[:, layer, j] for peak in peaks)
        assert float(found.values[layer, j]) == pytest.approx(mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    flipped = expert(r, f, response=response)
    torch.testing.assert_close(flipped.values, 1 - found.values)


@pytest.mark.parametrize("measure", ["auroc", "ap"])
@pytest.mark.parametrize("response", ["signed", "magnitude"])
def test_counts_merge_and_are_exact_where_ties_are_the_edges_own(measure: Any, response: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    f, r = (table(torch.randint(-4, 5, (n, 2, 3), generator=draw)) for n in (9, 14))
    edges = (
        torch.arange(-4.5, 5.0)
        if response == "signed"
        else torch.tensor([-3.5, -2.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 3.5])
    )
    pieces = [[table(m.table["peak"][part]) for part in (slice(0, 4), slice(4, None))] for m in (f, r)]
    merged = [PeakCounts.of(a, edges) + PeakCounts.of(b, edges) for a, b in pieces]
    assert torch.equal(merged[0].counts, PeakCounts.of(f, edges).counts) and int(merged[0].counts[0, 0].sum()) == 9
    # 0 lies at an edge: positive and negative zero-width bins fall together in magnitude, so ties stay ties
    exact = expert(f, r, measure=measure, response=response)
    torch.testing.assert_close(expert(*merged, measure=measure, response=response).values, exact.values)


def test_counts_are_off_by_at_most_half_the_chance_of_a_shared_bin() -> None:
    draw = torch.Generator().manual_seed(1)
    f, r = (table(torch.randn((50, 2, 40), generator=draw) + shift) for shift in (0.3, 0.0))
    counts = [PeakCounts.of(m, torch.linspace(-2, 2, 9)) for m in (f, r)]
    shared = (counts[0].counts.double() / 50 * counts[1].counts / 50).sum(-1)
    off = (expert(*counts).values - expert(f, r).values).abs()
    assert (off <= shared / 2 + 1e-12).all() and off.max() > 0
    fine = [PeakCounts.of(m) for m in (f, r)]
    assert (expert(*fine).values - expert(f, r).values).abs().max() < 0.02


@pytest.mark.usefixtures("untyped")
def test_what_tells_nothing_apart_is_refused() -> None:
    f, r = table(torch.zeros(3, 2, 3)), table(torch.ones(4, 2, 3))
    counts = PeakCounts.of(f), PeakCounts.of(r)
    for call, message in (
        (lambda: expert(f), "compares two corpora: give retain too"),
        (lambda: expert(f, replace(r, table={})), "no per-example table"),
        (
            lambda: expert(f, table(torch.ones(1, 2, 3))),
            "2 or more examples of each corpus, found 3 and 1",
        ),
        (lambda: expert(f, table(torch.ones(4, 2, 5))), "different models"),
        (lambda: expert(f, table(torch.full((4, 2, 3), torch.nan))), "NaN"),
        (lambda: expert(f, counts[1]), "peak counts of both"),
        (lambda: expert(f, r, measure="f1"), "'auroc' or 'ap'"),
        (lambda: counts[0] + PeakCounts.of(r, torch.tensor([0.0])), "different edges"),
        (lambda: expert(counts[0], PeakCounts.of(r, torch.tensor([0.0]))), "different edges"),
        (lambda: expert(*(PeakCounts.of(m, torch.tensor([1.0])) for m in (f, r)), response="magnitude"), "symmetric"),
        (lambda: PeakCounts.of(f, torch.tensor([1.0, 1.0])), "increasing"),
    ):
        with pytest.raises(InputError, match=message):
            call()
