"""ROME's rank-one edit of write weights, on a set of neurons and for any number of facts.

Each fact gives a key and a change of the MLP's output that makes the model forget it (`erase.facts`); each layer's
write weights get the smallest change that makes it (`erase.least_change`). One fact on all neurons of a layer is ROME
(Meng et al. 2022, arXiv:2202.05262).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.erase.ablate import all_of, finished
from neuronforget.erase.beginning import operator
from neuronforget.erase.facts import Aim, check_reach, output_changes, solve_layers
from neuronforget.erase.least_change import least_change
from neuronforget.erase.second_moments import check_room, second_moments
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.neurons import Neurons
from neuronforget.runs import check_writable


@checks_kinds
@operator
def rank_one(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    neurons: Neurons | None = None,
    layer: int | None = None,
    target: str | None = None,
    preserve: float | None = None,
    steps: int = 20,
    lr: float = 0.5,
    kl: float = 0.0625,
    clamp: float = 4.0,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> Edit:
    """Edit the write weights of `neurons` (or all of `layer`, default the middle one) so that forget facts go.

    `target` is a neutral answer to write in their place; without one the answer's distribution is driven to
    maximum entropy. `preserve` is lambda (default: the number of neurons; 0 for a single fact). The output
    changes R of all layers are found together by Adam, each at most `clamp` times the output's own norm,
    shared among the layers; a layer whose change there cannot reach the answer (the last one, when the subject
    ends before the prompt does) is held as it is. `cache` is a folder for second moments. Raises InputError for
    corpora that share examples, an empty set, and layers none of which can reach an answer.
    """
    aim = Aim(target, steps, lr, kl, clamp)
    check_facts(forget, retain, preserve, cache)
    if neurons is not None and layer is not None:
        raise InputError("give neurons= or layer=, not both")
    if neurons is None:
        neurons = all_of(lm, [lm.sites[(len(lm.sites) - 1) // 2].layer if layer is None else layer])
    check_neurons(lm, neurons)
    chosen = neurons.by_layer()
    check_room(chosen)
    modules = [lm.model.get_submodule(site.path) for site in lm.sites if site.layer in chosen]
    work = aim.batches(lm, forget, batch_size)
    with activations_only(lm):
        moves = [output_changes(lm, modules, batch, aim) for batch in work]
        check_reach(moves, list(chosen))
        second = second_moments(lm, chosen, retain, batch_size=batch_size, cache=cache)
        changes = solve_layers(
            lm, chosen, work,
            lambda row: torch.cat([move[row] for move in moves]),
            lambda keys, wanted, at: least_change(keys, wanted, second[at], preserve),
        )  # fmt: skip
    info = {"method": "rank_one", "facts": len(forget), "preserve": preserve, **aim.info}
    return finished(lm, neurons, changes, **info, forget=forget.digest(), retain=retain.digest())


def check_facts(forget: Corpus, retain: Corpus, preserve: float | None, cache: str | Path | None) -> None:
    """Raise InputError for corpora that share examples, a negative lambda, and a cache that cannot be written."""
    check_disjoint(forget, retain)
    if preserve is not None and not 0 <= preserve < math.inf:
        raise InputError(f"preserve is lambda, the weight of retain text: a number from 0 up, found {preserve}")
    if cache is not None:
        check_writable(Path(cache) / "second-moments")
