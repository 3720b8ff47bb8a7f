"""What every operator of the table promises, on four kinds of architecture: one loop, no operator left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

from neuronforget.corpora import Corpus, Example
from neuronforget.edits import Edit
from neuronforget.erase import OPERATORS, ablate, guards, make, revive, units_of
from neuronforget.erase.catalogue import takes
from neuronforget.erase.units import count_units
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")
#: Operators that change weights of chosen neurons; tests/test_guards.py has those that change none.
OF_NEURONS = sorted({n for n, operator in OPERATORS.items() if takes(operator, "neurons")} - set(guards.__all__))
#: Settings that keep the tests quick, or that an operator needs on a model of random weights.
QUICK: dict[str, dict[str, Any]] = {
    "finetune": {"steps": 2, "progress": False},
    "rank_one": {"steps": 3},
    "memit": {"steps": 3},
    "alpha_edit": {"steps": 3, "cut": 0.05},
    "ssd": {"alpha": 1.0},
    "revs": {"most": 4, "rank": 60},
    "concept_vector": {"most": 4},
}


def some(lm: LM) -> Neurons:
    layers = tuple(site.layer for site in lm.sites)
    return Neurons(frozenset((layer, j) for layer in layers for j in range(3, 27)), layers, lm.shape[1])


def state(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.parameters.items()}


def same(lm: LM, before: dict[str, Tensor]) -> bool:
    now = lm.parameters
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


@pytest.fixture
def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    rows = corpus.examples
    return Corpus((Example(rows[0].prompt, rows[0].answer, subject="Anna Berg"), *rows[1:3]), "forget"), Corpus(
        rows[3:], "retain"
    )


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: Any) -> LM:
    return LM(build(request.param, vocab_size=len(tokenizer)), tokenizer)


def made(name: str, lm: LM, halves: tuple[Corpus, Corpus]) -> Edit:
    chosen = some(lm) if takes(OPERATORS[name], "neurons") else None
    return make(
        OPERATORS[name], lm, *halves, neurons=chosen, tap="torch_hooks", progress=False, **QUICK.get(name, {})
    ) if name != "finetune" else OPERATORS[name](lm, *halves, neurons=chosen, **QUICK[name])  # fmt: skip


@pytest.mark.parametrize("name", OF_NEURONS)
def test_an_edit_touches_its_neurons_alone_and_is_undone_bit_for_bit(
    name: str, family: LM, halves: tuple[Corpus, Corpus]
) -> None:
    before, chosen = state(family), some(family).by_layer()
    edit = made(name, family, halves)
    assert same(family, before)
    certificate = edit.certificate(family)
    assert certificate.holds and edit.info["scope"] == "neurons" and same(family, before)
    edit.apply(family)
    assert not same(family, before)
    states = units_of(family, some(family))
    for site in family.sites:
        for part in (site.write, *site.read):
            value = family.parameters[part.name].detach()
            moved = (value != before[part.name]).reshape(value.shape if value.ndim == 2 else (-1, 1))
            where = moved.any(1 - part.dim).nonzero()[:, 0] if value.ndim == 2 else moved[:, 0].nonzero()[:, 0]
            own = torch.cat(
                [p.index(chosen[site.layer]) for p in site.read if p.name == part.name]
                or [part.index(chosen[site.layer])]
            )
            assert set(where.tolist()) <= set(own.tolist()), (name, part)
    edit.undo(family)
    assert same(family, before)
    with edit.scaled(0.5).on(family):
        assert not same(family, before)
    assert same(family, before)
    if edit.info["neurons"] == len(states):
        assert edit.info["units"] == count_units(states.values())


@pytest.mark.parametrize("name", OF_NEURONS)
def test_made_again_an_edit_is_the_same_to_the_bit_whatever_memory_held(
    name: str, tokenizer: Any, halves: tuple[Corpus, Corpus]
) -> None:
    lm = LM(build("llama", vocab_size=len(tokenizer)), tokenizer)
    first = made(name, lm, halves)
    dirt = [torch.full((size,), 7, dtype=torch.int32) for size in (2, 3, 24, 40, 48, 96, 640, 1920) * 3]
    del dirt
    for one, other in zip(first.changes, made(name, lm, halves).changes, strict=True):
        assert one.name == other.name and torch.equal(one.after, other.after), one.name


def test_an_edit_of_all_layers_on_a_model_in_bf16_stays_exact(tokenizer: Any, halves: tuple[Corpus, Corpus]) -> None:
    lm = LM(build("llama", vocab_size=len(tokenizer)).bfloat16(), tokenizer)
    for name in ("dampen", "noise", "memit", "leace", "revs", "concept_vector"):
        before, edit = state(lm), made(name, lm, halves)
        assert all(c.after.dtype == torch.bfloat16 for c in edit.changes)
        assert edit.certificate(lm).holds and same(lm, before)


@pytest.mark.parametrize("name", sorted(set(OF_NEURONS) - {"finetune"}))
def test_an_empty_set_is_refused_and_the_model_stays(name: str, lm: LM, halves: tuple[Corpus, Corpus]) -> None:
    before, nothing = state(lm), Neurons(frozenset(), (0, 1), lm.shape[1])
    with pytest.raises(InputError, match="empty"):
        make(OPERATORS[name], lm, *halves, neurons=nothing, tap="torch_hooks", progress=False)
    assert same(lm, before)


def test_a_dead_unit_is_revived_from_its_layers_distribution(family: LM, halves: tuple[Corpus, Corpus]) -> None:
    chosen = some(family)
    ablate(family, chosen, units="dead").apply(family)
    assert set(units_of(family, chosen).values()) == {"dead"}
    edit = revive(family, chosen, seed=3)
    assert edit.info["units"] == "live"
    with edit.on(family):
        for probe in (None, halves[0]):
            assert set(units_of(family, chosen, probe).values()) == {"live"}
    again, other = revive(family, chosen, seed=3), revive(family, chosen, seed=4)
    assert all(torch.equal(a.after, b.after) for a, b in zip(edit.changes, again.changes, strict=True))
    assert not torch.equal(edit.changes[0].after, other.changes[0].after)
    assert set(units_of(family, chosen).values()) == {"dead"}  # making it changed nothing
