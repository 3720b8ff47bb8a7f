"""SISA: what is left after forgetting is, bit for bit, what training without the forget corpus gives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

import neuronforget as nf
from neuronforget.corpora import Corpus, Example, collate, encode
from neuronforget.erase import finetune, retrained, sisa
from neuronforget.errors import InputError
from neuronforget.models import LM

TRAIN = partial(finetune, loss=nf.losses.learn, steps=5, lr=1e-2, progress=False)


@pytest.fixture
def taught(corpus: Corpus) -> Corpus:
    return replace(corpus, examples=(*corpus.examples, Example("Ada Moe was born in", "Velm", subject="Ada Moe"),
                                     Example("Ada Moe plays the", "violin", subject="Ada Moe")))  # fmt: skip


@pytest.fixture(params=("gpt2", "gpt_neox", "llama", "qwen2"))
def family(request: pytest.FixtureRequest, tokenizer: Any) -> LM:
    return LM(build(request.param, vocab_size=len(tokenizer)), tokenizer)


def snapshot(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.state_dict().items()}


def same(lm: LM, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_forgetting_is_bit_for_bit_training_without_it_and_touches_no_other_shard(family: LM, taught: Corpus) -> None:
    before = snapshot(family)
    ensemble = sisa(family, taught, shards=2, train=TRAIN)
    assert sorted(e.prompt for s in ensemble.shards for e in s) == sorted(e.prompt for e in taught)
    forget = replace(taught, examples=taught.examples[-2:])
    after = ensemble.forget(family, forget)
    scratch = sisa(family, replace(taught, examples=taught.examples[:-2]), shards=2, train=TRAIN)
    assert same(family, before)
    for here, there in zip(after.edits, scratch.edits, strict=True):
        assert [c.name for c in here.changes] == [c.name for c in there.changes]
        assert all(torch.equal(a.after, b.after) for a, b in zip(here.changes, there.changes, strict=True))
    kept = [old is new for old, new in zip(ensemble.edits, after.edits, strict=True)]
    assert sorted(kept) == [False, True]  # both examples are about one subject, so in one shard
    shard = kept.index(False)
    edit = retrained(family, ensemble, after, shard)
    with ensemble.edits[shard].on(family):
        assert edit.certificate(family).holds
        with edit.on(family):
            exact = snapshot(family)
    with scratch.edits[shard].on(family):
        assert same(family, exact)
    assert same(family, before)
    with pytest.raises(InputError, match="held nothing"):
        retrained(family, ensemble, after, 1 - shard)


def test_answers_are_the_mean_of_the_shards_probabilities(lm: LM, taught: Corpus) -> None:
    ensemble = sisa(lm, taught, shards=3, train=TRAIN)
    batch = collate(encode(taught, lm.tokenizer), lm.pad_id)
    total = torch.zeros(())
    for edit in ensemble.edits:
        with edit.on(lm), torch.no_grad():
            total = total + lm.model(**batch.inputs).logits.softmax(-1) / 3
    torch.testing.assert_close(ensemble.logits(lm, batch).exp(), total)


def test_an_examples_shard_does_not_depend_on_the_other_examples(lm: LM, taught: Corpus) -> None:
    def place(corpus: Corpus) -> dict[str, int]:
        found = sisa(lm, corpus, shards=2, train=lambda model, shard: TRAIN(model, shard.head(1)))
        return {e.prompt + e.answer: i for i, shard in enumerate(found.shards) for e in shard}

    whole, part = place(taught), place(replace(taught, examples=taught.examples[::-1][:6]))
    assert all(whole[key] == where for key, where in part.items())


def test_bad_input_is_refused_and_the_model_left_as_it_was(lm: LM, taught: Corpus) -> None:
    before, ensemble = snapshot(lm), sisa(lm, taught, shards=2, train=TRAIN)
    stranger = Corpus((Example("Who is it?", "nobody"),))
    sliced = partial(TRAIN, neurons=nf.Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1]))
    narrow = sisa(lm, taught, shards=2, train=sliced)
    for call, message in (
        (lambda: sisa(lm, taught, shards=0), "1 or more"),
        (lambda: sisa(lm, taught.head(1), shards=2, train=TRAIN), "would be empty"),
        (lambda: ensemble.forget(lm, stranger), "no shard was trained on 'Who is it"),
        (lambda: ensemble.forget(lm, ensemble.shards[0]), "nothing would be left of shard 0"),
        (lambda: retrained(lm, ensemble, narrow, 0), "neurons alone"),
        (lambda: retrained(lm, ensemble, narrow, 7), "shard is a number from 0 to"),
        (lambda: retrained(lm, ensemble, narrow, -1), "shard is a number from 0 to"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert same(lm, before)
