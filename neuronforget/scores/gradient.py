"""First-order scores from one backward pass: `s = sum_t a g` and `u = sum_t g` of each example.

Signs follow the loss: a positive score predicts that the loss on the forget corpus RISES when the neuron is
ablated, so that its ablation forgets. All are per example (sums over its tokens, means over examples).
"""

from __future__ import annotations

from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.moments import Moments
from neuronforget.scores.scores import Contrast, Plain, Scores, both, contrasted, sources

SIGN = "positive: ablating it is predicted to raise the forget loss"


@checks_kinds
def grad_x_act(forget: Moments, retain: Moments | None = None, *, contrast: Contrast = "difference") -> Scores:
    """Score `-sum_t a g`: the first-order loss change of zero ablation (attribution patching, Nanda 2023)."""
    values, error = contrasted(both(lambda m: -_mean(m, "s"), forget, retain), contrast, _errors(forget, retain))
    return Scores(values, "grad_x_act", SIGN, forget.layers, error, sources(forget, retain))


@checks_kinds
def mean_patch(forget: Moments, retain: Moments | None = None, *, contrast: Contrast = "difference") -> Scores:
    """Score `mu_j u - s`: the first-order loss change of putting the mean activation (of retain, if given)."""
    mu = (retain or forget)["mean"]
    values, error = contrasted(
        both(lambda m: mu * _mean(m, "u") - _mean(m, "s"), forget, retain), contrast, _errors(forget, retain, mu)
    )
    return Scores(values, "mean_patch", SIGN, forget.layers, error, sources(forget, retain))


@checks_kinds
def fisher(forget: Moments, retain: Moments | None = None, *, contrast: Plain = "ratio") -> Scores:
    """Score `E[s^2]` over examples: the Fisher information of a gate on the neuron (SSD, Foster et al. 2024).

    Unsigned: a large value says that the loss depends on the neuron, not in which direction.
    """
    values, _ = contrasted(both(lambda m: _mean(m, "s2"), forget, retain), contrast)
    sign = "large: the forget loss depends on it"
    return Scores(values, "fisher", sign, forget.layers, info=sources(forget, retain))


@checks_kinds
def snip(forget: Moments, retain: Moments | None = None, *, contrast: Contrast = "difference") -> Scores:
    """Score `sum_n s = sum_d W_out[j, d] dL/dW_out[j, d]` per example (SNIP, Lee et al. 2019, signed).

    It is minus `grad_x_act`, seen from the weights: a cross-check, and negative where ablation forgets.
    """
    values, error = contrasted(both(lambda m: _mean(m, "s"), forget, retain), contrast, _errors(forget, retain))
    sign = "negative: ablating it is predicted to raise the forget loss"
    return Scores(values, "snip", sign, forget.layers, error, sources(forget, retain), end="low")


def _mean(moments: Moments, name: str) -> Tensor:
    return moments[name] / moments.examples


def _errors(forget: Moments, retain: Moments | None, mu: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
    return _error(forget, mu), _error(retain, mu) if retain is not None else None


def _error(moments: Moments, mu: Tensor | None) -> Tensor | None:
    """Standard error over examples of the mean of `mu u - s` (of `s` where there is no mu); one example has none."""
    if moments.examples < 2:
        return None
    n, square, mean = moments.examples, moments["s2"], moments["s"]
    if mu is not None:
        square = mu**2 * moments["u2"] - 2 * mu * moments["us"] + square
        mean = mu * moments["u"] - mean
    return ((square - mean**2 / n).clamp_min(0) / (n - 1) / n).sqrt()
