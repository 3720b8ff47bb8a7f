"""Every operator by name, and one way to call any of them: each is given what its parameters name.

An operator is a function that returns an `Edit`. Parameters called `lm`, `neurons`, `forget` and `retain` (corpora),
`forget_moments` and `retain_moments` (recordings of them), `forget_peaks` and `retain_peaks` (recordings with the
per-example table) are filled in here, recorded only where asked for; all others are the operator's settings. A new
operator is one more name in `OPERATORS`; one of your own needs no place there: pass the function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import Any

from neuronforget.arguments import check_settings, checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase.ablate import ablate, ablate_mean
from neuronforget.erase.adapters import llm_eraser
from neuronforget.erase.arithmetic import task_vector
from neuronforget.erase.beginning import check_ready
from neuronforget.erase.concept import leace
from neuronforget.erase.damping import aura, dampen, ssd
from neuronforget.erase.drawn import noise, revive
from neuronforget.erase.finetune import finetune, preferred_answers
from neuronforget.erase.fitting import check_loss
from neuronforget.erase.guards import eco, icu, o3, repe, resample
from neuronforget.erase.influence import first_order_update, second_order_update
from neuronforget.erase.many_layers import alpha_edit, memit
from neuronforget.erase.rank_one import rank_one
from neuronforget.erase.units import check_neurons
from neuronforget.erase.words import concept_vector, revs
from neuronforget.errors import InputError
from neuronforget.losses import name_of
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.recording import record

Operator = Callable[..., Edit]

OPERATORS: dict[str, Operator] = {
    operator.__name__: operator
    for operator in (
        ablate,
        ablate_mean,
        alpha_edit,
        aura,
        concept_vector,
        dampen,
        eco,
        finetune,
        first_order_update,
        icu,
        leace,
        llm_eraser,
        memit,
        noise,
        o3,
        rank_one,
        repe,
        resample,
        revive,
        revs,
        second_order_update,
        ssd,
        task_vector,
    )
}

#: What `make` fills in by the name of a parameter.
GIVEN = ("lm", "neurons", "forget", "retain", "forget_moments", "retain_moments", "forget_peaks", "retain_peaks")


@checks_kinds
def make(
    operator: Operator,
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    neurons: Neurons | None = None,
    moments: Mapping[str, Moments] | None = None,
    tap: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Edit:
    """Return the edit that `operator` makes of what its parameters name, with its own `settings`.

    `moments` are recordings made before, as "forget" and "retain"; what is missing is recorded through `tap`. One of
    retain does in its corpus' place where the operator reads no more of it.
    Raises InputError, before any work, as `check_call`, `check_answers`, `beginning.check_ready` and
    `units.check_neurons` do, and for what is no edit.
    """
    recorded = _recorded(moments or {})
    check_call(operator, neurons, settings, retain=retain is not None, recorded=recorded)
    check_ready(lm)
    check_answers(operator, lm, forget, {**settings, "retain": retain})
    if neurons is not None:
        check_neurons(lm, neurons)
    corpora = {"forget": forget, "retain": retain}
    for name, corpus in corpora.items():
        for key, table in ((f"{name}_moments", False), (f"{name}_peaks", True)):
            if corpus is not None and takes(operator, key) and key not in recorded:
                recorded[key] = record(lm, corpus, tap=tap, per_example=table, progress=progress)
    given: dict[str, Any] = {"lm": lm, "neurons": neurons, **corpora, **recorded}
    made = operator(**{name: value for name, value in given.items() if takes(operator, name)}, **settings)
    if not isinstance(made, Edit):
        raise InputError(f"an operator must return an Edit, but {name_of(operator)} returned {type(made).__name__}")
    return made


def _recorded(moments: Mapping[str, Moments]) -> dict[str, Moments]:
    """Return these recordings by the parameters that they can be given for."""
    tables = {f"{name}_peaks": found for name, found in moments.items() if found.table}
    return {f"{name}_moments": found for name, found in moments.items()} | tables


def addressed(operator: Operator, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Hand those settings to the loss that are its own and not the operator's: `beta` of `npo`, given to `finetune`.

    Raises InputError for a loss that is no function.
    """
    if not takes(operator, "loss"):
        return dict(settings)
    loss = settings.get("loss", inspect.signature(operator).parameters["loss"].default)
    if not callable(loss):
        raise InputError(
            f"{name_of(operator)}: loss must be a function (on the command line --loss NAME), found {loss!r}"
        )
    mine = list(inspect.signature(loss).parameters)[1:]  # the first is what it is computed from
    own = {key: value for key, value in settings.items() if key in mine and not takes(operator, key)}
    check_settings(loss, own)
    rest = {key: value for key, value in settings.items() if key not in own}
    return {**rest, "loss": partial(loss, **own)} if own else rest


def check_call(
    operator: Operator,
    neurons: Neurons | None,
    settings: Mapping[str, Any],
    *,
    retain: bool = True,
    recorded: Container[str] = (),
) -> None:
    """Raise InputError where `operator` lacks its neurons or `retain`, or is not called with such settings.

    `recorded` are parameters for recordings that are there ("retain_moments"): these do without their corpus.
    """
    wanted, name = inspect.signature(operator).parameters, name_of(operator)
    required = [key for key, p in wanted.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    if needs_neurons(operator) and neurons is None:
        raise InputError(f"{name} edits chosen neurons: give neurons= (--neurons, the neurons.json of `attribute`)")
    if neurons is not None and not takes(operator, "neurons"):
        raise InputError(f"{name} does not edit chosen neurons: leave out neurons= (--neurons)")
    kept = (key for key in required if key in GIVEN and key.startswith("retain"))
    if not retain and any(key not in recorded for key in kept):
        raise InputError(f"{name} reads what the model should keep: give retain (--retain)")
    own = {key: parameter for key, parameter in wanted.items() if key not in GIVEN}
    if missing := [key for key in required if key in own and key not in settings]:
        raise InputError(f"{name} needs the setting {missing[0]}")
    for key in settings:
        if key not in own:
            raise InputError(f"{name} has no setting {key!r}; it has {', '.join(own) or 'none'}")
    check_settings(operator, settings)


def check_answers(operator: Operator, lm: LM, forget: Corpus, settings: Mapping[str, Any]) -> None:
    """Raise InputError where the loss that `operator` trains asks for what neither it nor `make` will be given.

    Judged is what the operator has parameters for: one that brings other answers itself is taken at its word. The
    retain corpus, where `settings` hold it (None: there is none), is one of them.
    """
    own = inspect.signature(operator).parameters
    given = {key: p.default for key, p in own.items()} | {k: v for k, v in settings.items() if k in own}
    if not callable(loss := given.get("loss")):
        return
    if "preferred" in given:
        given["preferred"] = preferred_answers(forget, given["preferred"], 0)
    kept = {"keep": given["accumulate"] == 1} if "accumulate" in given else {}
    parts = ("preferred", "reinforced", *(["retain"] if "retain" in settings else []))
    check_loss(lm, forget, loss, **{part: given[part] for part in parts if part in given}, **kept)


def further(
    operators: Iterable[Operator],
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    places: Mapping[str, Neurons | None],
    moments: Mapping[str, Moments],
) -> dict[str, Callable[[], Edit]]:
    """Return, by name, how to make each operator's edit, by its defaults: at `places`, and where itself chooses."""
    plan: dict[str, Callable[[], Edit]] = {}
    for operator in operators:
        make_at = partial(make, operator, lm, forget, retain, moments=moments, progress=False)
        if takes(operator, "neurons"):
            found = {suffix: neurons for suffix, neurons in places.items() if neurons is not None}
            plan |= {name_of(operator) + suffix: partial(make_at, neurons=where) for suffix, where in found.items()}
        if not needs_neurons(operator):
            plan[name_of(operator)] = make_at
    return plan


def takes(operator: Operator, name: str) -> bool:
    """Does the operator name this among its parameters ("neurons", "forget_peaks")?"""
    return name in inspect.signature(operator).parameters


def needs_neurons(operator: Operator) -> bool:
    """Can the operator do nothing without chosen neurons?"""
    parameter = inspect.signature(operator).parameters.get("neurons")
    return parameter is not None and parameter.default is parameter.empty
