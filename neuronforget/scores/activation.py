"""Scores of a forward pass: how much more a neuron responds to the forget corpus."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.scores.scores import Plain, Scores, both, compares, contrasted, floor, sources

Importance = Literal["freq", "abs", "rms", "std"]


@checks_kinds
@compares(2, unless=("scale", "mean"))
def activation_gap(
    forget: Moments, retain: Moments | None = None, *, scale: Literal["mean", "cohen", "welch"] = "mean"
) -> Scores:
    """Score `mean_f - mean_r` of the activation: positive where the neuron fires more on forget.

    "mean" is over tokens; "cohen" (d) and "welch" (t) compare the examples' mean activations, since the
    tokens of one example are not independent. A deviation under a thousandth of the layer's median counts as that.
    """
    if scale == "mean":
        values, _ = contrasted(both(lambda m: m["mean"], forget, retain), "difference")
        return Scores(
            values, "activation_gap", "positive: more active on forget", forget.layers, info=sources(forget, retain)
        )
    assert retain is not None
    gap, _ = contrasted(both(lambda m: m["pool_mean"], forget, retain), "difference")
    if scale == "cohen":
        pooled = (forget["pool_m2"] + retain["pool_m2"]) / (forget.pooled + retain.pooled - 2)
        deviation = pooled.sqrt()
    else:
        parts = [m["pool_m2"] / (m.pooled - 1) / m.pooled for m in (forget, retain)]
        deviation = (parts[0] + parts[1]).sqrt()
    return Scores(
        gap / torch.maximum(deviation, floor(deviation)),  # exact, but for neurons that hardly vary at all
        f"activation_gap:{scale}",
        "positive: more active on forget",
        forget.layers,
        info=sources(forget, retain),
    )


@checks_kinds
@compares()
def activation_ratio(forget: Moments, retain: Moments | None = None, *, importance: Importance = "abs") -> Scores:
    """Score `I_f / (I_r + eps)` (selective pruning, Pochinkov & Schoots 2024, arXiv:2403.01267).

    `I` is the share of tokens with a > 0 ("freq"), E|a| ("abs"), root mean square ("rms") or standard
    deviation ("std"); eps is a thousandth of the layer's median. Always positive.
    """
    values, _ = contrasted(both(lambda m: _importance(m, importance), forget, retain), "ratio")
    name, sign = f"activation_ratio:{importance}", "large: more active on forget"
    return Scores(values, name, sign, forget.layers, info=sources(forget, retain))


@checks_kinds
@compares()
def activation_entropy(forget: Moments, retain: Moments | None = None, *, least: float = 0.01) -> Scores:
    """Score how specific to one corpus a neuron fires: `±(ln 2 - H)` (LAPE, Tang et al. 2024, arXiv:2402.16438).

    H is the entropy of `P(a > 0)` on forget and retain, normalised to sum 1 (nats): 0 where it fires on one
    corpus only, ln 2 where it fires equally on both; the sign is + where it fires more on forget. A neuron
    that fires on less than `least` of the tokens of both is too rare to be called specific, and scores 0.
    """
    if not 0 <= least <= 1:
        raise InputError(f"least is a share of the tokens, from 0 to 1; found {least}")
    rates = torch.stack([rate for rate in both(lambda m: _importance(m, "freq"), forget, retain) if rate is not None])
    shares = rates / rates.sum(0).clamp_min(torch.finfo(rates.dtype).tiny)
    specific = (math.log(2) + torch.special.xlogy(shares, shares).sum(0)).clamp_min(0)
    counted = rates.amax(0) >= max(least, torch.finfo(rates.dtype).tiny)
    values = torch.where(counted, specific * (rates[0] - rates[1]).sign(), 0.0)
    sign = "positive: fires on forget only, negative: on retain"
    return Scores(values, "activation_entropy", sign, forget.layers, info=sources(forget, retain))


@checks_kinds
def activation_norm(forget: Moments, retain: Moments | None = None, *, contrast: Plain = "difference") -> Scores:
    """Score `E|a| ||w_j||_2`: how much the neuron writes into the residual stream per token.

    The difference is the default contrast: in a ratio the norm cancels, which is `activation_ratio`.
    """
    score, _ = contrasted(both(lambda m: _importance(m, "abs") * m.norms["l2"], forget, retain), contrast)
    sign = "positive: writes more on forget"
    return Scores(score, "activation_norm", sign, forget.layers, info=sources(forget, retain))


@checks_kinds
def wanda(forget: Moments, retain: Moments | None = None, *, contrast: Plain = "ratio") -> Scores:
    """Score `||w_j||_1 sqrt(mean a^2)` (Wanda, Sun et al. 2024, arXiv:2306.11695, by neuron)."""
    score, _ = contrasted(both(lambda m: m.rms * m.norms["l1"], forget, retain), contrast)
    return Scores(score, "wanda", "large: writes more on forget", forget.layers, info=sources(forget, retain))


def _importance(moments: Moments, kind: Importance) -> Tensor:
    if kind == "freq":
        return moments["positive"] / moments.tokens
    if kind == "abs":
        return moments["abs_sum"] / moments.tokens
    if kind == "rms":
        return moments.rms
    return moments.variance.sqrt()
