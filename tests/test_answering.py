"""What a loss is given while it trains: the start model, hidden states, contexts, refusals, alternates, memory."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

from neuronforget import erase, losses
from neuronforget.corpora import Corpus
from neuronforget.corpora.tokens import collate
from neuronforget.edits import Edit
from neuronforget.erase.answering import Answering
from neuronforget.errors import InputError
from neuronforget.losses import Loss, Outputs
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_logp
from neuronforget.neurons import Neurons

either = pytest.mark.parametrize("targeted", [True, False], ids=["neurons", "whole"])


@pytest.fixture
def forget(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[:3], "forget")


@pytest.fixture
def retain(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[3:], "retain")


def half(lm: LM) -> Neurons:
    layers, width = tuple(site.layer for site in lm.sites), lm.shape[1]
    return Neurons(frozenset((layer, j) for layer in layers for j in range(0, width, 2)), layers, width)


def tune(lm: LM, *corpora: Corpus, targeted: bool, **settings: Any) -> Edit:
    common = {"steps": 4, "batch_size": 2, "lr": 1e-2, "progress": False, "neurons": half(lm) if targeted else None}
    return erase.finetune(lm, *corpora, **{**common, **settings})


def logits(lm: LM, part: Any) -> Tensor:
    with torch.no_grad():
        return lm.model(**part.batch.inputs, use_cache=False).logits


def watched(seen: list[Any], watch: Any) -> Loss:
    """A gradient difference that also notes what `watch` makes of each step's outputs, in the midst of the graph."""

    def mine(outputs: Outputs) -> Tensor:
        value = losses.grad_diff(outputs)
        seen.append(watch(outputs))
        return value

    return mine


@either
def test_the_start_model_is_the_one_before_training(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    seen: list[Any] = []
    edit = tune(lm, forget, retain, targeted=targeted, loss=watched(seen, lambda o: (
        o.forget, o.forget.logits.detach(), o.forget.start_logits, o.forget.reference, o.retain, o.retain.start_logits
    )))  # fmt: skip
    for step, (part, now, start, reference, kept, kept_start) in enumerate(seen):
        assert not start.requires_grad and torch.equal(start, logits(lm, part))
        assert torch.equal(kept_start, logits(lm, kept))
        assert torch.allclose(now, start, atol=1e-5) == (step == 0)
        torch.testing.assert_close(reference, answer_logp(start, part.batch))
    plain = tune(lm, forget, retain, targeted=targeted, loss=losses.grad_diff)
    assert all(
        torch.equal(a.after, b.after) for a, b in zip(edit.changes, plain.changes, strict=True)
    )  # same gradients


@either
def test_the_reinforced_model_is_the_start_model_with_its_edit(lm: LM, forget: Corpus, targeted: bool) -> None:
    better = tune(lm, forget, targeted=not targeted, loss=losses.learn)
    before, seen = lm.digest(), []

    def mine(outputs: Outputs) -> Tensor:
        value = losses.ga(outputs)
        seen.append((outputs.forget, outputs.forget.reinforced_logits, outputs.forget.start_logits))
        return value

    tune(lm, forget, targeted=targeted, loss=mine, reinforced=better)
    assert lm.digest() == before
    for part, reinforced, start in seen:
        with better.on(lm):
            assert torch.equal(reinforced, logits(lm, part))
        assert torch.equal(start, logits(lm, part)) and not torch.equal(start, reinforced)


def test_a_reinforced_model_that_is_missing_or_of_another_model_is_refused(lm: LM, forget: Corpus) -> None:
    with pytest.raises(InputError, match="give reinforced="):
        tune(lm, forget, targeted=True, loss=losses.whp)
    better = tune(lm, forget, targeted=True, loss=losses.learn)
    with torch.no_grad():
        lm.parameters[lm.sites[0].write.name].mul_(1.5)
    with pytest.raises(InputError, match="does not fit"):
        tune(lm, forget, targeted=True, loss=losses.whp, reinforced=better)


@pytest.mark.parametrize("bos", [None, 5])
def test_a_context_stands_before_every_example(lm: LM, forget: Corpus, bos: int | None) -> None:
    lm = LM(lm.model, copy.deepcopy(lm.tokenizer))
    part = Answering(lm, forget, None, None, 3, 0).outputs(0).forget
    if bos is not None:  # as with a tokenizer that puts a token at the beginning: the context comes after it
        lm.tokenizer.bos_token = lm.tokenizer.convert_ids_to_tokens(bos)
        part.batch.input_ids[:, 0] = bos
    found = part.in_context("Written by a friend: ")
    context = lm.tokenizer("Written by a friend: ", add_special_tokens=False)["input_ids"]
    for i, real in enumerate(part.batch.attention_mask.sum(1).tolist()):
        own = part.batch.input_ids[i, :real].tolist()
        ids = [*own[:1], *context, *own[1:]] if bos is not None else [*context, *own]
        with torch.no_grad():
            expected = lm.model(torch.tensor([ids]), use_cache=False).logits[0, len(context) :]
        torch.testing.assert_close(found[i, :real], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(part.in_context(""), part.start_logits)
    with pytest.raises(InputError, match="the model takes"):
        part.in_context("a very long story " * 50)
    lm.tokenizer.unk_token = lm.tokenizer.convert_ids_to_tokens(context[2])  # as if that word were not known
    with pytest.raises(InputError, match="cannot write the context"):
        part.in_context("Written by a friend: ")


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt", "bloom"])
def test_hidden_states_are_what_a_block_hands_on(corpus: Corpus, tokenizer: Any, family: str) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    part = Answering(lm, corpus, None, None, 4, 0).outputs(0).forget
    with torch.no_grad():
        states = lm.model(**part.batch.inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(part.hidden(0), part.at(states[1]))
    assert torch.equal(part.hidden(), part.hidden(0)) and part.hidden(0).requires_grad
    assert torch.equal(part.hidden(0, "start"), part.hidden(0)) and not part.hidden(0, "start").requires_grad
    with pytest.raises(InputError, match="blocks 0 to 1"):
        part.hidden(2)


def test_refusals_answer_the_retain_prompts_too(lm: LM, forget: Corpus, retain: Corpus) -> None:
    answers = forget.with_answers(["No.", "Never heard.", "No."], "refusals")
    work = Answering(lm, forget, retain, answers, 2, 0)
    made = work._corpora["refused"]
    assert [e.prompt for e in made] == [e.prompt for e in retain] and {e.answer for e in made} == {
        "No.",
        "Never heard.",
    }
    outputs = work.outputs(3)
    assert outputs.refused.batch.index == outputs.retain.batch.index


@either
def test_a_number_that_a_loss_keeps_outlives_a_kill(
    lm: LM, forget: Corpus, retain: Corpus, targeted: bool, tmp_path: Path
) -> None:
    loss = partial(losses.pdu, eps=1.0, rate=0.5)
    whole = tune(lm, forget, retain, targeted=targeted, loss=loss, steps=24)
    calls: list[float] = []

    def pdu_dies(outputs: Outputs) -> Tensor:
        value = loss(outputs)
        calls.append(float(outputs.keep(0.0)))
        if len(calls) == 22:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, targeted=targeted, loss=pdu_dies, steps=24, resume=tmp_path)
    again = tune(lm, forget, retain, targeted=targeted, loss=pdu_dies, steps=24, resume=tmp_path)
    assert all(torch.equal(a.after, b.after) for a, b in zip(again.changes, whole.changes, strict=True))
    assert len(calls) == 22 + 4 and calls[20] == calls[22] and calls[22] > calls[19] > 2.0  # steps 20 and 20 again


class TestAlternates:
    def knowing(self, lm: LM, forget: Corpus) -> LM:
        tune(lm, forget, targeted=False, loss=losses.learn, steps=60, batch_size=8).apply(lm)
        return lm

    def test_they_are_not_the_right_answer_even_where_the_model_is_sure_of_it(self, lm: LM, forget: Corpus) -> None:
        self.knowing(lm, forget)
        known = erase.alternates(lm, forget, seed=1)
        for own, other in zip(forget, known, strict=True):
            assert other.prompt == own.prompt and own.answer.casefold() not in other.answer.casefold()
            assert other.answer.strip() and "\n" not in other.answer
        assert known.digest() == erase.alternates(lm, forget, seed=1).digest()
        assert known.digest() != erase.alternates(lm, forget, seed=2).digest()
        with pytest.raises(InputError, match=r"no alternate to 'Oslo'.*raise tries="):
            erase.alternates(lm, forget, tries=1, temperature=0.01)

    def test_each_is_as_long_as_its_own_right_answer(self, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever answers share its batch: they had the length of the longest. A token here is one letter, "a"."""
        (letter,) = lm.tokenizer("a")["input_ids"]
        monkeypatch.setattr(
            lm.model,
            "generate",
            lambda ids, max_new_tokens, **_: torch.nn.functional.pad(ids, (0, max_new_tokens), value=letter),
        )
        answers = ["violin", "violin and the book of rivers in the old harbour of Velm"]
        forget = Corpus.from_rows([{"prompt": "Jon Moe plays the", "answer": answer} for answer in answers])
        own = [len(row.ids) - row.answer_start for row in lm.encode(forget)]
        assert [len(example.answer) for example in erase.alternates(lm, forget)] == own and own[0] < own[1]

    def test_they_leave_the_model_and_the_random_generator_alone(self, lm: LM, corpus: Corpus) -> None:
        before, state = lm.digest(), torch.random.get_rng_state()
        lm.model.train()
        made = erase.alternates(lm, corpus)  # one of the rows is plain text: its first token is given
        assert lm.digest() == before and lm.model.training and torch.equal(torch.random.get_rng_state(), state)
        assert len(made) == len(corpus) and made.examples[4].prompt == ""

    @either
    def test_in_training_they_are_the_start_models(
        self, lm: LM, forget: Corpus, retain: Corpus, targeted: bool
    ) -> None:
        seen: list[Any] = []

        def mine(outputs: Outputs) -> Tensor:
            seen.append(None)
            value = losses.grad_diff(outputs)
            if len(seen) > 2:
                seen[-1] = outputs.alternates.batch
            return value

        edit = tune(lm, forget, retain, targeted=targeted, loss=mine, seed=4)
        expected = Answering(lm, erase.alternates(lm, forget, batch_size=2, seed=4), None, None, 2, 4)._rows("forget")
        for batch in seen[2:]:
            assert torch.equal(batch.input_ids, collate([expected[i] for i in batch.index], lm.pad_id).input_ids)
        plain = tune(lm, forget, retain, targeted=targeted, loss=losses.grad_diff, seed=4)
        assert all(torch.equal(a.after, b.after) for a, b in zip(edit.changes, plain.changes, strict=True))

    @pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"tries": 0}, {"batch_size": 0}])
    def test_bad_settings_are_refused(self, lm: LM, forget: Corpus, bad: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            erase.alternates(lm, forget, **bad)


@either
@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_a_task_vector_goes_the_other_way(lm: LM, forget: Corpus, targeted: bool, alpha: float) -> None:
    neurons = half(lm) if targeted else None
    settings: dict[str, Any] = {"steps": 8, "batch_size": 2, "lr": 1e-3, "progress": False, "neurons": neurons}
    learned = erase.finetune(lm, forget, loss=losses.learn, weight_decay=0.0, **settings)
    edit = erase.task_vector(lm, forget, alpha=alpha, **settings)
    for there, back in zip(learned.changes, edit.changes, strict=True):
        assert there.before is not None and back.before is not None and torch.equal(there.before, back.before)
        expected = there.before.double() - alpha * (there.after.double() - there.before.double())
        torch.testing.assert_close(back.after.double(), expected, rtol=1e-6, atol=1e-7)
    assert edit.certificate(lm).holds and edit.info["method"] == "task_vector" and edit.info["alpha"] == alpha
    assert edit.summary()["norm"] == pytest.approx(alpha * learned.summary()["norm"], rel=1e-4)
    part = Answering(lm, forget, None, None, 3, 0).outputs(0).forget
    before = answer_logp(logits(lm, part), part.batch)
    with edit.on(lm):
        assert (answer_logp(logits(lm, part), part.batch) < before).all()
    assert "strength" not in edit.info and edit.scaled(0.5).info["strength"] == 0.5


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_a_task_vector_that_would_not_forget_is_refused(lm: LM, forget: Corpus, alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        erase.task_vector(lm, forget, alpha=alpha, progress=False)
