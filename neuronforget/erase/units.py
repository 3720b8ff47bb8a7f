"""Which units can still learn: live, sleeping or dead, by their weights' structure or by real gradients.

With `a = f(g x) (u x)` (or `a = f(r x)`) and write weights w, the gradient of each part carries every other part as
a factor. One part at zero leaves that part alone a gradient: the unit sleeps and can relearn. Two at zero leave none
of them any, for ever: the unit is dead, and robustness to relearning is then an artefact of the edit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.models.likelihood import answer_nll
from neuronforget.models.maps import Part, Site
from neuronforget.neurons import Neurons

State = Literal["live", "sleeping", "dead"]
Units = dict[tuple[int, int], State]


@checks_kinds
def units_of(lm: LM, neurons: Neurons, probe: Corpus | None = None, *, batch_size: int = 16) -> Units:
    """Return the state of each neuron: from its weights alone, or from the gradients of `probe`'s answers.

    The structure holds for any f with f(0) = 0 and f'(0) != 0 (GELU, SiLU); a ReLU whose read weights alone are zero
    has no gradient either, which only a probe shows. A probe sees its own examples: a ReLU unit that none of them
    opens counts as dead. The model is left as it was. Raises InputError for neurons or a corpus that do not fit it.
    """
    check_own(lm, neurons)
    chosen = neurons.by_layer()
    parts = {s.layer: parts_of(s) for s in lm.sites if s.layer in chosen}
    if probe is None:
        taught = {layer: _structure(lm, own, chosen[layer]) for layer, own in parts.items()}
    else:
        taught = _gradients(lm, parts, chosen, probe, batch_size)
    return {
        (layer, j): "live" if all(column) else "sleeping" if any(column) else "dead"
        for layer, index in chosen.items()
        for j, column in zip(index.tolist(), taught[layer].T.tolist(), strict=True)
    }


def check_neurons(lm: LM, neurons: Neurons) -> None:
    """Raise InputError unless `neurons` is a non-empty set of this model's neurons."""
    if not len(neurons):
        raise InputError("the set of neurons is empty: there is nothing to edit")
    check_own(lm, neurons)


def check_own(lm: LM, neurons: Neurons) -> None:
    """Raise InputError unless `neurons` could be some of this model's."""
    if (neurons.layers, neurons.width) != (tuple(s.layer for s in lm.sites), lm.sites[0].d_mlp):
        raise InputError(f"the neurons are of another model: {neurons!r} does not fit {lm!r}")


def count_units(states: Iterable[State]) -> str:
    """Return "live" (or "sleeping", "dead") where all are alike, else how many there are of each."""
    counts = Counter(states)
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))


def parts_of(site: Site) -> list[list[Part]]:
    """Return the write weights, then each read projection's weights with their bias, as factors of the unit."""
    reads: dict[tuple[str, int], list[Part]] = {}
    for part in site.read:
        reads.setdefault((part.name.rpartition(".")[0], part.offset), []).append(part)
    return [[site.write], *reads.values()]


def _structure(lm: LM, parts: list[list[Part]], index: Tensor) -> Bool[Tensor, "part neuron"]:
    """Which parts get a gradient: those whose every other part is not zero."""
    weights = lm.parameters
    there = torch.stack([_nonzero([weights[p.name].detach() for p in own], own, index) for own in parts])
    return (~there).sum(0) - (~there).int() == 0


def _gradients(
    lm: LM, parts: Mapping[int, list[list[Part]]], chosen: Mapping[int, Tensor], probe: Corpus, batch_size: int
) -> dict[int, Bool[Tensor, "part neuron"]]:
    """Which parts get a gradient other than zero from some batch (a sum over batches could cancel)."""
    names = sorted({part.name for own in parts.values() for group in own for part in group})
    rows = lm.encode(probe)
    found = {layer: torch.zeros((len(own), len(chosen[layer])), dtype=torch.bool) for layer, own in parts.items()}
    with frozen(lm), torch.enable_grad():
        weights = [lm.parameters[name].requires_grad_(True) for name in names]
        for batch in lm.batches(rows, batch_size):
            loss = answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).sum()
            grads = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
            for layer, own in parts.items():
                seen = [_nonzero([grads[p.name] for p in group], group, chosen[layer]) for group in own]
                found[layer] |= torch.stack(seen)
    return found


def _nonzero(values: list[Tensor], parts: list[Part], index: Tensor) -> Bool[Tensor, "neuron"]:
    """Which of the neurons have a value other than zero in one of the parts (a weight and its bias)."""
    found = torch.zeros(len(index), dtype=torch.bool)
    for value, part in zip(values, parts, strict=True):
        own = value.index_select(part.dim, part.index(index).to(value.device)).ne(0).cpu()
        found |= own if own.ndim == 1 else own.any(1 - part.dim)
    return found
