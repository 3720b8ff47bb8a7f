"""Adapters: trained as by hand, merged into the edit, and gone from the model whatever happens."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor, nn

from neuronforget import erase, losses
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.edits import Edit
from neuronforget.erase.lowrank import LoRA, adapted
from neuronforget.erase.rates import default_lr
from neuronforget.errors import InputError
from neuronforget.losses import Outputs
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.neurons import Neurons
from neuronforget.train.stopping import Budget


@pytest.fixture
def forget(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[:3], "forget")


@pytest.fixture
def retain(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[3:], "retain")


def tune(lm: LM, *corpora: Corpus, **settings: Any) -> Edit:
    common = {"steps": 4, "batch_size": 4, "lr": 1e-2, "progress": False, "lora": 2}
    return erase.finetune(lm, *corpora, **{**common, **settings})


def snapshot(lm: LM) -> tuple[Any, ...]:
    """Everything about a model that adapters might leave changed."""
    modules = {name: (id(m), m.training, len(m._forward_hooks)) for name, m in lm.model.named_modules()}
    weights = {name: (id(p), p.requires_grad, p.grad is None) for name, p in lm.model.named_parameters()}
    return modules, weights, lm.digest(), sorted(vars(lm.model))


def test_the_edit_is_that_of_adapters_trained_by_hand(lm: LM, forget: Corpus) -> None:
    """Three steps of ascent on `W + 3 B A` at two maps a block, by functional calls and AdamW."""
    lora = LoRA(2, alpha=6.0, targets=("down_proj", "q_proj"))
    names = [n for n in lm.parameters if "down_proj.weight" in n or "q_proj.weight" in n]
    assert lora.names(lm) == names and len(names) == 4
    with adapted(lm, lora, names, seed=0) as adapters:
        pairs = {n: [v.detach().clone().requires_grad_() for v in adapters.values(n)] for n in names}
    assert all(a.shape[0] == 2 and a.abs().sum() > 0 and b.abs().sum() == 0 for a, b in pairs.values())
    batch = next(batches(encode(forget, lm.tokenizer), 8, lm.pad_id))
    start = {n: p.detach().clone() for n, p in lm.parameters.items()}
    optimizer = torch.optim.AdamW([v for pair in pairs.values() for v in pair], lr=1e-2, weight_decay=0.1)

    def weights() -> dict[str, Tensor]:
        return {n: w + 3.0 * pairs[n][1] @ pairs[n][0] if n in pairs else w for n, w in start.items()}

    for _ in range(3):
        optimizer.zero_grad()
        logits = torch.func.functional_call(lm.model, weights(), kwargs=batch.inputs).logits
        (-answer_nll(logits, batch).mean()).backward()
        optimizer.step()
    edit = tune(lm, forget, loss=losses.ga, steps=3, lora=lora, weight_decay=0.1, clip=None)
    assert {c.name for c in edit.changes} == set(names)
    for change in edit.changes:
        torch.testing.assert_close(change.after, weights()[change.name].detach(), rtol=1e-4, atol=1e-5)
        assert change.before is not None and torch.linalg.matrix_rank(change.after - change.before, rtol=1e-4) == 2


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "phi3", "bloom"])
def test_the_edited_model_computes_as_the_adapted_one(
    tokenizer: Any, forget: Corpus, retain: Corpus, family: str
) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    batch = next(batches(encode(forget, lm.tokenizer), 8, lm.pad_id))
    lora = LoRA(3)
    before, moved, names = snapshot(lm), [], lora.names(lm)
    with adapted(lm, lora, names, seed=1) as adapters, torch.no_grad():
        plain = lm.model(**batch.inputs).logits
        for i, name in enumerate(names):
            adapters.values(name)[1].normal_(0, 0.05, generator=torch.Generator().manual_seed(i))
        moved.append(lm.model(**batch.inputs).logits)
        with adapters.off():
            assert torch.equal(lm.model(**batch.inputs).logits, plain)
        changes = list(adapters.changes())
    assert snapshot(lm) == before
    with torch.no_grad():
        assert torch.equal(lm.model(**batch.inputs).logits, plain) and not torch.allclose(moved[0], plain, atol=1e-2)
        with Edit.build(lm, changes).on(lm):
            torch.testing.assert_close(lm.model(**batch.inputs).logits, moved[0], rtol=1e-4, atol=1e-4)


def test_a_map_that_computes_more_than_a_linear_one_is_left_out(lm: LM) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Router(nn.Linear):
        def forward(self, input: Tensor) -> Any:
            return super().forward(input), 0

    first, second = (block.self_attn for block in lm.model.model.layers)
    every = set(LoRA(2).names(lm))
    first.q_proj.__class__, second.q_proj.__class__ = Doubled, Router
    assert every - set(LoRA(2).names(lm)) == {"model.layers.1.self_attn.q_proj.weight"}


def test_the_model_is_as_it_was_whatever_happens(lm: LM, forget: Corpus, retain: Corpus) -> None:
    lm.model.train()
    next(lm.model.parameters()).requires_grad_(False)
    before = snapshot(lm)
    edit = tune(lm, forget, retain)
    assert snapshot(lm) == before and edit.certificate(lm).holds and snapshot(lm) == before

    def dies(outputs: Outputs) -> Tensor:
        outputs.forget.start_logits  # noqa: B018 (the adapters are off, and on again)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, loss=dies)
    assert snapshot(lm) == before
    with pytest.raises(InputError, match="the loss is nan at step 0"):
        tune(lm, forget, retain, loss=lambda outputs: losses.ga(outputs) * float("nan"))
    assert snapshot(lm) == before


def test_the_start_model_is_the_one_without_adapters(lm: LM, forget: Corpus, retain: Corpus) -> None:
    seen: list[Any] = []

    def watched(outputs: Outputs) -> Tensor:
        value = losses.npo(outputs)
        seen.append((outputs.forget.batch, outputs.forget.start_logits, outputs.forget.logits.detach()))
        return value

    edit = tune(lm, forget, retain, loss=watched)
    for step, (batch, start, now) in enumerate(seen):
        with torch.no_grad():
            assert torch.equal(start, lm.model(**batch.inputs).logits)
        assert torch.allclose(now, start, atol=1e-5) == (step == 0)
    plain = tune(lm, forget, retain, loss=losses.npo)
    assert all(torch.equal(a.after, b.after) for a, b in zip(edit.changes, plain.changes, strict=True))
    better = tune(lm, forget, loss=losses.learn)
    assert tune(lm, forget, loss=losses.whp, reinforced=better).certificate(lm).holds


def test_a_killed_run_ends_bit_equal(lm: LM, forget: Corpus, retain: Corpus, tmp_path: Path) -> None:
    calls: list[int] = []

    def npo_dies(outputs: Outputs) -> Tensor:
        calls.append(1)
        if len(calls) == 45:
            raise KeyboardInterrupt
        return losses.npo(outputs)

    settings: dict[str, Any] = {"steps": 25, "accumulate": 2, "budget": Budget(5.0, every=6)}
    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, loss=npo_dies, resume=tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == 1
    again = tune(lm, forget, retain, loss=npo_dies, resume=tmp_path, **settings)
    whole = tune(lm, forget, retain, loss=losses.npo, **settings)
    assert all(torch.equal(a.after, b.after) for a, b in zip(again.changes, whole.changes, strict=True))
    assert len(calls) == 45 + 10 and again.info["retain_rises"] == whole.info["retain_rises"]


def test_small_steps_add_up_in_bf16(lm: LM, forget: Corpus) -> None:
    narrow = LM(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer)
    before = snapshot(narrow)
    edit = tune(narrow, forget, loss=losses.ga, steps=20, lr=3e-3)
    exact = tune(lm, forget, loss=losses.ga, steps=20, lr=3e-3)
    assert snapshot(narrow) == before and edit.certificate(narrow).holds
    assert edit.summary()["norm"] == pytest.approx(exact.summary()["norm"], rel=0.1)
    for a, b in zip(edit.changes, exact.changes, strict=True):
        assert a.after.dtype == torch.bfloat16 and a.before is not None and b.before is not None
        x, y = (a.after.float() - a.before.float()).flatten(), (b.after - b.before).flatten()
        assert torch.nn.functional.cosine_similarity(x, y, dim=0) > 0.9


def test_rates_go_by_layer_and_default_to_ten_times_the_whole_models(lm: LM, forget: Corpus) -> None:
    edit = tune(lm, forget, loss=losses.ga, lr={0: 0.0, 1: 1e-2})
    assert edit.changes and all(".layers.1." in change.name for change in edit.changes)
    assert default_lr(lm, None, adapters=True) == pytest.approx(10 * default_lr(lm, None))
    assert tune(lm, forget, loss=losses.ga, lr=None).info["lr"] == pytest.approx(3e-3)


def test_what_cannot_be_adapted_is_refused(lm: LM, forget: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    some = Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])
    for settings, what in [
        ({"neurons": some}, "give one of the two"),
        ({"lora": 0}, "LoRA: rank must be a whole number >= 1"),
        ({"lora": LoRA(2, targets=("nothing",))}, "no linear map called nothing to adapt; the blocks have"),
    ]:
        with pytest.raises(InputError, match=what):
            tune(lm, forget, loss=losses.ga, **settings)
    lora = LoRA(2)
    names = lora.names(lm)
    with (
        adapted(lm, lora, names),
        pytest.raises(InputError, match="merge them into it first"),
        adapted(lm, lora, names),
    ):
        pass
    before = snapshot(lm)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"adapters need peft: pip install 'neuronforget\[adapters\]'"):
        tune(lm, forget, loss=losses.ga)
    assert snapshot(lm) == before
