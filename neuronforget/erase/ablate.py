"""Ablation: put a neuron's activation at zero, or at its mean, by its write weights alone.

A unit with only its write weights zeroed still receives a gradient there and can relearn ("sleeping");
with its read weights zeroed too, every gradient of it is exactly zero for ever ("dead"), and robustness to
relearning is then an artefact. Which units an edit leaves stands in `edit.info["units"]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.beginning import operator
from neuronforget.erase.units import check_neurons, count_units, units_of
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.maps import Part
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.recording import record


@checks_kinds
@operator
def ablate(
    lm: LM,
    neurons: Neurons,
    *,
    mode: Literal["zero", "mean", "resample"] = "zero",
    moments: Moments | None = None,
    retain: Corpus | None = None,
    units: Literal["sleeping", "dead"] = "sleeping",
) -> Edit:
    """Ablate `neurons`: write weights to zero; for "mean" the output bias gains `mu_j w_j` as well.

    `moments` (mode "mean") are those of the retain corpus, whose mean activation takes the neuron's place; without them
    `retain` is recorded. A model without output biases is given one while the edit is on. "resample" puts activations
    at tokens of `retain` there: the guard `guards.resample`, which changes no weight. Raises InputError for an empty
    set, and where what a mode needs is not given.
    """
    check_neurons(lm, neurons)
    if mode == "resample":
        return _resampled(lm, neurons, retain)
    if mode == "mean" and moments is None:
        if retain is None:
            raise InputError("ablate(mode='mean') needs moments=, those of the retain corpus, or retain= to record")
        moments = record(lm, retain, progress=False)
    if moments is not None and (moments.layers, moments["mean"].shape[1]) != (neurons.layers, neurons.width):
        raise InputError(f"the moments are of another model: {moments!r} does not fit {lm!r}")
    changes = list(_zeroed(lm, neurons, units))
    if mode == "mean":
        assert moments is not None
        changes += _mean_biases(lm, neurons, moments)
    return finished(lm, neurons, changes, method=f"ablate:{mode}")


@checks_kinds
@operator
def ablate_mean(
    lm: LM, neurons: Neurons, retain_moments: Moments, *, units: Literal["sleeping", "dead"] = "sleeping"
) -> Edit:
    """Ablate to the retain mean: `ablate(mode="mean")` as `make` calls it, which records the moments."""
    return ablate(lm, neurons, mode="mean", moments=retain_moments, units=units)


def _resampled(lm: LM, neurons: Neurons, retain: Corpus | None) -> Edit:
    from neuronforget.erase.guards.resampling import resample  # some guards train, which begins with this module

    if retain is None:
        raise InputError("ablate(mode='resample') needs retain=, the corpus whose activations take the neurons' place")
    return resample(lm, neurons, retain)


def scope_of(neurons: Neurons | None) -> str:
    """Return what an edit is compared as: of the whole model, of selected neurons, or of a control."""
    if neurons is None:
        return "full"
    return "control" if neurons.info.get("control") else "neurons"


def finished(lm: LM, neurons: Neurons | None, changes: Iterable[Change], **info: Any) -> Edit:
    """Return the edit, with what it is compared as and which units it leaves (`neurons=None`: of all) in its info."""
    edit = Edit.build(lm, changes, scope=scope_of(neurons), neurons=len(neurons) if neurons else None, **info)
    if neurons is None:
        try:
            neurons = all_of(lm, [site.layer for site in lm.sites])
        except InputError:  # of the whole of a model whose MLP cannot be read: it has no units to count
            return edit
    with edit.on(lm):
        units = units_of(lm, neurons)
    return replace(edit, info={**edit.info, "units": count_units(units.values())})


def all_of(lm: LM, layers: Iterable[int]) -> Neurons:
    """Return all neurons of some layers. Raises InputError for a layer that has none."""
    known, asked = tuple(site.layer for site in lm.sites), tuple(layers)
    if unknown := set(asked) - set(known):
        raise InputError(f"no neurons in layer {min(unknown)}: the model's layers are {known}")
    return Neurons(frozenset((layer, j) for layer in asked for j in range(lm.shape[1])), known, lm.shape[1])


def _zeroed(lm: LM, neurons: Neurons, units: str) -> Iterator[Change]:
    chosen = neurons.by_layer()
    for site in lm.sites:
        if site.layer in chosen:
            for part in (site.write, *(site.read if units == "dead" else ())):
                before = slice_of(lm, part, chosen[site.layer])
                index = part.index(chosen[site.layer])
                yield Change(part.name, torch.zeros_like(before), before, part.dim, index, law="set")


def slice_of(lm: LM, part: Part, neurons: torch.Tensor) -> torch.Tensor:
    """Return a copy of the given neurons' weights in one parameter."""
    parameter = lm.parameters[part.name].detach()
    return parameter.index_select(part.dim, part.index(neurons).to(parameter.device))


def _mean_biases(lm: LM, neurons: Neurons, moments: Moments) -> Iterator[Change]:
    chosen = neurons.by_layer()
    for row, site in enumerate(lm.sites):
        if site.layer not in chosen:
            continue
        index = chosen[site.layer]
        weights = slice_of(lm, site.write, index).double()
        mu = moments["mean"][row, index].to(weights)
        shift = weights @ mu if site.write.dim == 1 else mu @ weights
        bias = lm.parameters.get(site.bias)
        before = None if bias is None else bias.detach().clone()
        dtype = lm.parameters[site.write.name].dtype
        after = shift.to(dtype) if before is None else before.double() + shift
        yield Change(site.bias, after, before, law="add")
