"""On a CUDA device the whole path gives what it gives on CPU (skipped, with the reason, where there is none)."""

from __future__ import annotations

import copy

import pytest
import torch
from beds import bed

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
