"""Weights drawn at random: noise on what a neuron writes, and new weights that let a dead unit learn again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change, Law
from neuronforget.erase.ablate import finished, slice_of
from neuronforget.erase.beginning import operator
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.maps import Part
from neuronforget.neurons import Neurons


@checks_kinds
@numbers(sigma="> 0")
@operator
def noise(lm: LM, neurons: Neurons, *, sigma: float = 0.1, seed: int = 0) -> Edit:
    """Add N(0, sigma^2) to every write weight of `neurons` (Needle: Hong et al. 2024, arXiv:2406.11614).

    `sigma` is absolute, the paper's 0.1 is large beside weights of 0.02. Draws are in fp32 on the CPU, the same on
    every device. Raises InputError for an empty set, and a sigma that is not above 0.
    """
    check_neurons(lm, neurons)
    draw = torch.Generator().manual_seed(seed)
    changes = []
    for part, index in _parts(lm, neurons, read=False):
        before = slice_of(lm, part, index)
        changes.append(_change(part, index, before, before.double().cpu() + sigma * _normal(before, draw), "add"))
    return finished(lm, neurons, changes, method="noise", sigma=sigma, seed=seed)


@checks_kinds
@operator
def revive(lm: LM, neurons: Neurons, *, seed: int = 0) -> Edit:
    """Draw read and write weights of erased `neurons` anew, so that dead units can learn again.

    Each weight (and read bias) comes from the normal distribution with the mean and standard deviation of the layer's
    other neurons in the same projection. Make it with the erasure applied: `edit.apply(lm); nf.erase.revive(lm,
    neurons)`. Raises InputError where a layer has no other neurons, and for an empty set.
    """
    check_neurons(lm, neurons)
    draw = torch.Generator().manual_seed(seed)
    changes = []
    for part, index in _parts(lm, neurons, read=True):
        others = torch.ones(lm.shape[1], dtype=torch.bool)
        others[index] = False
        if not others.any():
            raise InputError(f"all neurons of {part.name} are chosen: none is left to take the distribution from")
        pool, before = slice_of(lm, part, others.nonzero()[:, 0]).double().cpu(), slice_of(lm, part, index)
        drawn = pool.mean() + pool.std(correction=0) * _normal(before, draw)
        changes.append(_change(part, index, before, drawn, "set"))
    return finished(lm, neurons, changes, method="revive", seed=seed)


def _parts(lm: LM, neurons: Neurons, *, read: bool) -> Iterator[tuple[Part, Tensor]]:
    chosen = neurons.by_layer()
    for site in (site for site in lm.sites if site.layer in chosen):
        for part in (site.write, *(site.read if read else ())):
            yield part, chosen[site.layer]


def _normal(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw).double()


def _change(part: Part, index: Tensor, before: Tensor, after: Tensor, law: Law) -> Change:
    return Change(part.name, after.to(before.device), before, part.dim, part.index(index), law)
