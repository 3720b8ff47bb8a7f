"""Selection by rank: the highest scores. Ties are broken by position, so a selection is reproducible."""

from __future__ import annotations

import math
import operator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.sites import experts_of_a_layer
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores
from neuronforget.scores.scores import check_same

By = Literal["value", "magnitude"]


@checks_kinds
def top(scores: Scores, k: int | float, *, by: By = "value") -> Neurons:
    """Select the `k` highest neurons of the whole model (a fraction, up to 1.0: that share of them)."""
    ranked = _ranked(scores, by)
    count = how_many(k, ranked.numel())
    mask = _highest(ranked.flatten(), count).view(ranked.shape)
    return _named(mask, scores, "top", k=k, by=by)


@checks_kinds
def per_layer(scores: Scores, k: int | float, *, by: By = "value") -> Neurons:
    """Select the `k` highest neurons of each layer (a fraction, up to 1.0: that share): none crowds out the rest."""
    ranked = _ranked(scores, by)
    count = how_many(k, ranked.shape[1])
    mask = torch.stack([_highest(row, count) for row in ranked])
    return _named(mask, scores, "per_layer", k=k, by=by)


@checks_kinds
def experts(lm: LM, scores: Scores, k: int | float = 1, *, by: By = "value") -> Neurons:
    """Select all neurons of the `k` routed experts of the whole model whose scores sum highest (`nf.open_experts`)."""
    ranked = _ranked(scores, by)
    check_same((tuple(site.layer for site in lm.sites), torch.empty(lm.shape)), (scores.layers, ranked))
    sums = ranked.unflatten(1, (experts_of_a_layer(lm.model, lm.sites), -1)).sum(2)
    chosen = _highest(sums.flatten(), how_many(k, sums.numel(), "experts")).view(sums.shape)
    mask = chosen.repeat_interleave(ranked.shape[1] // sums.shape[1], 1)
    return _named(mask, scores, "experts", k=k, by=by)


@checks_kinds
def threshold(scores: Scores, t: float, *, by: By = "value") -> Neurons:
    """Select neurons that reach `t` times the highest score (knowledge neurons use t = 0.2)."""
    if not 0 < t <= 1:
        raise InputError(f"threshold must lie in (0, 1], found {t}")
    ranked = _ranked(scores, by)
    if ranked.max() <= 0:
        raise InputError(f"no neuron has a positive {scores.name}: a share of the highest score selects nothing")
    return _named(ranked >= t * ranked.max(), scores, "threshold", t=t, by=by)


@checks_kinds
def percentile(scores: Scores, q: float, *, by: By = "value") -> Neurons:
    """Select neurons at or above the `q`-th percentile of all scores (99: the highest hundredth)."""
    if not 0 < q <= 100:
        raise InputError(f"a percentile lies in (0, 100], found {q}; a share of the neurons is top(scores, share)")
    ranked = _ranked(scores, by)
    cut = float(np.percentile(ranked.detach().double().cpu().numpy(), q))  # torch.quantile takes 2^24 values at most
    return _named(ranked >= cut, scores, "percentile", q=q, by=by)


@checks_kinds
def ratio(forget: Scores, retain: Scores, alpha: float = 10.0) -> Neurons:
    """Select where forget depends on a neuron more than `alpha` times as much as retain does (SSD, Foster et al. 2024).

    Both are the same unsigned score of one corpus each, not contrasts: `fisher(moments)` of forget, and of retain.
    Raises InputError for others, for two that do not measure the same, and where no neuron is so specific.
    """
    check_same((forget.layers, forget.values), (retain.layers, retain.values))
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha is how many times as large the forget score is: a number above 0, found {alpha}")
    for scores in (forget, retain):
        if scores.info.get("retain") is not None or scores.values.min() < 0:
            raise InputError(f"ratio needs an unsigned score of one corpus, such as fisher(moments); found {scores!r}")
    if forget.name != retain.name:
        raise InputError(f"ratio compares one score on two corpora; found {forget.name!r} and {retain.name!r}")
    mask = forget.values > alpha * retain.values
    if not mask.any():
        raise InputError(f"no neuron has a {forget.name} over {alpha:g} times that on retain: lower alpha")
    return _named(mask, forget, "ratio", alpha=alpha)


@checks_kinds
def difference(forget: Scores, retain: Scores, q: int | float, p: int | float, *, by: By = "value") -> Neurons:
    """Select the top `q` on forget that are not among the top `p` on retain (set difference, Wei et al. 2024)."""
    return top(forget, q, by=by) - top(retain, p, by=by)


def _ranked(scores: Scores, by: By) -> Tensor:
    return scores.values.abs() if by == "magnitude" else scores.ranked


def how_many(k: int | float, total: int, what: str = "neurons") -> int:
    """Return `k`, or that share of `total`. Raises InputError unless it is from 1 to `total`.

    1 is one neuron, 1.0 all of them: a fraction that grows does not turn into a number at its end.
    """
    share = k < 1 or (k == 1 and not _whole(k))
    count = 0 if not k > 0 else round(float(k * total)) if share else int(min(k, total + 1))
    if not 0 < count <= total or isinstance(k, bool) or (k > 1 and k != count):
        raise InputError(f"cannot select {k} of {total} {what}: give a number from 1 to {total}, or a share up to 1.0")
    return count


def _whole(k: object) -> bool:
    """Is it a whole number by its kind, of whichever library?"""
    try:
        operator.index(k)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _highest(values: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[torch.sort(values, descending=True, stable=True).indices[:count]] = True
    return mask


def _named(mask: Tensor, scores: Scores, rule: str, **settings: object) -> Neurons:
    return Neurons.from_mask(mask, scores.layers, score=scores.name, rule=rule, **settings)
