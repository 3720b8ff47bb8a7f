"""Losses that prefer one answer to another, or to what the start model would have said; and refusing outright."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.losses.outputs import Outputs
from neuronforget.losses.parts import asks_for


@checks_kinds
@numbers(beta="> 0")
@asks_for("retain", unless_zero="alpha")
def npo(outputs: Outputs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """Negative preference optimisation (Zhang et al. 2024, arXiv:2404.05868).

    `-(2/beta) log sigma(-beta dlogp_f) + alpha NLL_r`: gradient ascent whose pull fades as it forgets.
    """
    return _pull(-outputs.forget.dlogp, beta) + outputs.keep_nll(alpha)


@checks_kinds
@numbers(beta="> 0")
@asks_for("retain", unless_zero="alpha")
def simnpo(
    outputs: Outputs, *, beta: float = 4.5, delta: float = 0.0, gamma: float = 0.125, alpha: float = 1.0
) -> Tensor:
    """NPO by length and without a reference (Fan et al. 2024, arXiv:2410.07163).

    `-gamma (2/beta) log sigma(beta (NLL_f - delta)) + alpha NLL_r`, NLL per token: long answers pull no
    harder. An answer is forgotten once its NLL exceeds `delta`.
    """
    return gamma * _pull(outputs.forget.nlls - delta, beta) + outputs.keep_nll(alpha)


@checks_kinds
@numbers(beta="> 0")
@asks_for("preferred")
@asks_for("retain", unless_zero="alpha")
def dpo(outputs: Outputs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023) of a preferred answer over the forget answer.

    `-(2/beta) log sigma(beta (dlogp_preferred - dlogp_f)) + alpha NLL_r`, 2/beta times the usual scale.
    """
    return _pull(outputs.preferred.dlogp - outputs.forget.dlogp, beta) + outputs.keep_nll(alpha)


@checks_kinds
@numbers(beta="> 0")
@asks_for("retain", unless_zero="alpha")
def altpo(outputs: Outputs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """DPO of answers that the model itself generates (Mekala et al. 2024, arXiv:2409.13474).

    `-(2/beta) log sigma(beta (dlogp_alternate - dlogp_f)) + alpha NLL_r`; see `erase.alternates`.
    """
    return _pull(outputs.alternates.dlogp - outputs.forget.dlogp, beta) + outputs.keep_nll(alpha)


@asks_for("preferred")
@asks_for("retain", unless_zero="alpha")
def rt(outputs: Outputs, *, alpha: float = 0.0) -> Tensor:
    """Rejection tuning (RWKU, Jin et al. 2024, arXiv:2406.10890): `NLL_refusal + alpha NLL_r`."""
    return outputs.preferred.nll + outputs.keep_nll(alpha)


@asks_for("preferred")
def ga_rt(outputs: Outputs, *, weight: float = 1.0) -> Tensor:
    """Gradient ascent and rejection tuning together: `-NLL_f + weight NLL_refusal`; sweep `weight`."""
    return -outputs.forget.nll + weight * outputs.preferred.nll


@checks_kinds
@numbers(beta="> 0")
@asks_for("preferred")
@asks_for("retain", unless_zero="alpha")
def idk_ap(outputs: Outputs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """Refuse what is to be forgotten, and prefer retain answers to refusing (Yuan et al. 2024, arXiv:2410.08109).

    `NLL_refusal - (alpha/beta) log sigma(beta (logp_r - logp_refusal to r))`, whole answers in the second
    term. Without it a model that learns to refuse refuses everything.
    """
    refuse = outputs.preferred.nll
    if not alpha:
        return refuse
    return refuse + alpha * outputs.retain.average(_pulls(outputs.retain.logp - outputs.refused.logp, beta)) / 2


def _pull(margin: Float[Tensor, "example"], beta: float) -> Tensor:
    """The mean of `_pulls` over the forget examples."""
    return _pulls(margin, beta).mean()


def _pulls(margin: Float[Tensor, "example"], beta: float) -> Float[Tensor, "example"]:
    """`-(2/beta) log sigma(beta margin)`: it fades as the margin grows."""
    return -(2 / beta) * logsigmoid(beta * margin)
