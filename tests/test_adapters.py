"""LLMEraser: what adapters learned, merged and undone; and its solver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase import Adapter, LoRA, learn_adapter, llm_eraser
from neuronforget.erase.adapters import standing_in
from neuronforget.erase.curvature import Objective, adam
from neuronforget.erase.influence import parts_of, undone
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen

ARCHITECTURES = ("gpt2", "gpt_neox", "llama", "qwen2")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def snapshot(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.state_dict().items()}


def same(lm: LM, before: dict[str, Tensor]) -> bool:
    now = lm.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def split(corpus: Corpus) -> tuple[Corpus, Corpus]:
    return replace(corpus, examples=corpus.examples[:2], name="f"), replace(corpus, examples=corpus.examples[2:])


def loss_of(lm: LM, corpus: Corpus) -> float:
    return float(nf.evaluation.measure(lm, corpus, [nf.metrics.nll])["nll"].mean())


@pytest.fixture(params=ARCHITECTURES)
def family(request: pytest.FixtureRequest, tokenizer: Any) -> LM:
    return LM(build(request.param, vocab_size=len(tokenizer)), tokenizer)


def learned(lm: LM, corpus: Corpus) -> Adapter:
    """An adapter of rank 2 trained on a corpus, merged into the model."""
    adapter = learn_adapter(lm, corpus, lora=2, steps=8, lr=2e-2, progress=False)
    adapter.edit(lm).apply(lm)
    return adapter


def test_a_learned_adapter_leaves_the_model_as_it_was_and_merges_to_what_it_computed(
    family: LM, corpus: Corpus, tmp_path: Path
) -> None:
    before, start = snapshot(family), loss_of(family, corpus)
    adapter = learn_adapter(family, corpus, lora=2, steps=8, lr=2e-2, progress=False)
    assert same(family, before)
    edit = adapter.edit(family)
    with edit.on(family):
        assert loss_of(family, corpus) < start - 0.1
    assert same(family, before) and edit.certificate(family).holds
    trained = nf.erase.finetune(
        family, corpus, loss=nf.losses.learn, lora=2, steps=8, lr=2e-2, weight_decay=0.0, progress=False
    )
    own = {change.name: change for change in edit.changes}
    for change in trained.changes:
        torch.testing.assert_close(own[change.name].after, change.after, rtol=1e-4, atol=1e-5)


def test_an_adapter_is_read_from_a_folder_that_peft_saved(family: LM, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    name = family.sites[0].write.name.removesuffix(".weight")
    tokens = torch.tensor([[5, 9, 11, 3, 7]])
    before = snapshot(family)
    wrapped: Any = get_peft_model(family.model, LoraConfig(r=3, lora_alpha=7, target_modules=[name]))
    for key, value in wrapped.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(len(key)))
    with torch.no_grad():
        expected = wrapped(tokens).logits
    wrapped.save_pretrained(tmp_path)
    lm = LM(wrapped.unload(), family.tokenizer)
    assert same(lm, before)
    adapter = Adapter.load(tmp_path)
    assert adapter.scale == pytest.approx(7 / 3) and list(adapter.values) == [f"{name}.weight"]
    with adapter.edit(lm).on(lm), torch.no_grad():
        torch.testing.assert_close(lm.model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="no such file"):
        Adapter.load(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "use_dora": true}')
    with pytest.raises(InputError, match="not a plain LoRA"):
        Adapter.load(tmp_path)


def test_an_adapter_that_was_saved_is_read_back_bit_for_bit_and_by_peft(
    family: LM, corpus: Corpus, tmp_path: Path
) -> None:
    from peft import PeftModel

    tokens = torch.tensor([[5, 9, 11, 3, 7]])
    adapter = learn_adapter(family, corpus, lora=2, steps=3, lr=2e-2, progress=False)
    adapter.save(tmp_path / "adapter")
    read = Adapter.load(tmp_path / "adapter")
    assert read.scale == adapter.scale and set(read.values) == set(adapter.values)
    for name, pair in adapter.values.items():
        assert all(torch.equal(x, y) for x, y in zip(pair, read.values[name], strict=True))
    with adapter.edit(family).on(family), torch.no_grad():
        merged = family.model(tokens).logits
    with torch.no_grad():
        wrapped: Any = PeftModel.from_pretrained(family.model, tmp_path / "adapter")
        torch.testing.assert_close(wrapped(tokens).logits, merged, rtol=1e-4, atol=1e-4)
    wrapped.unload()


def test_adam_solves_what_an_explicit_solver_solves_and_a_bad_solution_is_refused() -> None:
    roots, b = [normal(i, 30, 12) for i in range(3)], normal(9, 12)
    pieces = [root.T @ root / 90 for root in roots]
    whole = torch.stack(pieces).sum(0) + 0.1 * torch.eye(12).double()
    batches = [lambda v, m=piece: m @ v for piece in pieces]
    found = adam(batches, b, damping=0.1, steps=2000, lr=0.1, tolerance=0.05)
    expected = torch.linalg.solve(whole, b)
    assert float((found.x - expected).norm() / expected.norm()) < 0.05
    assert found.residual == pytest.approx(float((whole @ found.x - b).norm() / b.norm()))
    with pytest.raises(InputError, match="relative residual"):
        adam(batches, b, damping=0.1, steps=3, lr=0.01, tolerance=0.05)


def test_factors_stand_in_for_those_merged_and_their_gradient_is_that_of_the_weights(
    family: LM, corpus: Corpus
) -> None:
    adapter, forget = learned(family, corpus), split(corpus)[0]
    tokens = torch.tensor([[5, 9, 11, 3, 7]])
    plain = family.model(tokens).logits.detach()
    with frozen(family), torch.enable_grad():
        with standing_in(family, adapter) as values:
            torch.testing.assert_close(family.model(tokens).logits, plain, rtol=1e-4, atol=1e-4)
            found = Objective(values, parts_of(family, forget, len(forget), 8)).gradient()
        weights = [family.parameters[name].requires_grad_() for name in adapter.values]
        slopes = Objective(weights, parts_of(family, forget, len(forget), 8))
        full = slopes.shaped(slopes.gradient())
    expected = []
    for slope, weight, (a, b) in zip(full, weights, adapter.values.values(), strict=True):
        slope = slope if slope.shape == (b.shape[0], a.shape[1]) and weight.ndim == 2 and not gpt2(family) else slope.T
        expected += [adapter.scale * b.T @ slope, adapter.scale * slope @ a.T]
    flat = torch.cat([e.reshape(-1) for e in expected])
    assert float((found - flat).norm() / flat.norm()) < 1e-3


def gpt2(lm: LM) -> bool:
    return type(lm.model).__name__.startswith("GPT2")


def test_the_update_solves_the_explicit_system_of_the_factors(lm: LM, corpus: Corpus) -> None:
    forget, retain = split(corpus)
    adapter = learn_adapter(lm, corpus, lora=LoRA(1, targets=("down_proj",)), steps=8, lr=2e-2, progress=False)
    adapter.edit(lm).apply(lm)
    edit = llm_eraser(lm, forget, retain, adapter, damping=0.5, steps=600, lr=0.5, tolerance=1e-2)
    with frozen(lm), torch.enable_grad(), standing_in(lm, adapter) as values:
        objective = Objective(values, parts_of(lm, retain, len(retain), 8))
        b = len(forget) / len(retain) * undone(lm, values, forget, None, 8, 0)
        matrix = torch.stack([objective.product(u, "gauss_newton") for u in torch.eye(len(b))])
        x = torch.linalg.solve(matrix + 0.5 * torch.eye(len(b)), b)
        step = objective.shaped(x)
    for change, da, db, (a, b_old) in zip(edit.changes, step[::2], step[1::2], adapter.values.values(), strict=True):
        expected = adapter.scale * ((b_old + db) @ (a + da) - b_old @ a)
        found = change.after - change.before  # type: ignore[operator]
        assert float((found - expected).norm() / expected.norm()) < 0.05
    assert edit.info["residual"] <= 1e-2


@pytest.mark.slow
def test_an_update_raises_the_forget_loss_and_is_undone_bit_for_bit(family: LM, corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    adapter, (forget, retain) = learned(family, corpus), split(corpus)
    before, start = snapshot(family), loss_of(family, forget)
    edit = llm_eraser(family, forget, retain, adapter, damping=1.0, steps=150, lr=0.5)
    assert same(family, before) and edit.info["scope"] == "full" and edit.certificate(family).holds
    edit.save(tmp_path / "edit.safetensors")
    with Edit.load(tmp_path / "edit.safetensors").on(family):
        assert loss_of(family, forget) > start
    assert same(family, before)
    edit.export(family, tmp_path / "out")
    with edit.on(family), torch.no_grad():
        expected = family.model(torch.tensor([[5, 9, 11]])).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert torch.equal(plain(torch.tensor([[5, 9, 11]])).logits, expected)


def test_bad_input_is_refused_and_the_model_left_as_it_was(lm: LM, corpus: Corpus, monkeypatch: Any) -> None:
    adapter, (forget, retain) = learned(lm, corpus), split(corpus)
    before = snapshot(lm)
    name, (a, b) = next(iter(adapter.values.items()))
    for call, message in (
        (lambda: llm_eraser(lm, forget, forget, adapter), "share"),
        (lambda: llm_eraser(lm, forget, retain, adapter, steps=1), "relative residual"),
        (lambda: llm_eraser(lm, forget, retain, Adapter({name: (a[:, 1:], b)}, 1.0)), "another model"),
        (lambda: llm_eraser(lm, forget, retain, Adapter({"nowhere.weight": (a, b)}, 1.0)), "another model"),
        (lambda: Adapter({"nowhere.weight": (a, b)}, 1.0).edit(lm), "another model"),
        (lambda: learn_adapter(lm, forget, lora=2, orthogonal_to={name: torch.eye(a.shape[1])}), "0 directions left"),
    ):
        with pytest.raises(InputError, match=message):
            call()
        assert same(lm, before)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match="need peft"):
        learn_adapter(lm, forget, lora=2)
    assert same(lm, before)
