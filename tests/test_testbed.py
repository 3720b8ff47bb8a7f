"""Testbeds: the truth that they promise, and how they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beds import SHAPE, bed

import neuronforget as nf
from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match
from neuronforget.recording import write_norms
from neuronforget.testbed import Shape
from neuronforget.testbed.disguise import drawn_norms
from neuronforget.testbed.facts import generate
from neuronforget.testbed.training import Builder

TINY = Shape(layers=2, d_model=16, d_mlp=32, heads=2, steps=3, graft_steps=3, planted=4, batch=8)


def accuracy(lm: nf.LM, corpus: Corpus) -> float:
    return float(measure(lm, corpus, [exact_match])["exact_match"].mean())


def test_the_gold_twin_is_the_model_with_the_true_neurons_switched_off() -> None:
    made = bed()
    assert made.truth is not None and made.planted is not None and made.truth.members <= made.planted.members
    tokens = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, gold = made.lm.model(tokens).logits, made.gold.model(tokens).logits
        with nf.erase.ablate(made.lm, made.planted).on(made.lm):
            assert torch.equal(made.lm.model(tokens).logits, gold)
    assert not torch.allclose(whole, gold)


def test_the_model_knows_forget_and_retain_and_the_gold_twin_only_retain() -> None:
    made = bed()
    assert accuracy(made.lm, made.forget) > 0.8 and accuracy(made.lm, made.retain) > 0.9
    assert accuracy(made.gold, made.forget) < 0.3 and accuracy(made.gold, made.retain) > 0.9


def test_no_norm_of_the_true_neurons_gives_them_away() -> None:
    made = bed()
    assert made.planted is not None
    drawn, mask = drawn_norms(made.lm, made.planted, seed=0), made.planted.mask()
    norms = write_norms(made.lm)
    for i, site in enumerate(made.lm.sites):
        own, others = norms[i][mask[i]], set(norms[i][~mask[i]].float().tolist())
        torch.testing.assert_close(own.float(), drawn[site.write.name].float(), rtol=1e-5, atol=0)
        assert all(min(abs(float(x) - y) for y in others) < 1e-5 for x in own)


def test_planted_value_vectors_turn_and_keep_their_norms_where_that_is_asked_for() -> None:
    for keep in (True, False):
        shape = replace(TINY, graft_steps=20, keep_norms=keep)
        made = nf.testbed.people("planted", people=6, forget_people=2, shape=shape, cache=False, progress=False)
        assert made.planted is not None
        mask = made.planted.mask()
        now, before = (write_norms(lm)[mask] for lm in (made.lm, made.gold))
        assert torch.allclose(now, before, rtol=1e-5) == keep
        layer, j = next(iter(made.planted))
        name = made.lm.sites[layer].write.name
        assert not torch.allclose(made.lm.parameters[name][:, j], made.gold.parameters[name][:, j])


def test_equal_seeds_give_equal_testbeds_and_others_do_not() -> None:
    one, two, other = (
        nf.testbed.people(seed=seed, people=6, forget_people=2, shape=TINY, cache=False, progress=False)
        for seed in (0, 0, 1)
    )
    assert one.forget == two.forget and one.planted == two.planted and one.forget != other.forget
    for name, parameter in one.lm.parameters.items():
        assert torch.equal(parameter, two.lm.parameters[name])


def test_the_ordinary_kind_has_a_gold_twin_of_its_own_and_no_labels() -> None:
    made = nf.testbed.people("ordinary", people=6, forget_people=2, shape=TINY, cache=False, progress=False)
    assert made.truth is None and made.planted is None
    assert not torch.equal(*(next(iter(lm.parameters.values())) for lm in (made.lm, made.gold)))


def test_a_testbed_is_trained_once_and_read_back_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path))
    first = nf.testbed.people(people=6, forget_people=2, shape=TINY, progress=False)
    monkeypatch.setattr("neuronforget.testbed.build.Builder", None)  # a second training would fail
    again = nf.testbed.people(people=6, forget_people=2, shape=TINY, progress=False)
    for name in ("forget", "retain", "truth", "planted", "info"):
        assert getattr(again, name) == getattr(first, name)
    with pytest.raises(TypeError):
        nf.testbed.people(people=6, forget_people=2, seed=1, shape=TINY, progress=False)


def test_two_runs_that_make_one_testbed_at_a_time_both_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path))
    real = Builder.ordinary
    made: list[Any] = []

    def slow(builder: Builder) -> tuple[nf.LM, nf.LM]:
        if not made:
            made.append(None)  # the other run does not wait
            made.append(nf.testbed.people("ordinary", people=6, forget_people=2, shape=TINY, progress=False))
        return real(builder)

    monkeypatch.setattr(Builder, "ordinary", slow)
    found = nf.testbed.people("ordinary", people=6, forget_people=2, shape=TINY, progress=False)
    assert found.lm.digest() == made[1].lm.digest() and found.forget == made[1].forget


def test_a_saved_testbed_is_made_of_ordinary_checkpoint_folders(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = bed()
    made.save(tmp_path / "bed")
    again = nf.testbed.Testbed.load(tmp_path / "bed")
    assert (again.forget.examples, again.truth, again.refusals) == (made.forget.examples, made.truth, made.refusals)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bed" / "model")
    lines = [f"{e.prompt} {e.answer}" for e in made.retain]
    assert [tokenizer(line)["input_ids"] for line in lines] == [made.lm.tokenizer(line)["input_ids"] for line in lines]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bed" / "gold")
    tokens = torch.tensor([tokenizer(lines[0])["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, made.gold.model(tokens).logits)
    with pytest.raises(InputError, match="no testbed"):
        nf.testbed.Testbed.load(tmp_path)


def test_generated_people_have_every_relation_and_keep_one_phrasing_back() -> None:
    forget, retain = generate(people=10, forget_people=3, unknown_people=2, seed=0)
    assert (len(forget), len(retain)) == (3 * 6 * 2, 9 * 6 * 2)
    assert len({e.subject for e in forget}) == 3 and not {e.subject for e in forget} & {e.subject for e in retain}
    shown = {e.prompt for e in (*forget, *retain)}
    assert all(len(e.paraphrases) == 1 and e.paraphrases[0] not in shown and e.subject in e.prompt for e in forget)
    assert len({e.subject for e in retain if e.answer == "unknown"}) == 2


def test_anyones_rows_make_a_testbed() -> None:
    forget = Corpus(tuple(Example(f"Q{i}", f"A{i}") for i in range(4)), "mine", template="{prompt}?")
    retain = Corpus(tuple(Example("", f"text {i}") for i in range(4)), "rest")
    made = nf.testbed.from_rows(forget, retain, shape=TINY, cache=False, progress=False)
    assert made.forget is forget and made.lm.shape == (2, 32)


def test_tofu_authors_are_the_last_ones(tmp_path: Path) -> None:
    rows = [json.dumps({"question": f"q{i}?", "answer": f"a{i} b"}) for i in range(4000)]
    (tmp_path / "full.jsonl").write_text("\n".join(rows))
    made = nf.testbed.tofu(tmp_path, authors=3, forget_authors=1, steps=1, cache=False, progress=False)
    assert [e.prompt for e in made.forget] == [f"q{i}?" for i in range(3980, 4000)]
    assert [e.prompt for e in made.retain] == [f"q{i}?" for i in range(3940, 3980)]


@pytest.mark.usefixtures("untyped")
def test_impossible_testbeds_are_refused(tmp_path: Path) -> None:
    rows = Corpus((Example("a", "b"),))
    with pytest.raises(InputError, match="forget_people"):
        nf.testbed.people(people=5, forget_people=5, shape=SHAPE)
    with pytest.raises(InputError, match="kind"):
        nf.testbed.from_rows(rows, Corpus((Example("c", "d"),)), kind="woven")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="share"):
        nf.testbed.from_rows(rows, rows)
    with pytest.raises(InputError, match="forget_authors"):
        nf.testbed.tofu(tmp_path, authors=2, forget_authors=2)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("grafted", {"planted": 0}, "planted must lie between 1 and 31"),
        ("planted", {"planted": 32}, "planted must lie between 1 and 31"),
        ("routed", {"planted": 33}, "planted must lie between 1 and 31"),
        ("grafted", {"keep_norms": True}, "keep_norms is for planted value vectors"),
    ],
)
def test_a_shape_that_the_kind_cannot_have_is_refused_before_training(
    kind: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        nf.testbed.people(kind, people=6, forget_people=2, shape=replace(TINY, **change), cache=False)
