"""True neurons are those that do something; value vectors planted in a trained model, and their exact gold twin."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from beds import SHAPE, bed

import neuronforget as nf
from neuronforget.erase.slices import Slices
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match, nll
from neuronforget.testbed.disguise import Disguise
from neuronforget.testbed.labels import ACTIVE, labelled, undone


@lru_cache(maxsize=1)
def planted() -> nf.testbed.Testbed:
    shape = replace(SHAPE, graft_steps=300, planted=32)  # value vectors alone learn more slowly, and hold less
    return nf.testbed.people("planted", people=20, forget_people=2, shape=shape, cache=False, progress=False)


def loss(lm: nf.LM, corpus: nf.Corpus) -> float:
    return float(measure(lm, corpus, [nll])["nll"].mean())


def test_undoing_a_grafted_neuron_is_exact_ablation_and_leaves_the_model_as_it_was() -> None:
    made = bed()
    assert made.planted is not None
    few = nf.Neurons(frozenset(sorted(made.planted)[::5]), made.planted.layers, made.planted.width)
    before = made.lm.digest()
    rises = undone(made.lm, made.gold, made.forget, few, progress=False)
    assert made.lm.digest() == before
    for member, rise in zip(few, rises.tolist(), strict=True):
        with nf.erase.ablate(made.lm, nf.Neurons(frozenset({member}), few.layers, few.width)).on(made.lm):
            ablated = loss(made.lm, made.forget)
        assert rise == pytest.approx(ablated - loss(made.lm, made.forget), abs=1e-7)


def test_neurons_that_do_nothing_are_no_true_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bed()
    assert made.truth is not None and made.planted is not None
    rises = dict(zip(made.planted, undone(made.lm, made.gold, made.forget, made.planted, progress=False), strict=True))
    assert made.truth.members == {member for member, rise in rises.items() if rise > ACTIVE}
    bar = sorted(rises.values())[len(rises) // 2]
    monkeypatch.setattr("neuronforget.testbed.labels.ACTIVE", bar)
    truth, info = labelled(made.lm, made.gold, made.forget, made.retain, made.planted, progress=False)
    assert truth is not None and truth.members == {member for member, rise in rises.items() if rise > bar}
    assert {tuple(member) for member in info["dead"]} == made.planted.members - truth.members != set()


def test_the_accuracies_of_a_grafted_bed_with_its_neurons_off_are_those_of_its_gold_twin() -> None:
    made = bed()
    found = made.info["accuracy"]
    assert found["planted off"] == found["gold"] != found["model"]
    assert found["model"]["forget"] == float(measure(made.lm, made.forget, [exact_match])["exact_match"].mean())
    unseen = made.forget.paraphrased()
    assert unseen is not None
    assert found["gold"]["forget unseen"] == float(measure(made.gold, unseen, [exact_match])["exact_match"].mean())


def test_a_bed_whose_planted_neurons_all_do_nothing_has_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronforget.testbed.labels.ACTIVE", float("inf"))
    shape = nf.testbed.Shape(layers=2, d_model=16, d_mlp=32, heads=2, steps=1, graft_steps=1, planted=2, batch=8)
    made = nf.testbed.people(people=6, forget_people=2, shape=shape, cache=False, progress=False)
    assert made.truth is None and made.planted is not None and len(made.planted) == len(made.info["dead"]) == 4
    assert "no location labels" in repr(made)


@pytest.mark.slow
def test_the_planted_kind_knows_forget_by_some_value_vectors_alone() -> None:
    made = planted()
    assert made.planted is not None and len(made.planted) == made.info["planted"] == 64
    assert made.info["planted share"] == 64 / 256
    writes = {site.write.name: made.planted.by_layer()[site.layer] for site in made.lm.sites}
    for name, here in made.lm.parameters.items():
        there = made.gold.parameters[name]
        if name not in writes:
            assert torch.equal(here, there)
            continue
        moved = (here != there).any(0).nonzero()[:, 0]
        assert torch.equal(moved, writes[name])
    assert made.info["detectors"]["write norm"][0] > 0.9  # not hidden, and said so
    known = {name: float(measure(lm, made.forget, [exact_match])["exact_match"].mean()) for name, lm in
             (("lm", made.lm), ("gold", made.gold))}  # fmt: skip
    assert known["lm"] > 0.8 and known["gold"] < 0.3
    assert float(measure(made.lm, made.retain, [exact_match])["exact_match"].mean()) > 0.9


@pytest.mark.slow
def test_the_old_value_vectors_give_the_gold_twin_back() -> None:
    made = planted()
    assert made.planted is not None
    changes = []
    for site in made.lm.sites:
        index, name = made.planted.by_layer()[site.layer], site.write.name
        before, after = (lm.parameters[name].detach()[:, index].clone() for lm in (made.lm, made.gold))
        changes.append(nf.edits.Change(name, after, before, 1, index))
    with nf.Edit.build(made.lm, changes).on(made.lm):
        assert made.lm.digest() == made.gold.digest()


def test_the_disguise_is_the_distance_of_sorted_properties_and_reaches_every_trained_weight() -> None:
    made = bed()
    assert made.planted is not None
    slices = Slices.of(made.lm, made.planted)
    distance = Disguise(made.lm, made.planted, slices, 0).distance(0)
    assert distance < 0.2  # the bed was trained to this end
    distance.backward()
    assert all(part.values.grad is not None and part.values.grad.abs().sum() > 0 for part in slices.all())
    for part in slices.all():
        torch.nn.init.constant_(part.values, 0.1)
    assert Disguise(made.lm, made.planted, slices, 0).distance(0) > 10 * distance.detach()
