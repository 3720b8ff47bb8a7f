"""The kernels' public functions on CPU against the reference: the same statistics from blocks of rows."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_cases import assert_same, draw, ragged
from neuronforget_kernels import (
    PIECE_FIELDS,
    TABLE_FIELDS,
    Layout,
    blocks,
    configs,
    fused,
    fused_attribution,
    moment_rows,
    moments,
    neuron_moments,
    swiglu,
)
from neuronforget_kernels.moments import Piece
from neuronforget_kernels.reference import neuron_moments as reference
from torch import Tensor

TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(st.lists(st.integers(-1, 4), max_size=60), st.booleans(), st.booleans(), st.sampled_from([1, 20, 1100]), TYPES)
@example([0, -1, -1, -1, *[0] * 8], True, False, 1, torch.bfloat16)  # a sum of activations that nearly cancels
@example([0, 0, 0, 0], True, False, 1, torch.float32)  # and one of gradients
@settings(max_examples=60, deadline=None)
def test_any_segments_weights_and_groups(
    numbers: list[int], weigh: bool, split: bool, neurons: int, dtype: torch.dtype
) -> None:
    segments = torch.tensor(numbers, dtype=torch.long)
    a, g = draw(len(segments), neurons, len(numbers), dtype)
    chance = torch.Generator().manual_seed(neurons)
    weights = torch.rand(len(segments), generator=chance) * (torch.rand(len(segments), generator=chance) > 0.3)
    given_: dict[str, Any] = {"weights": weights if weigh else None}
    given_["groups"] = torch.tensor([1, 0, 1, 1, 0]) if split else None
    assert_same(neuron_moments(a, g, segments, 5, **given_), reference(a, g, segments, 5, **given_))


@pytest.mark.parametrize("lengths", [[700, 1200], [30] * 40, [0, 0, 5]])
def test_long_and_many_examples(lengths: list[int]) -> None:
    segments = ragged(lengths, 1)
    a, g = draw(len(segments), 200, 0)
    assert_same(neuron_moments(a, g, segments, len(lengths)), reference(a, g, segments, len(lengths)), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 40, 300])
def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", rows * 200)
    segments, given_ = ragged([70, 3, 0, 31, 120], 1), {"groups": torch.tensor([0, 1, 0, 1, 0])}
    given_["weights"] = torch.rand(len(segments), generator=torch.Generator().manual_seed(1))
    a, g = draw(len(segments), 200, 3)
    assert_same(neuron_moments(a, g, segments, 5, **given_), reference(a, g, segments, 5, **given_), rel=1e-5)


def test_sums_over_many_tokens_do_not_drift() -> None:
    a = torch.full((200_000, 1), 0.1)
    fields = neuron_moments(a, a, torch.arange(200_000) // 100, 2000)[0]
    assert float(fields["abs_sum"]) == pytest.approx(200_000 * float(a[0, 0]), rel=2e-6)  # fp32 within an example


@pytest.mark.parametrize("numbers", [[0, 0, 1, -1, 1, 3], [0, 1, 2] * 7, []])
def test_a_device_without_kernels_takes_the_reference(numbers: list[int]) -> None:
    segments = torch.tensor(numbers, dtype=torch.long)
    a, g = draw(len(segments), 20, 5, mean=2.0)
    for given_ in ({}, {"weights": torch.arange(len(segments)) % 4 / 2, "groups": torch.tensor([1, 0, 1, 0])}):
        layout = Layout.of(segments, 4, **given_)
        rows = slice(None) if layout.order is None else layout.order
        found = moments.named(moments.reference_rows(a[rows], g[rows], layout), layout, PIECE_FIELDS, TABLE_FIELDS)
        assert_same(found, neuron_moments(a, g, layout))
        assert found[0]["s"].shape == ((2, 20) if given_ else (20,))
        alone = moments.reference_rows(a[rows], None, layout)[0][:, PIECE_FIELDS.index("m2")]
        torch.testing.assert_close(alone, neuron_moments(a, g, layout)[0]["m2"].view_as(alone), rtol=1e-5, atol=1e-5)


def test_a_layout_read_on_one_device_serves_another() -> None:
    layout = Layout.of(torch.arange(200) % 3, 3, weights=torch.ones(200))
    assert layout.on(torch.device("cpu")) is layout
    there = layout.on(torch.device("meta"))
    moved = [getattr(there, name).device.type for name in ("counts", "weights", "order", "sample")]
    assert moved == ["meta"] * 4 and {x.device.type for x in there.tables.values()} == {"meta"}
    assert torch.equal(there.low, layout.low) and there.rows == 200


def test_rows_that_are_not_the_layouts_are_refused() -> None:
    layout = Layout.of(torch.tensor([0, 0, 1, 1]), 2)
    for a, g in (
        (torch.ones(10, 2), torch.ones(10, 2)),
        (torch.ones(2, 2), None),
        (torch.ones(4, 2), torch.ones(4, 1)),
    ):
        with pytest.raises(ValueError, match="and 4 rows"):
            moment_rows(a, g, layout, ("mean",) if g is None else PIECE_FIELDS, ())


def test_gaps_are_the_rows_that_are_left_out() -> None:
    assert [x.tolist() for x in Layout.of(torch.tensor([0, 0, 1, 1, -1, 2, 2]), 3).gaps] == [[4], [5]]


@pytest.mark.parametrize("neurons", [1, 200])
def test_sums_over_many_short_examples_keep_the_digits_of_long_ones(neurons: int) -> None:
    rows = 40_000
    a, g = torch.randn(2, rows, neurons, generator=torch.Generator().manual_seed(0)) + 3
    found = neuron_moments(a, g, torch.arange(rows), rows)[0]
    wide, grad = a.double(), g.double()
    exact = {"m2": ((wide - wide.mean(0)) ** 2).sum(0), "abs_sum": wide.abs().sum(0), "g2": (grad**2).sum(0)}
    exact |= {"abs_ag": (wide * grad).abs().sum(0), "ag2": (wide * grad).square().sum(0)}
    for name, values in exact.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=0, msg=name)


def test_interleaved_examples_keep_their_weights() -> None:
    segments = torch.arange(200) % 3
    segments[:40] = -1
    a, g = draw(200, 20, 9)
    weights = torch.rand(200, generator=torch.Generator().manual_seed(0))
    assert Layout.of(segments, 3).order is not None
    assert_same(
        neuron_moments(a, g, segments, 3, weights=weights), reference(a, g, segments, 3, weights=weights), rel=1e-5
    )


def test_a_weight_of_two_is_a_row_twice_and_of_zero_a_row_left_out() -> None:
    a, g = draw(6, 9, 1)
    segments, weights = torch.tensor([0, 0, 1, 1, 1, -1]), torch.tensor([1.0, 2, 0, 1, 2, 5])
    rows = [0, 1, 1, 3, 4, 4]
    found = neuron_moments(a, g, segments, 2, weights=weights)
    assert_same(found, neuron_moments(a[rows], g[rows], segments[rows], 2))


def test_each_groups_fields_are_what_it_has_alone() -> None:
    segments, groups = ragged([5, 7, 2, 4], 1), torch.tensor([0, 1, 1, 0])
    a, g = draw(len(segments), 12, 2)
    found = neuron_moments(a, g, segments, 4, groups=groups)
    for number, own in enumerate(([0, 3], [1, 2])):
        renamed = torch.full_like(segments, -1)
        for new, old in enumerate(own):
            renamed[segments == old] = new
        alone = neuron_moments(a, g, renamed, 2)
        for name, values in alone[0].items():
            torch.testing.assert_close(found[0][name][number], values, rtol=1e-5, atol=1e-6)


def test_rows_left_out_are_never_read_and_nan_stays_in_its_column_and_example() -> None:
    segments = ragged([5, 4, 6], 1)
    a, g = draw(len(segments), 30, 4)
    a[segments < 0], g[segments < 0] = math.nan, math.inf
    assert all(bool(torch.isfinite(values).all()) for values in neuron_moments(a, g, segments, 3)[0].values())
    a[2, 7], g[8, 9] = math.nan, math.nan
    found = neuron_moments(a, g, segments, 3)
    assert_same(found, reference(a, g, segments, 3))
    assert bool(found[0]["abs_ag"][[7, 9]].isnan().all())
    a[9, 11] = math.inf
    fields = neuron_moments(a, g, segments, 3)[0]
    assert [k for k, v in fields.items() if bool(torch.isfinite(v[11]))] == ["min", "positive", "u", "u2", "g2"]


def test_a_large_mean_costs_the_variance_no_digits() -> None:
    a, g = draw(600, 20, 5, mean=1e4)
    found = neuron_moments(a, g, torch.arange(600) // 60, 10)[0]
    torch.testing.assert_close(found["m2"] / 600, a.double().var(0, correction=0), rtol=1e-5, atol=0)


def test_activations_alone_give_what_needs_no_gradient() -> None:
    segments = ragged([9, 3], 0)
    a, g = draw(12, 10, 6)
    found = neuron_moments(a, None, segments, 2)
    assert set(found[0]) == {"mean", "m2", "pool_mean", "pool_m2", "min", "max", "abs_sum", "positive"}
    assert set(found[1]) == {"sum_a", "sum_a2", "peak"}
    assert_same(found, reference(a, g, segments, 2))
    with pytest.raises(ValueError, match="need the gradients"):
        neuron_moments(a, None, segments, 2, fields=("s",))


def test_a_layout_made_once_gives_the_same_bits() -> None:
    segments = ragged([9, 3], 2)
    a, g = draw(len(segments), 10, 7)
    layout = Layout.of(segments, 2)
    first, second = neuron_moments(a, g, layout), neuron_moments(a, g, segments, 2)
    for x, y in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(x[name], y[name]) for name in x)


def misused() -> dict[str, tuple[str, Any]]:
    a, segments = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    return {
        "shape": (r"\[rows, neurons\]", lambda: neuron_moments(a, a[:2], segments, 1)),
        "rows": ("4 rows", lambda: neuron_moments(a, a, torch.zeros(4), 1)),
        "number": ("from -1 to 0", lambda: neuron_moments(a, a, segments + 1, 1)),
        "weights": ("finite", lambda: neuron_moments(a, a, segments, 1, weights=torch.tensor([1.0, -1, 0]))),
        "groups": ("each of 1 examples", lambda: neuron_moments(a, a, segments, 1, groups=torch.zeros(2))),
        "examples": ("how many", lambda: neuron_moments(a, a, segments)),
        "twice": ("Layout.of", lambda: neuron_moments(a, a, Layout.of(segments, 1), 1)),
        "name": ("no such field", lambda: neuron_moments(a, a, segments, 1, fields=("median",))),
        "product": ("do not fit", lambda: fused_attribution(a, a, a, Layout.of(segments, 1))),
    }


@pytest.mark.parametrize("case", misused())
def test_what_does_not_fit_is_named(case: str) -> None:
    message, call = misused()[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("flat", [True, False])
def test_attribution_from_the_layers_output(flat: bool) -> None:
    segments = ragged([9, 3, 0], 1)
    a, _ = draw(len(segments), 10, 8)
    torch.manual_seed(0)
    delta, write = torch.randn(len(segments), 6), torch.randn(10, 6)
    write = write if flat else write.T.contiguous().T
    found = fused_attribution(delta, write, a, Layout.of(segments, 3))
    assert_same(found, reference(a, delta @ write.T, segments, 3))


def test_attribution_gives_what_it_is_asked_for() -> None:
    segments = ragged([4, 2], 0)
    a, _ = draw(len(segments), 10, 8)
    delta, write, layout = torch.randn(6, 3), torch.randn(10, 3), Layout.of(segments, 2)
    fields, table, _ = fused_attribution(delta, write, a, layout, fields=("s2",), table=("s",))
    whole = fused_attribution(delta, write, a, layout)
    assert fields.keys() == {"s2"} and table.keys() == {"s"}
    assert torch.equal(table["s"], whole[1]["s"]) and torch.equal(fields["s2"], whole[0]["s2"])


def test_the_fused_kernel_is_taken_where_it_was_measured_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_fusable", lambda *_: True)
    monkeypatch.setattr(configs, "kinds_of", lambda _device: ("NVIDIA H1000", "cuda"))
    monkeypatch.setattr(configs, "runs_kernels", lambda _device: True)
    monkeypatch.setitem(sys.modules, "neuronforget_kernels.fused_kernel", SimpleNamespace(fused_moments=taken))
    layout = Layout.of(torch.zeros(3, dtype=torch.long), 1)
    given = torch.ones(3, 2), torch.ones(4, 2), torch.ones(3, 4), layout
    fused_attribution(*given)  # this device is not listed
    fused_attribution(*given, fused=False)
    with pytest.raises(RuntimeError, match="taken"):
        fused_attribution(*given, fused=True)
    monkeypatch.setattr(configs, "FUSED", frozenset({"NVIDIA H1000"}))
    with pytest.raises(RuntimeError, match="taken"):
        fused_attribution(*given)
    fused_attribution(*given, fused=False)


def taken(*_: Any) -> Any:
    raise RuntimeError("taken")


def test_the_gated_product_has_autograds_gradients_and_hands_out_moments() -> None:
    segments, received = ragged([3, 4], 1), list[Piece]()
    torch.manual_seed(0)
    inner, outer = torch.randn(2, 9, 5, dtype=torch.float32)
    gate, up = (torch.cat([x]).requires_grad_() for x in (inner, outer))

    def loss(product: Tensor) -> Tensor:
        return (product**2).sum()

    layout = Layout.of(segments, 2)
    product = swiglu(gate, up, layout, received.append)
    found = torch.autograd.grad(loss(product), (gate, up))
    plain = torch.nn.functional.silu(gate) * up
    expected = torch.autograd.grad(loss(plain), (gate, up))
    torch.testing.assert_close(product, plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(received) == 1
    assert_same(received[0], reference(plain.detach(), 2 * plain.detach(), segments, 2))


def test_a_gated_mlp_records_by_its_own_backward() -> None:
    from families import build

    model = build("llama")
    mlp, received = model.model.layers[1].mlp, list[Piece]()
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    layout = Layout.of(torch.arange(2).repeat_interleave(7), 2)
    acts: list[Tensor] = []
    handle = mlp.down_proj.register_forward_pre_hook(lambda _m, args: acts.append(args[0]) or args[0].retain_grad())
    model(ids).logits.square().mean().backward()
    handle.remove()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    mlp.forward = lambda x: mlp.down_proj(swiglu(mlp.gate_proj(x), mlp.up_proj(x), layout, received.append))
    model(ids).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    act = acts[0]
    assert act.grad is not None
    assert_same(received[0], neuron_moments(act.detach().flatten(0, 1), act.grad.flatten(0, 1), layout), rel=1e-5)
