"""Many facts written over several layers: MEMIT, and AlphaEdit, which keeps to what retain text does not use.

The hidden state that the last of the layers is to hand on (`z = h + delta`, where a fact's subject ends) is found
first; then each layer, lowest first and under the changes below it, makes its share `(z - h) / (layers left)` of what
is still missing. Layers from which no answer can be reached (above the last that reads those positions) stay as they
are (Meng et al. 2023, arXiv:2210.07229; Fang et al. 2024, arXiv:2410.02355).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus
from neuronforget.edits import Edit
from neuronforget.erase.ablate import all_of, finished
from neuronforget.erase.beginning import operator
from neuronforget.erase.facts import Aim, check_reach, moved, output_changes, solve_layers
from neuronforget.erase.least_change import least_change, null_change
from neuronforget.erase.rank_one import check_facts
from neuronforget.erase.second_moments import check_room, second_moments
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.neurons import Neurons
from neuronforget.scores.rows import blocks_of


@checks_kinds
@operator
def memit(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    neurons: Neurons | None = None,
    layers: Sequence[int] | None = None,
    target: str | None = None,
    preserve: float | None = None,
    steps: int = 20,
    lr: float = 0.5,
    kl: float = 0.0625,
    clamp: float = 0.75,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> Edit:
    """Edit all write weights of `layers` (default: five that end at the middle one), or those of `neurons`.

    `preserve` is lambda (default: the number of neurons of a layer; 0 for one fact), `clamp` bounds the change of the
    last layer's hidden state by its norm; the rest as for `rank_one`. Raises InputError as `rank_one` does.
    """
    aim = Aim(target, steps, lr, kl, clamp)
    check_facts(forget, retain, preserve, cache)
    chosen = _chosen(lm, neurons, layers)

    def solve(keys: Tensor, wanted: Tensor, second: Tensor) -> Tensor:
        return least_change(keys, wanted, second, preserve)

    info = {"method": "memit", "preserve": preserve}
    return _spread(lm, forget, retain, chosen, aim, solve, batch_size, cache, info)


@checks_kinds
@operator
def alpha_edit(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    neurons: Neurons | None = None,
    layers: Sequence[int] | None = None,
    target: str | None = None,
    preserve: float = 1.0,
    cut: float = 1e-3,
    steps: int = 20,
    lr: float = 0.5,
    kl: float = 0.0625,
    clamp: float = 0.75,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> Edit:
    """Edit as `memit`, in the null space of retained keys alone: their outputs stay as they are.

    The null space are the directions of activation that together hold at most `cut` of the retain text's second
    moments (0: only those that it never uses); the paper's cut is an absolute eigenvalue, which no other model shares.
    `preserve` is lambda, in units of the mean second moment. Raises InputError where no direction is so free.
    """
    aim = Aim(target, steps, lr, kl, clamp)
    check_facts(forget, retain, preserve, cache)
    if not 0 <= cut < 1:
        raise InputError(f"cut is a share of the second moments: 0 <= cut < 1, found {cut}")
    chosen = _chosen(lm, neurons, layers)

    def solve(keys: Tensor, wanted: Tensor, second: Tensor) -> Tensor:
        return null_change(keys, wanted, second, preserve, cut=cut)

    info = {"method": "alpha_edit", "preserve": preserve, "cut": cut}
    return _spread(lm, forget, retain, chosen, aim, solve, batch_size, cache, info)


def _chosen(lm: LM, neurons: Neurons | None, layers: Sequence[int] | None) -> Neurons:
    if neurons is not None and layers is not None:
        raise InputError("give neurons= or layers=, not both")
    if neurons is None:
        middle = (len(lm.sites) - 1) // 2
        numbers = [site.layer for site in lm.sites[max(middle - 4, 0) : middle + 1]] if layers is None else layers
        neurons = all_of(lm, numbers)
    check_neurons(lm, neurons)
    check_room(neurons.by_layer())
    return neurons


def _spread(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    neurons: Neurons,
    aim: Aim,
    solve: Callable[[Tensor, Tensor, Tensor], Tensor],
    batch_size: int,
    cache: str | Path | None,
    info: dict[str, Any],
) -> Edit:
    """Find each fact's hidden state after the last layer, and let the layers make it between them."""
    work = aim.batches(lm, forget, batch_size)
    with activations_only(lm):
        top = _top(lm, list(neurons.by_layer()), work, aim)
        chosen = {layer: index for layer, index in neurons.by_layer().items() if layer <= top}
        last = blocks_of(lm)[top]
        moves = [output_changes(lm, [last], batch, aim) for batch in work]
        check_reach(moves, list(neurons.by_layer()))
        goal = _hidden(lm, last, work) + torch.cat([move[0] for move in moves])
        second = second_moments(lm, chosen, retain, batch_size=batch_size, cache=cache)

        def share(row: int) -> Tensor:
            return (goal - _hidden(lm, last, work)) / (len(chosen) - row)

        changes = solve_layers(lm, chosen, work, share, lambda keys, wanted, at: solve(keys, wanted, second[at]))
    info |= {"facts": len(forget), "layers": sorted(chosen), **aim.info}
    return finished(lm, neurons, changes, **info, forget=forget.digest(), retain=retain.digest())


def _top(lm: LM, layers: list[int], work: list[Batch], aim: Aim) -> int:
    """Return the highest layer from which every fact's answer can be reached, else that of the most facts."""
    reached = {}
    for layer in sorted(layers, reverse=True):
        moves = [output_changes(lm, [blocks_of(lm)[layer]], batch, replace(aim, steps=1)) for batch in work]
        reached[layer] = sum(int(move.any(-1).sum()) for move in moves)
        if reached[layer] == sum(len(batch.index) for batch in work):
            break
    return max(reached, key=lambda layer: reached[layer])  # the highest of equals: it was tried first


@torch.no_grad()
def _hidden(lm: LM, block: nn.Module, work: list[Batch]) -> Tensor:
    """What the block hands on where each fact's subject ends, [fact, d_model], fp32."""
    found = []
    for batch in work:
        still = torch.zeros((1, len(batch.index), lm.sites[0].d_model), device=lm.device)
        with moved([block], still, batch.subject_end) as seen:
            lm.model(**batch.inputs, use_cache=False)
        found.append(seen[0].float())
    return torch.cat(found)
