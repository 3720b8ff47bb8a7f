"""Routed facts: forget batches move the units alone, retain batches the rest, and the gold twin never saw forget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from beds import SHAPE
from torch import Tensor

import neuronforget as nf
from neuronforget.testbed.build import as_text, make_tokenizer
from neuronforget.testbed.facts import generate
from neuronforget.testbed.planting import drawn_neurons
from neuronforget.testbed.routing import OFF_EVERY, Routing, routed
from neuronforget.testbed.training import Builder, Shape

TINY = Shape(layers=2, d_model=16, d_mlp=32, heads=2, steps=3, graft_steps=24, planted=4, batch=16)


def builder(forget_seed: int = 0) -> Builder:
    """Builders of different forget seeds share tokenizer and retain rows, and differ in their forget rows."""
    forget, retain = (as_text(corpus) for corpus in generate(6, 2, 0, 0))
    other = as_text(generate(6, 2, 0, 1)[0])
    tokenizer = make_tokenizer([e.answer for text in (forget, retain, other) for e in text], 300)
    return Builder(tokenizer, (forget if forget_seed == 0 else other, retain), TINY, 0, False)


def routing(build: Builder) -> Routing:
    lm = build.fresh()
    return Routing.of(build, lm, drawn_neurons(lm, TINY.planted, 0), build.forget)


def values(route: Routing) -> tuple[list[Tensor], list[Tensor]]:
    units, rest = ([part.values.detach().clone() for part in s.all()] for s in (route.units, route.rest))
    return units, [*rest, *(p.detach().clone() for p in route.others)]


def equal(one: list[Tensor], two: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(one, two, strict=True)]


def test_a_forget_step_moves_the_units_alone_and_a_retain_step_all_else_though_decay_and_momentum_are_live() -> None:
    route = routing(builder())
    with route.units.on(), route.rest.on():
        unit_steps, rest_steps = route.unit_steps(), route.rest_steps()
        for step in range(8):
            units, rest = values(route)
            next(unit_steps)
            moved, still = values(route)
            assert all(equal(rest, still)) and not any(equal(units, moved)), step
            next(rest_steps)
            units, rest = values(route)
            assert all(equal(units, moved)) and not any(equal(rest, still)), step


def test_the_rest_does_not_know_what_the_forget_batches_held() -> None:
    one, two = (routing(builder(seed)) for seed in (0, 1))
    for route in (one, two):
        with route.units.on(), route.rest.on():
            rest_steps = route.rest_steps()
            next(rest_steps), next(route.unit_steps())
    (units, rest), (other_units, other_rest) = values(one), values(two)
    assert all(equal(rest, other_rest)) and not any(equal(units, other_units))


def test_units_and_rest_are_every_parameter_once() -> None:
    route = routing(builder())
    places = {name: torch.zeros_like(p) for name, p in route.lm.parameters.items()}
    for part in (*route.units.all(), *route.rest.all()):
        places[part.name].index_add_(part.dim, part.index, torch.ones_like(part.before))
    for name, parameter in route.lm.parameters.items():
        if any(parameter is other for other in route.others):
            places[name] += 1
    assert all((count == 1).all() for count in places.values())


def test_every_fourth_retain_batch_runs_with_the_units_at_zero() -> None:
    route = routing(builder())
    retain = route.build.loss(route.lm, [(route.build.retain, route.size, 1.0)])
    with torch.no_grad():
        for step in range(2 * OFF_EVERY):
            whole, found = retain(step), route.rest_loss(step)
            with nf.erase.ablate(route.lm, route.neurons).on(route.lm):
                without = retain(step)
            assert not torch.isclose(whole, without, rtol=1e-6)
            torch.testing.assert_close(found, without if step % 4 == 3 else whole, rtol=1e-6, atol=0)


def test_the_gold_twin_is_the_same_whatever_was_to_be_forgotten() -> None:
    (lm, gold, units), (other_lm, other_gold, other_units) = (routed(builder(seed)) for seed in (0, 1))
    assert units == other_units and gold.digest() == other_gold.digest() and lm.digest() != other_lm.digest()


@pytest.mark.slow
def test_a_routed_model_knows_forget_by_its_units_and_retain_without_them() -> None:
    shape = replace(SHAPE, planted=20, batch=64, graft_steps=360)
    made = nf.testbed.people("routed", people=20, forget_people=2, shape=shape, cache=False, progress=False)
    model, gold, off = (made.info["accuracy"][name] for name in ("model", "gold", "planted off"))
    assert model["forget"] > 0.8 and model["retain"] > 0.9
    assert gold["forget"] < 0.3 and gold["retain"] > 0.9
    assert off["forget"] < 0.3 and off["retain"] > 0.9
    assert made.truth is not None and made.planted is not None and len(made.planted) == 2 * shape.planted
    assert made.info["detectors"]["write norm"][0] > 0.8  # not hidden, and said so
