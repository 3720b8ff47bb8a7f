"""LEACE: forget and retain can no longer be told apart, by any linear reader, from what is erased.

For x and a label z the eraser `x' = x - W^+ P W (x - mu)`, with W the whitening of x and P the projection on the
columns of `W Cov(x, z)`, makes `Cov(x', z) = 0` with the least mean squared change (Belrose et al. 2023,
arXiv:2306.03819). Being affine it folds into the output projection: into `W_out` and its bias where x are the MLP's
outputs, into the selected neurons' write weights and the bias where x are their activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import all_of, finished, slice_of
from neuronforget.erase.beginning import operator
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.models.maps import Site
from neuronforget.neurons import Neurons
from neuronforget.taps import TorchHooks


@checks_kinds
@operator
def leace(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    neurons: Neurons | None = None,
    layers: Sequence[int] | None = None,
    shrinkage: bool = True,
    batch_size: int = 64,
) -> Edit:
    """Erase "forget or retain" from the MLP outputs of `layers` (default: all), or from the activations of `neurons`.

    The label is the corpus of each token; every token of both counts once. Layers are fitted lowest first, each in
    a pass of its own under the changes below it, in fp64. `shrinkage` regularises the covariance as concept-erasure
    does, for few tokens. A model without an output bias is given one while the edit is on, which not every architecture
    can export (see `Edit.export`). Raises InputError for corpora that share examples, and where concept-erasure is not
    installed.
    """
    fitter = _fitter()
    check_disjoint(forget, retain)
    if neurons is not None and layers is not None:
        raise InputError("give neurons= or layers=, not both")
    where = "outputs" if neurons is None else "activations"
    if neurons is None:
        neurons = all_of(lm, [site.layer for site in lm.sites] if layers is None else layers)
    check_neurons(lm, neurons)
    chosen, changes = neurons.by_layer(), list[Change]()
    work = [
        (batch, label) for label, corpus in ((1.0, forget), (0.0, retain)) for batch in lm.batches(corpus, batch_size)
    ]
    with frozen(lm):
        for site in (site for site in lm.sites if site.layer in chosen):
            index = chosen[site.layer]
            with Edit(tuple(changes)).on(lm):
                eraser = _fit(lm, site, index, where, work, fitter, shrinkage)
            changes += _folded(lm, site, index, where, eraser)
    info = {"method": "leace", "erased_from": where, "layers": sorted(chosen), "shrinkage": shrinkage}
    return finished(lm, neurons, changes, **info, forget=forget.digest(), retain=retain.digest())


def _fitter() -> Any:
    try:
        from concept_erasure import LeaceFitter
    except ImportError:
        raise InputError("leace needs the package concept-erasure: pip install 'neuronforget[leace]'") from None
    return LeaceFitter


@torch.no_grad()
def features(lm: LM, site: Site, index: Tensor, where: str, batch: Batch) -> Tensor:
    """Return the MLP outputs, or the neurons' activations, at the batch's real tokens, [token, feature], fp64."""
    act = TorchHooks(lm)(batch.inputs).acts[site.layer].flatten(0, -2)
    act = act[batch.attention_mask.bool().flatten().to(act.device)]
    if where == "outputs":
        return lm.model.get_submodule(site.path)(act).double().cpu()
    return act.index_select(-1, index.to(act.device)).double().cpu()


def _fit(
    lm: LM, site: Site, index: Tensor, where: str, work: list[tuple[Batch, float]], fitter: Any, shrinkage: bool
) -> tuple[Tensor, Tensor]:
    """Return (P, mean) of `x' = P x + (1 - P) mean`."""
    width = site.d_model if where == "outputs" else len(index)
    # The tolerance is an absolute covariance: at the package's 0.01 a weak concept would be left as it is.
    fit = fitter(width, 1, dtype=torch.float64, shrinkage=shrinkage, svd_tol=1e-9)
    for batch, label in work:
        x = features(lm, site, index, where, batch)
        fit.update(x, torch.full((len(x), 1), label, dtype=torch.float64))
    return fit.eraser.P, fit.eraser.bias


def _folded(lm: LM, site: Site, index: Tensor, where: str, eraser: tuple[Tensor, Tensor]) -> list[Change]:
    """Give the weights and the bias that do what the eraser does; `y = W a + b`, W being [d_model, neuron]."""
    project, mean = eraser
    part = site.write
    before = slice_of(lm, part, index)
    weights = before.double().cpu() if part.dim == 1 else before.double().cpu().T
    old = lm.parameters.get(site.bias)
    bias = torch.zeros(site.d_model, dtype=torch.float64) if old is None else old.detach().double().cpu()
    rest = mean - project @ mean
    if where == "outputs":
        after, shifted = project @ weights, project @ bias + rest
    else:
        after, shifted = weights @ project, bias + weights @ rest
    after = after if part.dim == 1 else after.T
    kept = None if old is None else old.detach().clone()
    shifted = shifted.to(before.device, before.dtype if kept is None else torch.float64)
    return [
        Change(part.name, after.to(before.device), before, part.dim, part.index(index)),
        Change(site.bias, shifted, kept),
    ]
