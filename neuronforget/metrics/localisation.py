"""Is the localisation right? A ranking of neurons against the true ones, and against exact ablation.

`truth` are the neurons that hold the forget facts, where they are known; `exact` is the loss change of ablating each
neuron alone. Where neither is known, `knockout` tells. Intervals are of 95%; every one says over what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget import select
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.results.intervals import of_auc
from neuronforget.scores import Scores
from neuronforget.scores.experts import auroc as area_under_roc
from neuronforget.scores.scores import check_same

Interval = tuple[float, float, float]
QUANTILE = 1.959964


def recall_curve(scores: Scores, truth: Neurons, ks: Sequence[int | float] | None = None) -> list[dict[str, Any]]:
    """Return, for each k, the share of the true neurons in the top k, and what a random k would find.

    Rows: k, recall, precision, chance (the mean of random selections), low and high (95% of random selections:
    a recall above `high` is no luck). `ks` below 1 are shares; by default halvings of the whole model.
    """
    from scipy.stats import hypergeom

    _check_truth(scores, truth)
    total, true = scores.values.numel(), len(truth)
    order = scores.ranked.flatten().sort(descending=True, stable=True).indices
    hits = truth.mask().flatten()[order].cumsum(0)
    rows = []
    for k in counts(ks, total):
        low, high = hypergeom.ppf([0.025, 0.975], total, true, k) / true
        found = int(hits[k - 1])
        rows.append({"k": k, "recall": found / true, "precision": found / k, "chance": k / total})
        rows[-1] |= {"low": float(low), "high": float(high)}
    return rows


def auroc(scores: Scores, truth: Neurons) -> Interval:
    """Return (AUROC, low, high): the chance that a true neuron scores above another, and its interval over neurons.

    The interval is `intervals.of_auc`; of one true neuron there is none (NaN).
    """
    _check_truth(scores, truth)
    return _auroc(scores.ranked, truth)


def spearman(scores: Scores, exact: Scores) -> Interval:
    """Return Spearman's rank correlation with exact ablation over all neurons, as if neurons were independent."""
    check_same((scores.layers, scores.values), (exact.layers, exact.values))
    return rank_correlation(scores.ranked.flatten().numpy(), exact.ranked.flatten().numpy(), "neurons")


def rank_correlation(x: Float[np.ndarray, "unit"], y: Float[np.ndarray, "unit"], units: str) -> Interval:
    """Return (Spearman's correlation, low, high): Fisher's z with Bonett & Wright's (2000) error over `units`."""
    from scipy.stats import spearmanr

    if len(x) < 4:
        raise InputError(f"a rank correlation with an interval needs four or more {units}, found {len(x)}")
    if broken := int((~(np.isfinite(x) & np.isfinite(y))).sum()):
        raise InputError(f"the score or effect of {broken} of {len(x)} {units} is NaN or infinite: these have no rank")
    if min(np.ptp(x), np.ptp(y)) == 0:
        raise InputError(f"all {units} have one and the same score or effect: their ranks have no correlation")
    r = float(spearmanr(x, y).statistic)
    z, error = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15)), math.sqrt((1 + r * r / 2) / (len(x) - 3))
    return r, math.tanh(z - QUANTILE * error), math.tanh(z + QUANTILE * error)


def captured_effect(scores: Scores, exact: Scores, ks: Sequence[int | float] | None = None) -> list[dict[str, Any]]:
    """Return, for each k, how much of the exact effect the top k capture.

    Rows: k, effect (sum of the exact effects of the top k), best (of the k largest), share (effect / best), chance,
    low and high (that share for random selections: mean and 95%, normal approximation without replacement).
    Single effects do not add exactly: the joint effect is what `ablation_curve` measures.
    """
    check_same((scores.layers, scores.values), (exact.layers, exact.values))
    total, effects = exact.values.numel(), exact.values.flatten()
    order = scores.ranked.flatten().sort(descending=True, stable=True).indices
    found, best = effects[order].cumsum(0), effects.sort(descending=True).values.cumsum(0)
    if not best[0] > 0:
        raise InputError("no neuron has a positive exact effect: there is nothing to capture")
    mean, variance = float(effects.mean()), float(effects.var(correction=0))
    rows = []
    for k in counts(ks, total):
        most = float(best[k - 1])
        spread = math.sqrt(k * variance * (total - k) / max(total - 1, 1))
        chance = [(k * mean + sign * QUANTILE * spread) / most if most > 0 else math.nan for sign in (0, -1, 1)]
        share = float(found[k - 1]) / most if most > 0 else math.nan
        rows.append({"k": k, "effect": float(found[k - 1]), "best": most, "share": share})
        rows[-1] |= dict(zip(("chance", "low", "high"), chance, strict=True))
    return rows


def edit_precision(lm: LM, edit: Edit, truth: Neurons) -> Interval:
    """Return (AUROC, low, high) with which the size of an edit's weight change finds the true neurons.

    1: it changed true neurons more than any other; 0.5: it spread at random; the interval is as of `auroc`.
    """
    change = weight_change(lm, edit)
    if not truth or (truth.layers, (len(truth.layers), truth.width)) != (layers_of(lm), lm.shape):
        raise InputError(f"the true neurons do not fit the model, or there are none: {truth!r}")
    return _auroc(change, truth)


def weight_change(lm: LM, edit: Edit) -> Float[Tensor, "layer neuron"]:
    """Return the Euclidean norm of the change of each neuron's own read and write weights, fp64.

    Changes of other parameters (attention, embeddings, output biases) belong to no neuron and are left out.
    """
    squares = torch.zeros(lm.shape, dtype=torch.float64)
    by_name = {change.name: change for change in edit.changes if change.before is not None}
    for row, site in enumerate(lm.sites):
        for part in (site.write, *site.read):
            if part.name not in by_name:
                continue
            change = by_name[part.name]
            moved = torch.zeros(lm.parameters[part.name].shape, dtype=torch.float64)
            assert change.before is not None
            change.write(moved, change.after.double().cpu() - change.before.double().cpu())
            own = moved.index_select(part.dim, part.index(torch.arange(site.d_mlp)))
            squares[row] += own.square() if own.ndim == 1 else own.square().sum(1 - part.dim)
    return squares.sqrt()


def _auroc(values: Tensor, truth: Neurons) -> Interval:
    mask = truth.mask()
    value, error = (float(x) for x in area_under_roc(values[mask], values[~mask]))
    return value, *of_auc(value, len(truth), mask.numel() - len(truth), error=error)


def counts(ks: Sequence[int | float] | None, total: int) -> list[int]:
    """Counts from 1 to `total`, rising, each once."""
    if ks is None:
        ks = [total >> i for i in range(total.bit_length())]
    if not len(ks):
        raise InputError("ks is empty: give at least one count of neurons")
    return sorted({select.how_many(k, total) for k in ks})


def layers_of(lm: LM) -> tuple[int, ...]:
    return tuple(site.layer for site in lm.sites)


def _check_truth(scores: Scores, truth: Neurons) -> None:
    if (scores.layers, scores.values.shape[1]) != (truth.layers, truth.width):
        raise InputError(f"scores and true neurons are of different models: {scores!r}, {truth!r}")
    if not 0 < len(truth) < scores.values.numel():
        raise InputError(f"{len(truth)} of {scores.values.numel()} neurons are true: some must be, and some not")
