"""The reference of the neuron moments against plain loops in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuronforget_kernels import PIECE_FIELDS
from neuronforget_kernels.reference import SUMS, TABLE_FIELDS, neuron_moments
from torch import Tensor

Result = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def mean_and_m2(values: list[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values)


def by_loops(a: Tensor, g: Tensor, segments: Tensor, examples: int) -> tuple[Any, Any, np.ndarray]:
    """Every statistic by its definition: one neuron, one token at a time."""
    rows, neurons = a.shape
    act, grad, segment = a.double().tolist(), g.double().tolist(), segments.tolist()
    fields = {name: np.zeros(neurons) for name in PIECE_FIELDS}
    table = {name: np.zeros((examples, neurons)) for name in TABLE_FIELDS}
    tokens = [[t for t in range(rows) if segment[t] == n] for n in range(examples)]
    for j in range(neurons):
        means = []
        for n, own in enumerate(tokens):
            x, y = [act[t][j] for t in own], [grad[t][j] for t in own]
            table["s"][n, j] = math.fsum(p * q for p, q in zip(x, y, strict=True))
            table["u"][n, j] = math.fsum(y)
            table["sum_a"][n, j] = math.fsum(x)
            table["sum_a2"][n, j] = math.fsum(v * v for v in x)
            table["peak"][n, j] = max(x, key=lambda v: (abs(v), v), default=0.0)
            means += [math.fsum(x) / len(x)] if x else []
        kept = [t for own in tokens for t in own]
        x, y = [act[t][j] for t in kept], [grad[t][j] for t in kept]
        s, u = table["s"][:, j], table["u"][:, j]
        fields["mean"][j], fields["m2"][j] = mean_and_m2(x)
        fields["pool_mean"][j], fields["pool_m2"][j] = mean_and_m2(means)
        fields["min"][j], fields["max"][j] = min(x, default=math.inf), max(x, default=-math.inf)
        fields["abs_sum"][j] = math.fsum(abs(v) for v in x)
        fields["positive"][j] = sum(v > 0 for v in x)
        fields["abs_ag"][j] = math.fsum(abs(p * q) for p, q in zip(x, y, strict=True))
        fields["ag2"][j] = math.fsum((p * q) ** 2 for p, q in zip(x, y, strict=True))
        fields["g2"][j] = math.fsum(q * q for q in y)
        sums = {"s": s, "abs_s": abs(s), "s2": s * s, "u": u, "u2": u * u, "us": u * s}
        for name, values in sums.items():
            fields[name][j] = math.fsum(values)
    return fields, table, np.array([len(own) for own in tokens])


def assert_equal_to_loops(found: Result, a: Tensor, g: Tensor, segments: Tensor, examples: int) -> None:
    fields, table, counts = by_loops(a, g, segments, examples)
    assert set(found[0]) == set(PIECE_FIELDS)
    assert set(found[1]) == set(TABLE_FIELDS)
    assert found[2].tolist() == counts.tolist()
    for name, expected in fields.items():
        assert found[0][name].dtype == torch.float64
        np.testing.assert_allclose(found[0][name].numpy(), expected, rtol=1e-5, atol=1e-5, err_msg=name)
    for name, expected in table.items():
        assert found[1][name].dtype == torch.float32
        np.testing.assert_allclose(found[1][name].numpy(), expected, rtol=1e-5, atol=1e-5, err_msg=name)


def draw(rows: int, neurons: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, g = torch.randn(2, rows, neurons, generator=generator)
    return a * (torch.rand(a.shape, generator=generator) > 0.2), g  # some activations are exactly 0


@st.composite
def cases(draw_: st.DrawFn) -> tuple[int, int, int, list[int]]:
    """Neurons, examples, a seed, and each row's example in any order, -1 for rows to leave out."""
    examples = draw_(st.integers(1, 6))
    segments = draw_(st.lists(st.integers(-1, examples - 1), max_size=40))
    return draw_(st.integers(1, 5)), examples, draw_(st.integers(0, 10**6)), segments


@given(cases(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_every_statistic_is_what_its_definition_says(case: tuple[int, int, int, list[int]], dtype: torch.dtype) -> None:
    neurons, examples, seed, numbers = case
    segments = torch.tensor(numbers, dtype=torch.long)
    a, g = (x.to(dtype) for x in draw(len(numbers), neurons, seed))
    assert_equal_to_loops(neuron_moments(a, g, segments, examples), a, g, segments, examples)


@given(cases())
@settings(max_examples=30, deadline=None)
def test_rows_left_out_are_never_read(case: tuple[int, int, int, list[int]]) -> None:
    neurons, examples, seed, numbers = case
    segments = torch.tensor(numbers, dtype=torch.long)
    a, g = draw(len(numbers), neurons, seed)
    expected = neuron_moments(a, g, segments, examples)
    for poison in (math.nan, math.inf):
        a[segments < 0], g[segments < 0] = poison, poison
        found = neuron_moments(a, g, segments, examples)
        assert all(torch.equal(found[0][name], expected[0][name]) for name in PIECE_FIELDS)
        assert all(torch.equal(found[1][name], expected[1][name]) for name in TABLE_FIELDS)


@pytest.mark.parametrize(
    "numbers",
    [[], [-1, -1, -1], [0], [-1, 2], [0, 0, 2, 2, 2], [2, 0, 2, 0]],
    ids=["no row", "all left out", "one token", "one token of the last", "empty example", "interleaved"],
)
def test_borderline_segments(numbers: list[int]) -> None:
    segments = torch.tensor(numbers, dtype=torch.long)
    a, g = draw(len(numbers), 3, 0)
    assert_equal_to_loops(neuron_moments(a, g, segments, 3), a, g, segments, 3)


def test_an_example_without_rows_counts_as_zero_but_not_in_the_pooled_mean() -> None:
    a = torch.tensor([[2.0], [4.0], [9.0]])
    fields, table, counts = neuron_moments(a, torch.ones_like(a), torch.tensor([0, 0, 2]), 3)
    assert counts.tolist() == [2, 0, 1]
    assert table["s"].tolist() == [[6.0], [0.0], [9.0]]
    assert (float(fields["pool_mean"]), float(fields["pool_m2"])) == (6.0, 18.0)


def test_the_peak_keeps_its_sign() -> None:
    a = torch.tensor([[1.0, -1.0, 0.5], [-3.0, -2.0, 0.0], [2.0, -0.5, 0.25]])
    _, table, _ = neuron_moments(a, a, torch.zeros(3, dtype=torch.long), 1)
    assert table["peak"].tolist() == [[-3.0, -2.0, 0.5]]


def test_a_large_mean_costs_the_variance_no_digits() -> None:
    rows, examples = 2048, 8
    noise = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = (10 + 1e-3 * noise).float()
    segments = torch.arange(rows) % examples
    fields, table, _ = neuron_moments(a, torch.ones_like(a), segments, examples)
    exact = a.double()
    pooled = torch.stack([exact[segments == n].mean(0) for n in range(examples)])
    torch.testing.assert_close(fields["m2"] / rows, exact.var(0, correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(fields["pool_m2"] / examples, pooled.var(0, correction=0), rtol=1e-3, atol=0)
    torch.testing.assert_close(table["sum_a"].double(), pooled * (rows / examples), rtol=1e-7, atol=0)


def test_sums_over_many_tokens_do_not_drift() -> None:
    rows = 200_000
    a = torch.full((rows, 1), 0.1)
    fields, _, _ = neuron_moments(a, a, torch.arange(rows) // 100, rows // 100)
    each = float(a[0, 0])
    assert float(fields["abs_sum"]) == pytest.approx(rows * each, rel=1e-7)
    assert float(fields["s"]) == pytest.approx(rows * each**2, rel=1e-6)


def test_strides_do_not_matter() -> None:
    a, g = draw(12, 10, 3)
    segments = torch.arange(12) // 4
    expected = neuron_moments(a, g, segments, 3)
    found = neuron_moments(a.T.contiguous().T, torch.stack([g, g], -1)[..., 0], segments, 3)
    assert all(torch.equal(found[0][name], expected[0][name]) for name in PIECE_FIELDS)


def test_inputs_are_left_as_they_were() -> None:
    a, g = draw(6, 3, 1)
    kept = a.clone(), g.clone()
    neuron_moments(a, g, torch.tensor([0, 0, -1, 1, 1, 1]), 2)
    assert torch.equal(a, kept[0])
    assert torch.equal(g, kept[1])


def test_every_field_is_either_a_sum_or_merged_by_its_own_rule() -> None:
    assert set(PIECE_FIELDS) - set(SUMS) == {"mean", "m2", "pool_mean", "pool_m2", "min", "max"}
    a, g = draw(10, 3, 2)
    segments = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    whole = neuron_moments(a, g, segments, 3)[0]
    first, second = (
        neuron_moments(a[part], g[part], segments[part] - least, count)[0]
        for part, least, count in ((slice(0, 5), 0, 2), (slice(5, 10), 2, 1))
    )
    for name in SUMS:
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("a", "g", "segments"), [((4, 3), (4, 2), 4), ((4, 3), (4, 3), 3), ((2, 2, 3), (2, 2, 3), 2)])
def test_shapes_that_do_not_fit_are_named(a: tuple[int, ...], g: tuple[int, ...], segments: int) -> None:
    with pytest.raises(ValueError, match=r"must be \[rows, neurons\]"):
        neuron_moments(torch.zeros(a), torch.zeros(g), torch.zeros(segments, dtype=torch.long), 1)
