"""On a CUDA device the whole path gives what it gives on CPU (skipped, with the reason, where there is none)."""

from __future__ import annotations

import copy

import pytest
import torch
from beds import bed
from kernel_cases import assert_same, ragged
from neuronforget_kernels import Layout, configs, fused_attribution, neuron_moments, swiglu_backward
from neuronforget_kernels.reference import neuron_moments as reference

import neuronforget as nf

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def pair() -> tuple[nf.LM, nf.LM]:
    """The testbed's model on CPU, and a copy of it on the GPU."""
    lm = bed().lm
    return lm, nf.LM(copy.deepcopy(lm.model).cuda(), lm.tokenizer)


def test_recording_on_the_gpu_equals_recording_on_cpu(pair: tuple[nf.LM, nf.LM]) -> None:
    cpu, gpu = (nf.record(lm, bed().forget, tap="torch_hooks", progress=False) for lm in pair)
    for name, values in cpu.fields.items():
        torch.testing.assert_close(gpu[name], values, rtol=2e-3, atol=2e-4 * float(values.abs().max()), msg=name)


def test_what_neurons_write_directly_is_the_same_on_the_gpu(pair: tuple[nf.LM, nf.LM]) -> None:
    cpu, gpu = (nf.attribute(lm, bed().forget, score=nf.scores.direct, progress=False).values for lm in pair)
    torch.testing.assert_close(gpu, cpu, rtol=2e-3, atol=2e-4 * float(cpu.abs().max()))


def test_edits_made_on_the_gpu_forget_as_those_made_on_cpu_and_undo_bit_for_bit(pair: tuple[nf.LM, nf.LM]) -> None:
    _, gpu = pair
    forget, retain = bed().forget, bed().retain
    before = {name: p.detach().clone() for name, p in gpu.parameters.items()}
    neurons = nf.select.per_layer(nf.attribute(gpu, forget, retain, tap="torch_hooks", progress=False), 0.1)
    mean = nf.record(gpu, retain, tap="torch_hooks", progress=False)
    edits = {
        "ablate": nf.erase.ablate(gpu, neurons),
        "mean": nf.erase.ablate(gpu, neurons, mode="mean", moments=mean),
        "npo@neurons": nf.erase.finetune(gpu, forget, retain, neurons=neurons, steps=5, progress=False),
        "npo": nf.erase.finetune(gpu, forget, retain, steps=5, progress=False),
        "rank_one": nf.erase.rank_one(gpu, forget, retain, neurons=neurons),
    }
    results = nf.evaluate(gpu, edits, forget, retain, progress=False)
    assert all(torch.equal(before[name], p) for name, p in gpu.parameters.items())
    assert all(edit.certificate(gpu).holds for edit in edits.values())
    for name in edits:
        assert results.value(name, "forget", "nll") > results.value("untouched", "forget", "nll")


def on_the_gpu(dtype: torch.dtype, ragged_gap: int = 3) -> tuple[torch.Tensor, ...]:
    """Activations, gradients, gate-like values and segments of ragged examples, one of them longer than a piece."""
    segments = ragged([700, 0, 1, 333, 1500, 64], ragged_gap).cuda()
    draw = torch.Generator("cuda").manual_seed(0)
    tensors = (torch.randn(len(segments), 1000, device="cuda", generator=draw).to(dtype) for _ in range(3))
    return (*tensors, segments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("split", [False, True])
def test_one_pass_equals_the_reference(dtype: torch.dtype, split: bool) -> None:
    a, g, _, segments = on_the_gpu(dtype)
    a[segments < 0] = torch.nan
    settings = {"weights": torch.rand(len(segments), device="cuda"), "groups": torch.tensor([0, 1, 1, 0, 1, 0]).cuda()}
    settings = settings if split else {}
    assert_same(neuron_moments(a, g, segments, 6, **settings), reference(a, g, segments, 6, **settings), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gated_backward_equals_autograd(dtype: torch.dtype) -> None:
    g, gate, up, segments = on_the_gpu(dtype)
    d_gate, d_up, found = swiglu_backward(g, gate, up, Layout.of(segments, 6))
    z, u = (x.double().requires_grad_() for x in (gate, up))
    product = torch.nn.functional.silu(z) * u
    near = 1e-5 if dtype is torch.float32 else 2e-2
    for got, want in zip((d_gate, d_up), torch.autograd.grad(product, (z, u), g.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=near, atol=near)
    assert_same(found, reference(product.detach().float(), g, segments, 6), rel=1e-5)


def test_without_triton_the_reference_takes_the_kernels_place(monkeypatch: pytest.MonkeyPatch) -> None:
    a, g, up, segments = on_the_gpu(torch.bfloat16)
    layout = Layout.of(segments, 6)
    expected = neuron_moments(a, g, layout), swiglu_backward(g, a, up, layout)[2]
    monkeypatch.setattr(configs, "has_triton", lambda: False)
    assert_same(neuron_moments(a, g, layout), expected[0], rel=1e-5)
    assert_same(swiglu_backward(g, a, up, layout)[2], expected[1], rel=1e-5)


@pytest.mark.parametrize("flat", [True, False])
def test_fused_attribution_equals_the_product_and_its_moments(flat: bool) -> None:
    a, g, _, segments = on_the_gpu(torch.bfloat16)
    delta, write = g[:, :256].contiguous(), torch.randn(1000, 256, device="cuda", dtype=torch.bfloat16)
    write = write if flat else write.T.contiguous().T
    found = fused_attribution(delta, write, a, Layout.of(segments, 6), fused=True)
    assert_same(found, reference(a, delta.double() @ write.double().T, segments, 6), rel=1e-4)


def test_equal_inputs_give_equal_bits() -> None:
    a, g, up, segments = on_the_gpu(torch.bfloat16)
    layout = Layout.of(segments, 6)
    write = up[:256].T.contiguous()
    for run in (
        lambda: neuron_moments(a, g, layout),
        lambda: swiglu_backward(g, a, up, layout)[2],
        lambda: fused_attribution(g[:, :256].contiguous(), write, a, layout, fused=True),
    ):
        first, second = run(), run()
        for x, y in zip(first[:2], second[:2], strict=True):
            assert all(torch.equal(x[name], y[name]) for name in x)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_kernels_work_on_a_card_that_is_not_the_current_one() -> None:
    a, g, _, segments = on_the_gpu(torch.float32)
    fields, table, counts = neuron_moments(a, g, segments, 6)
    assert torch.cuda.current_device() == 0
    found = neuron_moments(a.to("cuda:1"), g.to("cuda:1"), segments.to("cuda:1"), 6)
    for part, want in zip(found[:2], (fields, table), strict=True):
        assert all(torch.equal(values.cpu(), want[name].cpu()) for name, values in part.items())
    assert torch.equal(found[2].cpu(), counts.cpu())
