"""Sets of neurons, their algebra and their controls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons

LAYERS, WIDTH = (0, 2, 5), 12
sets = st.frozensets(st.tuples(st.sampled_from(LAYERS), st.integers(0, WIDTH - 1))).map(
    lambda m: Neurons(m, LAYERS, WIDTH)
)


@settings(max_examples=60, deadline=None)
@given(sets, sets)
def test_set_algebra_is_that_of_the_members(a: Neurons, b: Neurons) -> None:
    assert (a | b).members == a.members | b.members
    assert (a & b).members == a.members & b.members
    assert (a - b).members == a.members - b.members
    assert (a ^ b).members == a.members ^ b.members
    assert len(a) == len(a.members) and list(a) == sorted(a.members)
    assert all(neuron in a for neuron in a)


@settings(max_examples=60, deadline=None)
@given(sets)
def test_mask_by_layer_and_json_say_the_same(tmp_path_factory: pytest.TempPathFactory, a: Neurons) -> None:
    assert Neurons.from_mask(a.mask(), LAYERS) == a
    assert {(layer, int(j)) for layer, index in a.by_layer().items() for j in index} == a.members
    path = tmp_path_factory.mktemp("neurons") / "neurons.json"
    a.save(path)
    assert Neurons.load(path) == a


@settings(max_examples=60, deadline=None)
@given(sets, st.integers(0, 5))
def test_a_random_control_has_as_many_others_in_each_layer(a: Neurons, seed: int) -> None:
    control = a.random_like(seed)
    assert control.mask().sum(1).tolist() == a.mask().sum(1).tolist()
    assert control == a.random_like(seed)
    for layer, own in a.by_layer().items():
        if len(own) <= WIDTH // 2:
            assert not set(own.tolist()) & set(control.by_layer()[layer].tolist())


def test_random_controls_differ_by_seed_and_reach_every_other_neuron() -> None:
    chosen = Neurons(frozenset({(0, 0), (0, 1)}), LAYERS, WIDTH)
    drawn = [chosen.random_like(seed) for seed in range(200)]
    assert len({control.members for control in drawn}) > 30
    assert frozenset().union(*(c.members for c in drawn)) == {(0, j) for j in range(2, WIDTH)}


def test_a_matched_control_is_closer_in_its_property_than_a_random_one() -> None:
    width = 200
    values = torch.rand((1, width), generator=torch.Generator().manual_seed(0)) ** 3
    top = values[0].sort(descending=True).indices[10:40].tolist()
    chosen = Neurons(frozenset((0, j) for j in top), (0,), width)

    def gap(control: Neurons) -> float:
        return abs(float(values[control.mask()].mean() - values[chosen.mask()].mean()))

    matched = [chosen.matched(values, seed) for seed in range(5)]
    assert max(map(gap, matched)) < 0.5 * min(gap(chosen.random_like(seed)) for seed in range(5))
    assert all(len(control) == len(chosen) and not (control & chosen).members for control in matched)
    assert matched[0] == chosen.matched(values, 0) and matched[0] != matched[1]


def test_controls_are_matched_in_what_neurons_write_and_in_how_active_they_are() -> None:
    lm = LM(build("llama"))
    layers = tuple(site.layer for site in lm.sites)
    chosen = Neurons(frozenset({(0, 1), (0, 7), (1, 3)}), layers, lm.shape[1])
    mean = torch.randn(lm.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = Moments({"mean": mean, "m2": torch.zeros_like(mean)}, 1, 1, 1, 0.0, layers)
    norms = torch.stack([lm.parameters[f"{site.path}.weight"].detach().norm(dim=0) for site in lm.sites])
    assert chosen.norm_matched(lm, seed=2, nearest=3) == chosen.matched(norms, 2, nearest=3)
    assert chosen.activation_matched(moments, seed=2) == chosen.matched(mean.abs(), 2)
    assert chosen.norm_matched(lm, seed=0).info["control"] == "matched"


def test_controls_know_that_they_are_controls() -> None:
    chosen = Neurons(frozenset({(0, 0)}), LAYERS, WIDTH)
    assert chosen.random_like(3).info == {"control": "random", "seed": 3}
    with pytest.raises(InputError, match="random_like: seed must be a whole number >= 0, found -1"):
        chosen.random_like(-1)

    assert chosen.matched(torch.rand(3, WIDTH), 3).info["control"] == "matched"
    assert "control" not in chosen.info


def test_a_random_set_of_more_than_half_a_layer_says_what_it_shares() -> None:
    most = Neurons(frozenset((4, j) for j in range(6)), (4,), 8)
    found = most.random_like(0)
    assert len(found) == 6 and found.info["shared"] == len(found & most) >= 4


def test_recall_is_the_share_of_the_true_ones() -> None:
    found = Neurons(frozenset({(0, 0), (0, 1), (2, 3)}), LAYERS, WIDTH)
    truth = Neurons(frozenset({(0, 1), (2, 3), (5, 5), (5, 6)}), LAYERS, WIDTH)
    assert found.recall(truth) == 0.5
    with pytest.raises(InputError, match="empty"):
        found.recall(truth - truth)


def test_what_is_no_set_of_this_model_is_refused(tmp_path: Path) -> None:
    chosen = Neurons(frozenset({(0, 0)}), LAYERS, WIDTH)
    full = Neurons(frozenset((0, j) for j in range(8)), LAYERS, WIDTH)
    (tmp_path / "other.json").write_text("{}")
    for call, message in (
        (lambda: Neurons(frozenset({(1, 0)}), LAYERS, WIDTH), "no neuron 0 in layer 1"),
        (lambda: Neurons(frozenset({(0, WIDTH)}), LAYERS, WIDTH), f"no neuron {WIDTH}"),
        (lambda: chosen | Neurons(frozenset(), (0, 1), WIDTH), "different models"),
        (lambda: full.matched(torch.rand(3, WIDTH), 0), "more than half"),
        (lambda: chosen.matched(torch.rand(3, 5), 0), r"\[layer, neuron\]"),
        (lambda: Neurons.load(tmp_path / "nowhere.json"), "no such file"),
        (lambda: Neurons.load(tmp_path / "other.json"), "no set of neurons"),
    ):
        with pytest.raises(InputError, match=message):
            call()
