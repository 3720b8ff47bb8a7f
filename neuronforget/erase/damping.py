"""Damping: multiply a neuron's write weights by a factor, given, or found from forget and retain statistics.

`w_j *= beta_j` is a gate on the neuron, put from 1 to beta_j: its activations count beta_j times.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import finished, slice_of
from neuronforget.erase.beginning import operator
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.scores import PeakCounts, expert, fisher
from neuronforget.scores.scores import check_same

Factors = Float[Tensor, "layer neuron"]


@checks_kinds
@operator
def dampen(lm: LM, neurons: Neurons, *, factor: float | Factors = 0.5) -> Edit:
    """Multiply the write weights of `neurons` by `factor`: one number, or one for each neuron of the model.

    0 is zero ablation; below 0 the neuron works against itself. Raises InputError for an empty set, and for factors
    that are not finite or not `[layer, neuron]`.
    """
    check_neurons(lm, neurons)
    factors = factor if isinstance(factor, Tensor) else torch.full(lm.shape, float(factor), dtype=torch.float64)
    return _dampened(lm, neurons, factors, "dampen")


@checks_kinds
@operator
@numbers(alpha="> 0", dampening=">= 0")
def ssd(
    lm: LM,
    forget_moments: Moments,
    retain_moments: Moments,
    *,
    neurons: Neurons | None = None,
    alpha: float = 10.0,
    dampening: float = 1.0,
) -> Edit:
    """Dampen by `min(lambda I_r / I_f, 1)` where `I_f > alpha I_r` (SSD, Foster et al. 2024, arXiv:2308.07707).

    I is the diagonal Fisher information of a gate that multiplies the neuron's write weights, `E[s^2]` over examples
    (`s = sum_t a g` is the gate's gradient; the recorded `s2`), so that SSD's rule for a parameter, taken of the gates,
    is the edit. `dampening` is lambda; I_r is that of the retain corpus, the paper's that of all training data.
    `neurons` keeps the rule to a set. Raises InputError where it selects nothing.
    """
    check_same((forget_moments.layers, forget_moments["s2"]), (retain_moments.layers, retain_moments["s2"]))
    f, r = fisher(forget_moments).values, fisher(retain_moments).values
    factors = torch.where(f > alpha * r, (dampening * r / f.clamp_min(torch.finfo(f.dtype).tiny)).clamp_max(1.0), 1.0)
    return _by_rule(lm, neurons, factors, "ssd", alpha=alpha, dampening=dampening)


@checks_kinds
@operator
def aura(
    lm: LM,
    forget_peaks: Moments | PeakCounts,
    retain_peaks: Moments | PeakCounts,
    *,
    neurons: Neurons | None = None,
) -> Edit:
    """Dampen experts of the forget corpus by `1 - 2 (AUROC - 1/2)` where AUROC > 1/2 (AurA, Suau et al. 2024).

    AUROC is that of `scores.expert`: how well the neuron's peak tells a forget example from a retain example
    (arXiv:2407.12824). Not the paper's response: that is the maximum over tokens, this the activation of greatest
    magnitude with its sign, which a recording holds. They agree in every example whose peak is above 0, and part where
    a neuron's deepest activation is larger than its highest, as in gated MLPs. A perfect expert is put at zero, an
    AUROC of 1/2 or less leaves a neuron as it is. Takes recordings with the per-example table, or peak counts.
    `neurons` keeps the rule to a set.
    """
    auroc = expert(forget_peaks, retain_peaks).values
    return _by_rule(lm, neurons, torch.where(auroc > 0.5, 1 - 2 * (auroc - 0.5), 1.0), "aura")


def _by_rule(lm: LM, neurons: Neurons | None, factors: Factors, method: str, **info: float) -> Edit:
    """Dampen the neurons whose factor is not 1, among `neurons` if given."""
    layers = tuple(site.layer for site in lm.sites)
    if tuple(factors.shape) != lm.shape:
        raise InputError(f"{method}: the statistics are of another model: {tuple(factors.shape)} does not fit {lm!r}")
    if neurons is not None:
        check_neurons(lm, neurons)
    among = torch.ones(lm.shape, dtype=torch.bool) if neurons is None else neurons.mask()
    dampened = Neurons.from_mask((factors != 1) & among, layers, **(neurons.info if neurons is not None else {}))
    if not len(dampened):
        found = f"none of {int(among.sum())} neurons"
        raise InputError(f"{method} changed nothing: {found} has more to do with forget than its rule asks for")
    return _dampened(lm, dampened, factors, method, **info)


def _dampened(lm: LM, neurons: Neurons, factors: Factors, method: str, **info: float) -> Edit:
    if tuple(factors.shape) != lm.shape or not torch.isfinite(factors).all():
        found = f"{tuple(factors.shape)} numbers, of which {int((~torch.isfinite(factors)).sum())} are not finite"
        raise InputError(f"factor is a finite number, or {lm.shape[0]} x {lm.shape[1]} of them; found {found}")
    own, chosen, changes = factors[neurons.mask()], neurons.by_layer(), []
    for row, site in enumerate(lm.sites):
        if site.layer in chosen:
            index, part = chosen[site.layer], site.write
            before = slice_of(lm, part, index)
            scale = factors[row, index].double().to(before.device)
            after = before.double() * (scale if part.dim == 1 else scale[:, None])
            changes.append(Change(part.name, after, before, part.dim, part.index(index)))
    span = [float(own.min()), float(own.max())]
    return finished(lm, neurons, changes, method=method, factor=span, **info)
