"""Scores of a forward pass: how much more a neuron responds to the forget corpus."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.scores.scores import Contrast, Scores, contrasted, floor

Importance = Literal["freq", "abs", "rms", "std"]


def activation_gap(
    forget: Moments, retain: Moments | None = None, *, scale: Literal["mean", "cohen", "welch"] = "mean"
) -> Scores:
    """Score `mean_f - mean_r` of the activation: positive where the neuron fires more on forget.

    "mean" is over tokens; "cohen" (d) and "welch" (t) compare the examples' mean activations, since the
    tokens of one example are not independent.
    """
    if scale == "mean":
        values = forget["mean"] - (retain["mean"] if retain is not None else 0.0)
        return Scores(values, "activation_gap", "positive: more active on forget", forget.layers)
    if scale not in ("cohen", "welch"):
        raise InputError(f"unknown scale {scale!r}: use 'mean', 'cohen' or 'welch'")
    if retain is None:
        raise InputError(f"activation_gap(scale={scale!r}) compares two corpora: give retain moments too")
    if min(forget.pooled, retain.pooled) < 2:
        raise InputError(f"activation_gap(scale={scale!r}) needs two or more examples in each corpus")
    gap = forget["pool_mean"] - retain["pool_mean"]
    if scale == "cohen":
        pooled = (forget["pool_m2"] + retain["pool_m2"]) / (forget.pooled + retain.pooled - 2)
        deviation = pooled.sqrt()
    else:
        parts = [m["pool_m2"] / (m.pooled - 1) / m.pooled for m in (forget, retain)]
        deviation = (parts[0] + parts[1]).sqrt()
    return Scores(
        gap / (deviation + floor(deviation)),
        f"activation_gap:{scale}",
        "positive: more active on forget",
        forget.layers,
    )


def activation_ratio(forget: Moments, retain: Moments | None = None, *, importance: Importance = "abs") -> Scores:
    """Score `I_f / (I_r + eps)` (selective pruning, Pochinkov & Schoots 2024, arXiv:2403.01267).

    `I` is the share of tokens with a > 0 ("freq"), E|a| ("abs"), root mean square ("rms") or standard
    deviation ("std"); eps is a thousandth of the layer's median. Always positive.
    """
    if retain is None:
        raise InputError("activation_ratio compares two corpora: give retain moments too")
    values, _ = contrasted((_importance(forget, importance), _importance(retain, importance)), "ratio")
    return Scores(values, f"activation_ratio:{importance}", "large: more active on forget", forget.layers)


def wanda(forget: Moments, retain: Moments | None = None, *, contrast: Contrast = "ratio") -> Scores:
    """Score `||w_j||_1 sqrt(mean a^2)` (Wanda, Sun et al. 2024, arXiv:2306.11695, by neuron)."""
    pair = forget.rms * forget.norms["l1"], retain.rms * retain.norms["l1"] if retain is not None else None
    score, _ = contrasted(pair, contrast)
    return Scores(score, "wanda", "large: writes more on forget", forget.layers)


def _importance(moments: Moments, kind: Importance) -> Tensor:
    if kind == "freq":
        return moments["positive"] / moments.tokens
    if kind == "abs":
        return moments["abs_sum"] / moments.tokens
    if kind == "rms":
        return moments.rms
    if kind == "std":
        return moments.variance.sqrt()
    raise InputError(f"unknown importance {kind!r}: use 'freq', 'abs', 'rms' or 'std'")
