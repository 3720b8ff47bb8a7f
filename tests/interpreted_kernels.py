"""The Triton kernels, interpreted on CPU, against the reference; run by `test_kernels_interpreter.py` on its own.

Triton decides whether to interpret when a kernel is defined, so this needs a process with TRITON_INTERPRET=1.
Outputs are allocated as NaN and strides padded with NaN: what a kernel fails to write or should not read shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same, draw, ragged
from neuronforget_kernels import (
    PIECE_FIELDS,
    TABLE_FIELDS,
    Layout,
    configs,
    finishing,
    fused_kernel,
    gated_kernel,
    streaming,
)
from neuronforget_kernels.accumulators import GRADIENT_FIELDS, GRADIENT_TABLE, wanted
from neuronforget_kernels.moments import Piece, named
from neuronforget_kernels.reference import neuron_moments as reference
from torch import Tensor

EVERYTHING = wanted(PIECE_FIELDS, TABLE_FIELDS)
#: Stay finite when an activation is infinite: a count, an extreme on the other side, what g alone gives.
NEED_NO_A = ["min", "positive", "u", "u2", "g2"]


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Any:
    """Uninitialised memory reads as NaN."""
    patch, empty = pytest.MonkeyPatch(), torch.empty

    def poisoned(*size: Any, **settings: Any) -> Tensor:
        out = empty(*size, **settings)
        return out.fill_(math.nan) if out.is_floating_point() else out

    patch.setattr(torch, "empty", poisoned)
    yield
    patch.undo()


def streamed(a: Tensor, g: Tensor | None, layout: Layout) -> Piece:
    if layout.order is not None:
        a, g = a[layout.order], None if g is None else g[layout.order]
    return named(streaming.streamed_moments(a, g, layout, EVERYTHING), layout, PIECE_FIELDS, TABLE_FIELDS)


def both(a: Tensor, g: Tensor, segments: list[int] | Tensor, examples: int, **settings: Any) -> tuple[Piece, Piece]:
    numbers = torch.as_tensor(segments, dtype=torch.long)
    found = streamed(a, g, Layout.of(numbers, examples, **settings))
    return found, reference(a, g, numbers, examples, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_ragged_and_empty_examples(dtype: torch.dtype) -> None:
    segments = ragged([37, 0, 1, 50, 3], 2)
    a, g = draw(len(segments), 150, 0, dtype)
    assert_same(*both(a, g, segments, 5))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.integers(0, 2),
    st.sampled_from([1, 31, 70]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
@settings(derandomize=True, max_examples=12, deadline=None)
def test_any_layout(lengths: list[int], gap: int, neurons: int, weigh: bool, split: bool, seed: int) -> None:
    segments = ragged(lengths, gap)
    a, g = draw(len(segments), neurons, seed)
    chance = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(segments), generator=chance) * (torch.rand(len(segments), generator=chance) > 0.3)
    groups = torch.randint(0, 2, (len(lengths),), generator=chance)
    given_ = {"weights": weights if weigh else None, "groups": groups if split else None}
    assert_same(*both(a, g, segments, len(lengths), **given_))


def test_a_sum_that_nearly_cancels_is_found_to_the_rounding_of_its_terms() -> None:
    segments, neurons, seed = ragged([5], 1), 1, 18961
    a, g = draw(len(segments), neurons, seed)
    chance = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(segments), generator=chance) * (torch.rand(len(segments), generator=chance) > 0.3)
    terms = (a.double() * g.double() * weights.double()[:, None])[:5, 0]
    size, exact = float(terms.abs().sum()), float(terms.sum())
    assert size > 30 * abs(exact)
    for fields, _, _ in both(a, g, segments, 1, weights=weights):
        assert abs(float(fields["s"]) - exact) < 1.2e-7 * size
        assert abs(float(fields["s2"]) - exact**2) < 2 * 1.2e-7 * size * abs(exact)


def test_interleaved_examples() -> None:
    a, g = draw(90, 20, 1)
    assert_same(*both(a, g, torch.arange(90) % 3, 3))  # gathered first
    assert_same(*both(a[:6], g[:6], [2, 0, 2, 0, -1, 2], 3))  # read where they lie


def test_an_example_longer_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronforget_kernels import layout

    monkeypatch.setattr(layout._cut, "__defaults__", (16,))
    segments = ragged([101, 5], 1)
    a, g = draw(len(segments), 40, 2)
    assert len(Layout.of(segments, 2).low) == 8
    assert_same(*both(a, g, segments, 2))


def test_columns_that_are_not_next_to_each_other() -> None:
    a, g = draw(17, 30, 3)
    expected = reference(a, g, torch.zeros(17, dtype=torch.long), 1)
    assert_same(streamed(a.T.contiguous().T, torch.stack([g, g], -1)[..., 0], Layout.of(torch.zeros(17), 1)), expected)


def test_rows_left_out_are_never_read_and_nan_stays_in_its_column_and_example() -> None:
    segments = ragged([5, 4, 6], 1)
    a, g = draw(len(segments), 30, 4)
    a[segments < 0], g[segments < 0] = math.nan, math.inf
    found, expected = both(a, g, segments, 3)
    assert all(bool(torch.isfinite(values).all()) for values in found[0].values())
    assert_same(found, expected)
    a[2, 7], g[8, 9] = math.nan, math.nan
    found, expected = both(a, g, segments, 3)
    assert_same(found, expected)
    assert bool(found[0]["abs_ag"][[7, 9]].isnan().all())
    a[9, 11] = math.inf
    found, _ = both(a, g, segments, 3)
    assert [name for name in found[0] if bool(torch.isfinite(found[0][name][[11]]).all())] == NEED_NO_A
    assert bool(torch.isfinite(found[1]["s"][2]).all())


def test_a_large_mean_costs_the_variance_no_digits() -> None:
    segments = ragged([60, 60], 0)
    a, g = draw(120, 20, 5, mean=1e4)
    found, _ = both(a, g, segments, 2)
    torch.testing.assert_close(found[0]["m2"] / 120, a.double().var(0, correction=0), rtol=1e-5, atol=0)


def test_nothing_to_read() -> None:
    a, g = draw(4, 10, 6)
    assert_same(*both(a, g, [-1] * 4, 2))
    assert_same(*both(a, g, [-1] * 4, 2, groups=torch.tensor([1, 0])))


@pytest.mark.parametrize("names", [("mean", "m2"), ("s",), ("positive", "min"), ("us", "g2"), ("abs_ag", "pool_m2")])
def test_what_is_not_asked_for_is_neither_read_nor_computed(names: tuple[str, ...]) -> None:
    segments = ragged([9, 8], 1)
    a, g = draw(len(segments), 20, 7)
    layout, expected = Layout.of(segments, 2), reference(a, g, segments, 2)
    got = named(streaming.streamed_moments(a, g, layout, wanted(names, ())), layout, names, ())
    assert set(got[0]) == set(names)
    assert_same(got, expected)


def gated_by_autograd(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product in float64 and its gradients."""
    z, u = (x.double().requires_grad_() for x in (gate, up))
    product = torch.nn.functional.silu(z) * u
    return product.detach(), *torch.autograd.grad(product, (z, u), g.double())


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 3e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("weigh", [False, True])
def test_the_gated_backward_gives_gradients_and_moments(dtype: torch.dtype, rel: float, weigh: bool) -> None:
    segments = ragged([20, 0, 33, 1], 3)
    rows = len(segments)
    (gate, g), (up, _) = draw(rows, 70, 8, dtype), draw(rows, 70, 9, dtype)
    weights = torch.rand(rows) if weigh else None
    layout = Layout.of(segments, 4, weights=weights)
    d_gate, d_up, found = gated_kernel.swiglu_backward_moments(g, gate, up, layout, EVERYTHING)
    product, *exact = gated_by_autograd(g, gate, up)
    for got, want in zip((d_gate, d_up), exact, strict=True):  # rows that the layout leaves out as well
        torch.testing.assert_close(got.double(), want, rtol=rel, atol=rel)
    expected = reference(product.float(), g, segments, 4, weights=weights)
    assert_same(named(found, layout, PIECE_FIELDS, TABLE_FIELDS), expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_fused_product_is_the_product_and_its_moments(
    dtype: torch.dtype, flat: bool, weigh: bool, parts: int
) -> None:
    segments = ragged([37, 0, 1, 50, 3], 2)
    rows, neurons, model = len(segments), 152, 96
    a, _ = draw(rows, neurons, 10, dtype)
    a = a.contiguous()
    delta, write = torch.randn(rows, model).to(dtype), torch.randn(neurons, model).to(dtype)
    delta[segments < 0] = math.nan
    write = write if flat else write.T.contiguous().T
    weights = torch.rand(rows) if weigh else None
    groups = torch.tensor([0, 1, 0, 1, 1]) if weigh else None
    layout = Layout.of(segments, 5, weights=weights, groups=groups)
    with configs.instead(configs.GEMM, a.device, configs.GEMM["interpreter"]._replace(parts=parts)):
        found = fused_kernel.fused_moments(delta, write, a, layout, wanted(GRADIENT_FIELDS, GRADIENT_TABLE))
    exact = reference(a, delta.float() @ write.float().T, segments, 5, weights=weights, groups=groups)
    got = named(found, layout, GRADIENT_FIELDS, GRADIENT_TABLE)
    assert set(got[0]) == {"s", "abs_s", "s2", "u", "u2", "us", "abs_ag", "ag2", "g2"}
    assert_same(got, exact, rel=1e-5)


def test_tables_are_moved_to_the_device_for_a_batchs_first_layer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, real = [], Layout.on_device
    monkeypatch.setattr(Layout, "on_device", lambda self, **host: moved.append(host) or real(self, **host))
    (a, g, delta, write), layout = torch.randn(4, 40, 40), Layout.of(ragged([17, 20], 1)[:40], 2)
    found = []
    for _ in range(2):
        found += [
            streaming.streamed_moments(a, g, layout, EVERYTHING),
            gated_kernel.swiglu_backward_moments(g, a, a, layout, EVERYTHING)[2],
            fused_kernel.fused_moments(delta, write, a, layout, wanted(GRADIENT_FIELDS, GRADIENT_TABLE)),
        ]
        assert len(moved) == 4  # of the layout itself, with its gaps, cut into tiles and of each tile
    for first, second in zip(found[:3], found[3:], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_kernels_are_launched_where_their_tensors_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, which of several cards need not be that of the tensors."""
    within, launches, real = [], [], torch.cuda.device_of

    @contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        with real(tensor):
            within.append(tensor)
            yield
            within.pop()

    class Watched:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            launches.append(within[-1] if within else None)
            return self.kernel[grid]

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    kernels = {streaming: "moments_kernel", fused_kernel: "fused_kernel", gated_kernel: "swiglu_kernel"}
    for module, name in [*kernels.items(), (finishing, "finish_chunks"), (finishing, "finish_groups")]:
        monkeypatch.setattr(module, name, Watched(getattr(module, name)))
    (a, g, delta, write), layout = torch.randn(4, 16, 16), Layout.of(torch.zeros(16, dtype=torch.long), 1)
    streaming.streamed_moments(a, g, layout, EVERYTHING)
    gated_kernel.swiglu_backward_moments(g, a, a, layout, EVERYTHING)
    fused_kernel.fused_moments(delta, write, a, layout, wanted(GRADIENT_FIELDS, GRADIENT_TABLE))
    assert [id(tensor) for tensor in launches] == [id(first) for first in (a, g, delta) for _ in range(3)]
