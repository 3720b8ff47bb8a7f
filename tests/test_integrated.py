"""Integrated gradients in one growing batch against the plain loop, layer after layer, step after step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, lm_of
from torch import Tensor

import neuronforget as nf
from neuronforget import scores
from neuronforget.corpora import Batch, Corpus
from neuronforget.corpora.tokens import Encoded, collate, encode
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.scores import cost, rows
from neuronforget.scores.path import _slopes


def naive(lm: LM, example: Batch, steps: int) -> Tensor:
    """`a mean_k dP(alpha_k a)/da` by whole forward and backward passes, [layer, neuron]."""
    start = int(example.answer_mask[0].nonzero()[0])
    ids, target = example.input_ids[:, :start], int(example.input_ids[0, start])
    found = []
    for site in lm.sites:
        total: Any = 0.0
        for k in range(steps):
            kept: list[Tensor] = []

            def hook(_module: Any, inputs: tuple[Tensor, ...], k: int = k, kept: list[Tensor] = kept) -> Any:
                act = inputs[0].clone()
                clean = act.view(start, -1)[-1].detach()
                kept += [clean, ((k + 0.5) / steps * clean).requires_grad_()]
                return (torch.cat([act.view(start, -1)[:-1], kept[1][None]]).view(act.shape),)

            handle = lm.model.get_submodule(site.path).register_forward_pre_hook(hook)
            logits = lm.model(input_ids=ids, use_cache=False).logits[0, -1].double()
            handle.remove()
            total = total + torch.autograd.grad(logits.softmax(-1)[target], kept[1])[0]
        found.append(kept[0] * total / steps)
    return torch.stack(found).detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_growing_batch_is_the_plain_loop(family: str) -> None:
    lm = lm_of(family)
    if family != "xglm":  # its attention overflows in float64
        lm.model.double()
    example = collate([Encoded(0, (11, 4, 4, 50, 18, 60, 22), 5, 0)], 0)
    expected = naive(lm, example, 4)
    tolerance = 1e-6 if family != "xglm" else 1e-4
    with activations_only(lm):
        clean = rows.clean_run(lm, example, -1)
        slopes = _slopes(lm, clean, ((torch.arange(4) + 0.5) / 4).to(clean.logits))
    found = torch.stack([clean.acts[layer][0, 0] for layer in (0, 1)]) * slopes / 4
    assert (found - expected).abs().max() < tolerance * float(
        expected.abs().max().clamp_min(0.1)
    ) and expected.abs().max() > 1e-5


def test_integrated_is_the_mean_over_examples_and_its_contrast(lm: LM, corpus: Corpus) -> None:
    pair = replace(corpus, examples=corpus.examples[:4]), replace(corpus, examples=corpus.examples[4:])
    each = [
        np.stack([naive(lm, collate([row], 0), 3).detach().numpy() for row in encode(part, lm.tokenizer)])
        for part in pair
    ]
    found = nf.attribute(lm, *pair, score=scores.integrated, steps=3, progress=False)
    np.testing.assert_allclose(found.values.numpy(), each[0].mean(0) - each[1].mean(0), rtol=1e-3, atol=1e-7)
    errors = [x.std(0, ddof=1) / np.sqrt(len(x)) for x in each]
    assert found.error is not None and found.info["steps"] == 3
    np.testing.assert_allclose(found.error.numpy(), np.hypot(*errors), rtol=1e-3, atol=1e-7)


def test_steps_may_be_run_in_parts(lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nf.attribute(lm, corpus, score=scores.integrated, steps=5, progress=False)
    monkeypatch.setattr(cost, "PASS_BYTES", 0)
    parts = nf.attribute(lm, corpus, score=scores.integrated, steps=5, batch_size=2, progress=False)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-4, atol=1e-8)


def test_a_layers_scores_add_up_to_what_the_layer_does(lm: LM, corpus: Corpus) -> None:
    """Completeness: the sum over neurons is P(a) - P(0) of the layer, and many steps come close to it."""
    lm.model.double()
    one = replace(corpus, examples=corpus.examples[1:2])
    example = collate(encode(one, lm.tokenizer), 0)
    clean = rows.clean_run(lm, example, -1)
    found = nf.attribute(lm, one, score=scores.integrated, steps=200, progress=False)
    for i in (0, 1):
        with torch.no_grad():
            off = rows.run_rows(lm, clean, {i: 1}, {i: torch.zeros_like})
        on, off = (logits[0, 0].softmax(-1)[clean.targets[0]] for logits in (clean.logits, off))
        assert float(found.values[i].sum()) == pytest.approx(float(on - off), rel=1e-3, abs=1e-9)


def test_what_cannot_be_integrated_is_said_before_the_work(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.model, "forward", None)
    with pytest.raises(InputError, match="two or more steps"):
        nf.attribute(lm, corpus, score=scores.integrated, steps=1, progress=False)
    monkeypatch.setattr(cost, "free_bytes", lambda _device: 1000)
    with pytest.raises(InputError, match="too little memory for integrated: a pass of 32 rows"):
        nf.attribute(lm, corpus, score=scores.integrated, progress=False)
