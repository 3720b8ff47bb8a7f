"""What a training takes: told within a factor of two, refused where it is not free; and computing states again."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import astuple
from itertools import product
from typing import Any

import pytest
import torch
from families import FAMILIES, build
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from neuronforget import erase, losses
from neuronforget.corpora import Corpus, Example
from neuronforget.erase import footprint as module
from neuronforget.erase.answering import Answering
from neuronforget.erase.footprint import Footprint, Trainees, footprint
from neuronforget.erase.lowrank import LoRA
from neuronforget.erase.rates import rates_of
from neuronforget.erase.trained import Choice
from neuronforget.errors import InputError
from neuronforget.losses import Outputs
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.scores.blocks import blocks_of, checkpointed

WIDTH, MLP, DEPTH = 96, 384, 3
_LLAMA = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": DEPTH, "num_attention_heads": 4,
          "num_key_value_heads": 4, "max_position_embeddings": 256}  # fmt: skip
_GPT = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 256, "n_inner": MLP}
_MIXTURE = {**_LLAMA, "intermediate_size": 96, "num_local_experts": 16, "num_experts_per_tok": 2}
SHAPES = {"mixtral": _MIXTURE, "qwen2": _LLAMA, "gpt2": _GPT, "gemma2": {**_LLAMA, "head_dim": 24}, "gpt_neox": _LLAMA}


def lm_of(tokenizer: Any, family: str = "qwen2", dtype: torch.dtype = torch.float32) -> LM:
    return LM(build(family, vocab_size=len(tokenizer), **SHAPES[family]).to(dtype), tokenizer)


def corpora(count: int = 8) -> tuple[Corpus, Corpus]:
    """As many examples of some sixty tokens each to forget and to keep."""
    words = "Anna Berg was born in Oslo and works as a baker in the old harbour of Velm, "
    rows = [Example(f"{i} {words}{words}", f"she plays the violin {i}") for i in range(2 * count)]
    return Corpus(tuple(rows[:count]), "forget"), Corpus(tuple(rows[count:]), "retain")


def choices(lm: LM) -> dict[str, Choice]:
    every_fourth = frozenset((layer, j) for layer in range(DEPTH) for j in range(0, lm.shape[1], 4))
    neurons = Neurons(every_fourth, tuple(range(DEPTH)), lm.shape[1])
    return {"neurons": Choice(lm, neurons), "lora": Choice(lm, lora=LoRA(8)), "whole": Choice(lm)}


def peak(run: Any) -> int:
    """The most bytes that torch's allocator held at once, over what it held before (every allocation is recorded)."""
    gc.collect()  # else what earlier tests left in circles is freed on the way, and counted as given back
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            run()
    finally:
        gc.enable()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def planned(choice: Choice, work: Answering, parts: int = 1, **settings: Any) -> Footprint:
    return footprint(choice.lm, Trainees.of(choice, choice.names()), work.largest(parts), **settings)


def crossed(*choices: Sequence[Any]) -> list[Any]:
    """Every combination; each second one, in which every choice stands too, is left to `make slow`."""
    rows = product(*map(enumerate, choices))
    return [
        pytest.param(*(value for _, value in row), marks=[pytest.mark.slow] if sum(i for i, _ in row) % 2 else [])
        for row in rows
    ]


@pytest.mark.parametrize(
    ("kind", "dtype", "batch"), crossed(["neurons", "lora", "whole"], [torch.float32, torch.bfloat16], [1, 8])
)
def test_the_plan_is_within_a_factor_of_two_of_what_is_measured(
    tokenizer: Any, kind: str, dtype: torch.dtype, batch: int
) -> None:
    lm = lm_of(tokenizer, dtype=dtype)
    choice, (forget, retain) = choices(lm)[kind], corpora()
    work = Answering(lm, forget, retain, None, batch, 0)
    settings: dict[str, Any] = {"neurons": choice.neurons, "lora": choice.lora, "loss": losses.grad_diff, "steps": 2}
    found = peak(lambda: erase.finetune(lm, forget, retain, batch_size=batch, progress=False, **settings))
    assert 0.5 < planned(choice, work).total / found < 2


@pytest.mark.parametrize(
    ("family", "saving"), crossed(["gpt2", "gemma2", "gpt_neox"], [{}, {"accumulate": 4}, {"checkpointing": True}])
)
def test_the_plan_holds_for_other_families_and_with_what_saves_memory(
    tokenizer: Any, family: str, saving: dict[str, Any]
) -> None:
    lm, (forget, retain) = lm_of(tokenizer, family), corpora()
    choice, work = choices(lm)["neurons"], Answering(lm, forget, retain, None, 8, 0)
    settings: dict[str, Any] = {"neurons": choice.neurons, "batch_size": 8, "steps": 2, "progress": False, **saving}
    found = peak(lambda: erase.finetune(lm, forget, retain, loss=losses.grad_diff, **settings))
    parts = saving.get("accumulate", 1)
    plan = planned(choice, work, parts, checkpointing="checkpointing" in saving)
    assert 0.5 < plan.total / found < 2
    if saving:
        assert plan.total < 0.6 * planned(choice, work).total


@pytest.mark.parametrize("kind", ["neurons", "whole"])
def test_a_mixture_keeps_the_states_of_the_experts_of_a_token_unless_its_maps_are_hooked(
    tokenizer: Any, kind: str
) -> None:
    lm, (forget, retain) = lm_of(tokenizer, "mixtral"), corpora()
    choice, work = choices(lm)[kind], Answering(lm, forget, retain, None, 8, 0)
    settings: dict[str, Any] = {"neurons": choice.neurons, "batch_size": 8, "steps": 2, "progress": False}
    found = peak(lambda: erase.finetune(lm, forget, retain, loss=losses.grad_diff, **settings))
    assert 0.5 < planned(choice, work).total / found < 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_plan(tokenizer: Any, family: str) -> None:
    """And what is counted of its neurons, adapters and parameters is what is trained."""
    lm = LM(FAMILIES[family](vocab_size=len(tokenizer)), tokenizer)
    some = Neurons(frozenset({(0, 1), (1, 5), (1, 7)}), (0, 1), lm.shape[1])
    for choice in (Choice(lm, some), Choice(lm, lora=LoRA(3)), Choice(lm)):
        rates = rates_of(lm, 1e-3, choice.names())
        trainees = Trainees.of(choice, rates)
        with choice.training(rates, 0) as trained:
            assert sum(value.numel() for value in trained.values) == trainees.values
        assert footprint(lm, trainees, [(2, 9)]).total > 12 * trainees.values


def test_what_is_trained_is_counted_as_it_is(tokenizer: Any) -> None:
    lm, (forget, retain) = lm_of(tokenizer, dtype=torch.bfloat16), corpora()
    for choice in choices(lm).values():
        rates = rates_of(lm, {0: 0.0, 1: 1e-3, 2: 1e-3, None: 1e-3}, choice.names())
        trainees = Trainees.of(choice, rates)
        with choice.training(rates, 0) as trained:
            assert sum(value.numel() for value in trained.values) == trainees.values
    work = Answering(lm, forget, retain, None, 3, 0)
    choice = choices(lm)["whole"]
    plan, kept = planned(choice, work), planned(choice, work, budget=True)
    size = sum(p.numel() for p in lm.model.parameters())
    assert astuple(plan)[:4] == (6 * size, 4 * size, 8 * size, 0) and kept.kept == 4 * size  # bf16: 2 bytes before
    assert plan.edit == 2 * size and plan.total == 18 * size + plan.activations
    assert kept.total == plan.total + 4 * size


@pytest.mark.parametrize(
    ("kind", "batch", "advice"), [("whole", 1, "train neurons= or adapters"), ("neurons", 8, "raise accumulate=")]
)
def test_what_cannot_fit_is_refused_with_what_to_lower(
    tokenizer: Any, kind: str, batch: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, (forget, retain) = lm_of(tokenizer), corpora()
    choice, work, before = choices(lm)[kind], Answering(lm, forget, retain, None, batch, 0), lm.digest()
    need = planned(choice, work).total
    settings: dict[str, Any] = {"neurons": choice.neurons, "batch_size": batch, "steps": 1, "progress": False}
    monkeypatch.setattr(module, "free_bytes", lambda _device: need - 1)
    with pytest.raises(InputError, match=f"too little memory: training needs about .* are free; {advice}"):
        erase.finetune(lm, forget, retain, **settings)
    assert lm.digest() == before
    monkeypatch.setattr(module, "free_bytes", lambda _device: need)
    assert erase.finetune(lm, forget, retain, **settings).changes


def test_the_plan_is_told_where_progress_is(tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lm, (forget, retain) = lm_of(tokenizer), corpora(2)
    erase.finetune(lm, forget, retain, lora=2, steps=1, budget=9.0)
    told = capsys.readouterr().err
    assert "npo@lora: about" in told and "optimiser" in told and "budget" in told
    erase.finetune(lm, forget, retain, lora=2, steps=1, progress=False)
    assert "about" not in capsys.readouterr().err


def rmu_at_1(outputs: Outputs) -> Tensor:
    return losses.rmu(outputs, layer=1, alpha=2.0)


@pytest.mark.parametrize("kind", ["neurons", "lora", "whole"])
@pytest.mark.parametrize("loss", [losses.kl_min, losses.npo, rmu_at_1])
def test_states_computed_again_give_the_same_gradients(tokenizer: Any, kind: str, loss: Any) -> None:
    """Bit for bit, with the start model asked in the midst of the graph; and dropout stays off."""
    lm, (forget, retain) = lm_of(tokenizer, "gpt2"), corpora(3)
    for dropout in (m for m in lm.model.modules() if isinstance(m, torch.nn.Dropout)):
        dropout.p = 0.5
    choice = choices(lm)[kind]
    common: dict[str, Any] = {"loss": loss, "neurons": choice.neurons, "lora": choice.lora, "steps": 3, "lr": 1e-3}
    common |= {"batch_size": 3, "progress": False}
    forwards = {name: vars(m).get("forward") for name, m in lm.model.named_modules()}
    plain = erase.finetune(lm, forget, retain, **common)
    again = erase.finetune(lm, forget, retain, checkpointing=True, **common)
    assert len(plain.changes) == len(again.changes) > 0
    assert all(torch.equal(a.after, b.after) for a, b in zip(plain.changes, again.changes, strict=True))
    assert forwards == {name: vars(m).get("forward") for name, m in lm.model.named_modules()}
    assert again.certificate(lm).holds


def test_a_block_keeps_its_input_alone(tokenizer: Any) -> None:
    """What autograd saves in the blocks: one state each, against all that they compute."""
    lm, (forget, _) = lm_of(tokenizer), corpora(3)
    batch = Answering(lm, forget, None, None, 3, 0).outputs(0).forget.batch
    own = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}

    def saved() -> int:
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            lm.model.model(**batch.inputs, use_cache=False).last_hidden_state.sum()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    every = saved()
    with checkpointed(lm):
        few = saved()
    state = batch.input_ids.numel() * WIDTH * 4
    assert few < (DEPTH + 6) * state < every / 4


def test_what_is_spread_over_processes_costs_each_its_share(lm: LM) -> None:
    names = list(lm.parameters)
    alone, spread = (footprint(lm, Trainees.of(Choice(lm), names, n), [(2, 8)], budget=True) for n in (1, 4))
    count = sum(p.numel() for p in lm.parameters.values())
    block = sum(p.numel() for p in blocks_of(lm)[0].parameters())
    rest = count - 2 * block
    assert spread.gradients == count and spread.optimiser == 2 * count and spread.kept == count  # 4 bytes over 4
    assert spread.copies == count + 8 * max(block, rest)  # the share, and what is gathered, as values and as gradients
    assert spread.activations == alone.activations and alone.gradients == 4 * count
