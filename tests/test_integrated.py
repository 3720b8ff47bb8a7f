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
from neuronforget.scores import cost, path, rows
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


def group(*prompts: tuple[int, ...]) -> list[Encoded]:
    """Prompts of one length with answers of several."""
    answers = (60, 22), (9,), (31, 5, 40)
    return [Encoded(i, prompt + answers[i], len(prompt), 0) for i, prompt in enumerate(prompts)]


def assert_is_the_plain_loop(lm: LM, examples: list[Encoded], tolerance: float) -> bool:
    """Both ways of running the steps, if the model has both; returns whether it has."""
    expected = torch.stack([naive(lm, collate([example], 0), 4) for example in examples])
    assert expected.abs().amax((1, 2)).min() > 1e-5
    with activations_only(lm):
        clean = rows.clean_run(lm, collate(examples, 0), -1)
        adds = rows.check_rows(lm, clean)
        for way in {False, adds}:
            slopes = _slopes(lm, clean, ((torch.arange(4) + 0.5) / 4).to(clean.logits), way)
            found = torch.stack([clean.acts[layer][:, 0] for layer in (0, 1)], 1) * slopes / 4
            assert (found - expected).abs().max() < tolerance * float(expected.abs().max().clamp_min(0.1))
    return adds


@pytest.mark.parametrize("family", FAMILIES)
def test_the_growing_batch_is_the_plain_loop(family: str) -> None:
    lm = lm_of(family)
    if family != "xglm":  # its attention overflows in float64
        lm.model.double()
    examples = group((11, 4, 4, 50, 18), (7, 35, 9, 21, 40), (3, 3, 57, 12, 6))
    adds = assert_is_the_plain_loop(lm, examples, 1e-6 if family != "xglm" else 1e-4)
    assert adds == (family not in ("gemma2", "gemma3", "olmo2"))  # in those a norm follows the MLP


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3", "bloom"])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_examples_that_share_a_pass_read_their_own_prompt(family: str, length: int) -> None:
    """Prompts of one token, which share nothing, and of more than the window."""
    lm = lm_of(family, **({"sliding_window": 4} if family in ("mistral", "gemma3") else {}))
    lm.model.double()
    drawn = torch.randint(3, 64, (3, length), generator=torch.Generator().manual_seed(length)).tolist()
    assert_is_the_plain_loop(lm, group(*map(tuple, drawn)), 1e-6)


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


@pytest.mark.parametrize("batch_size", [1, 2, 12, 1000])
def test_steps_and_examples_may_be_run_in_parts(
    batch_size: int, lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged prompts, some of one length: a pass holds a part of an example's steps, or some examples, or many."""
    pair = replace(corpus, examples=corpus.examples[:6] * 3), replace(corpus, examples=corpus.examples[6:] * 2)
    whole = nf.attribute(lm, *pair, score=scores.integrated, steps=5, progress=False)
    together: list[int] = []

    def counted(lm: LM, batch: Batch, position: int | None) -> rows.Clean:
        together.append(len(batch.index))
        return rows.clean_run(lm, batch, position)

    monkeypatch.setattr(path, "clean_run", counted)
    monkeypatch.setattr(cost, "PASS_BYTES", 0)
    parts = nf.attribute(lm, *pair, score=scores.integrated, steps=5, batch_size=batch_size, progress=False)
    assert sum(together) == 20 and max(together) == {1: 1, 2: 1, 12: 2, 1000: 6}[batch_size]
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(parts.error, whole.error, rtol=1e-4, atol=1e-8)


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
        on, off = (logits[0, 0].softmax(-1)[clean.targets[0, 0]] for logits in (clean.logits, off))
        assert float(found.values[i].sum()) == pytest.approx(float(on - off), rel=1e-3, abs=1e-9)


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_integrated_is_said_before_the_work(
    lm: LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.model, "forward", None)
    for steps, message in ((1, "two or more steps .20 is usual., found 1"), (2.5, "steps must be a whole number")):
        with pytest.raises(InputError, match=message):
            nf.attribute(lm, corpus, score=scores.integrated, steps=steps, progress=False)
    monkeypatch.setattr(cost, "free_bytes", lambda _device: 1000)
    with pytest.raises(InputError, match="too little memory for integrated: a pass of 32 rows"):
        nf.attribute(lm, corpus, score=scores.integrated, progress=False)
    many = replace(corpus, examples=corpus.examples * 3)
    with pytest.raises(InputError, match=f"a pass of {2 * 20 * 6} rows"):  # six have a prompt of one token
        nf.attribute(lm, many, score=scores.integrated, batch_size=1000, progress=False)
