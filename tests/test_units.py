"""Live, sleeping and dead units: what the weights' structure says is what gradients show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build

from neuronforget.corpora import Corpus
from neuronforget.erase import units_of
from neuronforget.erase.units import count_units, parts_of
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons

GATED = {"llama": True, "qwen2": True, "phi3": True, "gpt2": False, "gpt_neox": False}
LAYER = 1


def zero(lm: LM, j: int, which: tuple[int, ...]) -> None:
    """Put parts of neuron j to zero: 0 is the write weights, 1 (and 2) the read projections with their biases."""
    site = lm.sites[LAYER]
    with torch.no_grad():
        for number in which:
            for part in parts_of(site)[number]:
                lm.parameters[part.name].select(part.dim, j + part.offset).zero_()


def one_of_each(lm: LM, parts: int) -> dict[int, tuple[int, ...]]:
    """Neuron number -> the parts of it that are zero: every subset of the parts."""
    return {5 + number: tuple(p for p in range(parts) if number >> p & 1) for number in range(2**parts)}


@pytest.mark.parametrize("family", GATED)
def test_structure_and_gradients_agree_on_every_way_to_zero_a_unit(family: str, tokenizer: Any, corpus: Corpus) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    parts = 3 if GATED[family] else 2
    assert len(parts_of(lm.sites[LAYER])) == parts
    cases = one_of_each(lm, parts)
    for j, which in cases.items():
        zero(lm, j, which)
    chosen = Neurons(frozenset((LAYER, j) for j in cases), (0, 1), lm.shape[1])
    flags = [p.requires_grad for p in lm.model.parameters()]
    by_structure, by_gradient = units_of(lm, chosen), units_of(lm, chosen, corpus, batch_size=2)
    assert by_structure == by_gradient
    expected = {0: "live", 1: "sleeping"}
    assert by_structure == {(LAYER, j): expected.get(len(which), "dead") for j, which in cases.items()}
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert all(p.grad is None for p in lm.model.parameters())


def test_neurons_of_another_model_are_refused(tokenizer: Any) -> None:
    lm = LM(build("opt", vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(InputError, match="of another model"):
        units_of(lm, Neurons(frozenset({(0, 1)}), (0, 1, 2), lm.shape[1]))


def test_zero_read_weights_kill_a_relu_unit_which_only_gradients_show(tokenizer: Any, corpus: Corpus) -> None:
    lm = LM(build("opt", vocab_size=len(tokenizer)), tokenizer)
    chosen = Neurons(frozenset({(LAYER, 4)}), (0, 1), lm.shape[1])
    zero(lm, 4, (1,))
    assert units_of(lm, chosen) == {(LAYER, 4): "sleeping"}
    assert units_of(lm, chosen, corpus) == {(LAYER, 4): "dead"}


def test_a_bias_alone_keeps_a_part_alive(lm: LM, tokenizer: Any, corpus: Corpus) -> None:
    model = LM(build("llama", vocab_size=len(tokenizer)), tokenizer)
    weight = next(part for part in model.sites[LAYER].read if part.name.endswith("weight"))
    with torch.no_grad():
        model.parameters[weight.name].select(weight.dim, 4).zero_()
    chosen = Neurons(frozenset({(LAYER, 4)}), (0, 1), model.shape[1])
    assert units_of(model, chosen) == units_of(model, chosen, corpus) == {(LAYER, 4): "live"}


def test_states_are_counted_in_words() -> None:
    assert count_units(["dead", "dead"]) == "dead"
    assert count_units(["live", "dead", "live"]) == "1 dead, 2 live"


def test_a_probe_that_does_not_fit_is_refused_and_leaves_the_model(lm: LM, corpus: Corpus) -> None:
    from dataclasses import replace

    flags = [p.requires_grad for p in lm.model.parameters()]
    with pytest.raises(InputError, match="no answer token"):
        units_of(lm, Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1]), replace(corpus, max_tokens=1))
    assert [p.requires_grad for p in lm.model.parameters()] == flags
