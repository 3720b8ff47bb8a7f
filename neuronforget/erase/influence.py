"""Influence: what the model would be had it not been trained on the forget corpus, to first or second order.

    first order    theta + tau (dL_f - dL_f'),   L_f the mean NLL of the forget answers, L_f' of other answers
    second order   theta + (|f| / N) (H + damping)^-1 (dL_f - dL_f'),   H of the mean NLL of N examples

with L_f' = 0 unless `preferred` answers take the old ones' place (Warnecke et al. 2021, arXiv:2108.11577). H over
forget and retain (`over="all"`) is the influence function (Koh & Liang 2017, arXiv:1703.04730); over retain alone it
is a Newton step on what is left, exact where the loss is quadratic and the model at its minimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import finished
from neuronforget.erase.beginning import operator
from neuronforget.erase.curvature import (
    Curvature,
    Objective,
    Part,
    check_solver,
    conjugate_gradients,
    twice_differentiable,
)
from neuronforget.erase.finetune import preferred_answers
from neuronforget.erase.slices import Slices
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.neurons import Neurons


@checks_kinds
@operator
def first_order_update(
    lm: LM,
    forget: Corpus,
    *,
    tau: float = 0.1,
    neurons: Neurons | None = None,
    preferred: Corpus | Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Edit:
    """Step once up the forget loss (and down that of `preferred` answers), `tau` times its gradient.

    On the read and write weights of `neurons`, or on every parameter. Raises InputError if nothing changed.
    """
    if not tau > 0:
        raise InputError(f"first_order_update steps tau times the gradient: tau > 0, found {tau}")
    with moved(lm, neurons) as at:
        step = tau * undone(lm, at.parameters, forget, preferred, batch_size, seed)
        changes = at.changes(step)
    info = {"method": "first_order_update", "tau": tau, "forget": forget.digest()}
    return finished(lm, neurons, changes, **info, **_about(step, preferred))


@checks_kinds
@operator
def second_order_update(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    neurons: Neurons | None = None,
    preferred: Corpus | Sequence[str] | None = None,
    over: Literal["retain", "all"] = "retain",
    curvature: Curvature = "gauss_newton",
    damping: float = 0.1,
    steps: int = 200,
    tolerance: float = 1e-2,
    batch_size: int = 32,
    seed: int = 0,
) -> Edit:
    """Undo the forget corpus' share in the training to second order; `info["residual"]` says how well it was solved.

    Every step of the solver passes over the corpora of H: give a sample of retain where it is large. The formula
    takes the model for one at the minimum of its training loss, forget and retain being all it was trained on; where
    that is not so a weaker edit (`scaled`) may do better. Raises InputError where the solution misses `tolerance`,
    along negative curvature (`curvature="hessian"`), and for a model in half precision.
    """
    check_disjoint(forget, retain)
    check_solver(damping, steps, tolerance)
    with moved(lm, neurons) as at:
        size = len(retain) + (len(forget) if over == "all" else 0)
        parts = parts_of(lm, retain, size, batch_size)
        parts += parts_of(lm, forget, size, batch_size) if over == "all" else []
        objective = Objective(at.parameters, parts)
        b = len(forget) / size * undone(lm, at.parameters, forget, preferred, batch_size, seed)
        apply = partial(objective.product, kind=curvature)
        found = conjugate_gradients(apply, b, damping=damping, steps=steps, tolerance=tolerance)
        changes = at.changes(found.x)
    info: dict[str, Any] = {"method": "second_order_update", "forget": forget.digest()}
    info |= {"retain": retain.digest(), "over": over, "curvature": curvature, "damping": damping}
    info |= {"residual": found.residual, "steps": found.steps}
    return finished(lm, neurons, changes, **info, **_about(found.x, preferred))


class At:
    """The parameters that an update moves: slices of neurons, or all of a model's own."""

    def __init__(self, lm: LM, slices: Slices | None) -> None:
        self.lm, self.slices = lm, slices
        own = lm.parameters
        self.names = list(own)
        self.parameters: list[Tensor] = list(own.values()) if slices is None else [s.values for s in slices.all()]

    def changes(self, step: Tensor) -> list[Change]:
        """Return the changes that add the flat `step`; the model is left as it was."""
        shaped = Objective(self.parameters, ()).shaped(step)
        if self.slices is None:
            old = [p.detach() for p in self.parameters]
            return [Change(n, p + d, p.clone()) for n, p, d in zip(self.names, old, shaped, strict=True) if d.any()]
        with torch.no_grad():
            for part, d in zip(self.slices.all(), shaped, strict=True):
                part.values.add_(d)
        return [part.change() for part in self.slices.all()]


@contextmanager
def moved(lm: LM, neurons: Neurons | None) -> Iterator[At]:
    """Within the block the chosen parameters carry gradients, twice; all else is frozen, and comes back as it was."""
    if neurons is not None:
        check_neurons(lm, neurons)
    check_precision(lm)
    with frozen(lm), twice_differentiable():
        slices = None if neurons is None else Slices.of(lm, neurons)
        if slices is None:
            lm.model.requires_grad_(True)
            yield At(lm, None)
            return
        with slices.on():
            yield At(lm, slices)


def check_precision(lm: LM) -> None:
    """Raise InputError for a model in half precision, whose second derivatives are noise."""
    if any(p.dtype not in (torch.float32, torch.float64) for p in lm.parameters.values()):
        raise InputError("curvature needs full precision: load the model with dtype=torch.float32")


def undone(
    lm: LM,
    parameters: Sequence[Tensor],
    forget: Corpus,
    preferred: Corpus | Sequence[str] | None,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Return the flat gradient of the mean NLL of the forget answers, minus that of `preferred` ones where given."""
    # The examples' own `wrong` answers are not taken unasked: removing is the default.
    answers = None if preferred is None else preferred_answers(forget, preferred, seed)
    gradient = Objective(parameters, parts_of(lm, forget, len(forget), batch_size)).gradient()
    if answers is None:
        return gradient
    return gradient - Objective(parameters, parts_of(lm, answers, len(forget), batch_size)).gradient()


def parts_of(lm: LM, corpus: Corpus, size: int, batch_size: int) -> list[Part]:
    """Return the corpus by batches: logits at answer tokens, and the NLL of whole examples divided by `size`."""
    rows = lm.encode(corpus)
    return [_part(lm, batch, size) for batch in lm.batches(rows, batch_size)]


def _part(lm: LM, batch: Batch, size: int) -> Part:
    mask = batch.answer_mask[:, 1:]
    labels = batch.input_ids[:, 1:][mask]
    weights = (mask / (mask.sum(1, keepdim=True) * size))[mask]

    def outputs() -> Tensor:
        return lm.model(**batch.inputs, use_cache=False).logits[:, :-1][mask]

    def loss(logits: Tensor) -> Tensor:
        nll = torch.nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="none")
        return (weights.to(nll) * nll).sum()

    return outputs, loss


def _about(step: Tensor, preferred: Any) -> dict[str, Any]:
    return {"step_norm": float(step.norm()), "other_answers": preferred is not None}
