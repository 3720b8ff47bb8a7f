"""Every way to erase that the analyses compare, on the found neurons, random neurons and the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sources import Source

import neuronforget as nf
from neuronforget.erase.catalogue import needs_neurons, takes
from neuronforget.erase.rates import default_lr
from neuronforget.losses import learn

#: With the defaults, but where those do next to nothing (alpha_edit) or there are too many tokens (revs).
OPERATORS: dict[str, Callable[..., nf.Edit]] = {
    **{name: nf.erase.OPERATORS[name] for name in "ablate ablate_mean ssd aura noise rank_one memit leace".split()},
    "alpha_edit": partial(nf.erase.alpha_edit, cut=0.05),
    "revs": partial(nf.erase.revs, most=8),
    "concept_vector": partial(nf.erase.concept_vector, most=8),
    "task_vector": partial(nf.erase.task_vector, progress=False),
    "first_order_update": nf.erase.first_order_update,
    "second_order_update": nf.erase.second_order_update,
}
#: They change no weight: beside the erasures, not among them. `resample` is given the found neurons.
GUARDS = {name: nf.erase.OPERATORS[name] for name in nf.erase.guards.__all__}
GUARDS["icu"] = partial(nf.erase.guards.icu, shown=2, kept=2)  # the model holds 64 tokens
LOSSES = (
    "ga grad_diff kl_min wga satimp npo simnpo dpo altpo rt ga_rt idk_ap me_gd undial ce_u whp elm pdu rmu"
).split()
RATES = (1 / 3, 1.0)  # of the default learning rate: whole-model baselines get two, neurons the default alone

PLACES = ("found", "full", "random")

Makes = Callable[[], list[nf.Edit]]


def arms(source: Source, rates: Sequence[float] = RATES, **training: Any) -> dict[str, Makes]:
    """Return how to make each arm's edits, by "method@place": found, random, full (all, or what it chooses), guard.

    A training of the whole model is made at each of `rates`; `training` are settings of `finetune` (steps, batch_size).
    """
    lm, forget, retain = source.lm, source.forget, source.retain
    moments = {
        name: nf.record(lm, corpus, per_example=True, progress=False)
        for name, corpus in (("forget", forget), ("retain", retain))
    }
    places = source.places
    plan: dict[str, Makes] = {}
    for name, operator in OPERATORS.items():
        make = partial(nf.erase.make, operator, lm, forget, retain, moments=moments, progress=False)
        if takes(operator, "neurons"):
            chosen = {place: where for place, where in places.items() if where is not None}
            plan |= {f"{name}@{place}": _one(partial(make, neurons=where)) for place, where in chosen.items()}
        if not needs_neurons(operator):
            plan[f"{name}@full"] = _one(make)
    for name, guard in GUARDS.items():
        where = source.found if needs_neurons(guard) else None
        given = {"progress": False} if takes(guard, "progress") else {}
        plan[f"{name}@guard"] = _one(partial(nf.erase.make, guard, lm, forget, retain, neurons=where, **given))
    for name in LOSSES:
        for place, where in places.items():
            plan[f"{name}@{place}"] = partial(_trained, source, name, where, rates, training)
    return plan


def names() -> set[str]:
    """Return the names of all arms."""
    found = {f"{name}@{place}" for name in LOSSES for place in PLACES} | {f"{name}@guard" for name in GUARDS}
    for name, operator in OPERATORS.items():
        if takes(operator, "neurons"):
            found |= {f"{name}@found", f"{name}@random"}
        if not needs_neurons(operator):
            found.add(f"{name}@full")
    return found


def _one(make: Callable[[], nf.Edit]) -> Makes:
    return lambda: [make()]


def _trained(
    source: Source, name: str, neurons: nf.Neurons | None, rates: Sequence[float], training: dict[str, Any]
) -> list[nf.Edit]:
    """Train a loss at each learning rate."""
    lm, forget, loss = source.lm, source.forget, getattr(nf.losses, name)
    train = partial(nf.erase.finetune, lm, forget, source.retain, neurons=neurons, preferred=source.refusals,
                    progress=False, seed=source.seed, **training)  # fmt: skip
    if name == "whp":
        train = partial(train, reinforced=nf.erase.finetune(lm, forget, loss=learn, progress=False, **training))
    rate = default_lr(lm, neurons)
    return [train(loss=loss, lr=rate * share) for share in (rates if neurons is None else (1.0,))]
