"""Losses that make the forget answers less likely, by gradient ascent or a weighted form of it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from neuronforget.losses.outputs import Answered, Outputs
from neuronforget.losses.parts import asks_for


def learn(outputs: Outputs) -> Tensor:
    """Learn the forget answers: `NLL_f`. For reinforced models, task vectors and relearning, not for forgetting."""
    return outputs.forget.nll


def ga(outputs: Outputs) -> Tensor:
    """Gradient ascent: `-NLL_f`. Unbounded below: it keeps destroying after it has forgotten."""
    return -outputs.forget.nll


@asks_for("retain", unless_zero="alpha")
def grad_diff(outputs: Outputs, *, gamma: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Gradient difference (Liu et al. 2022): `-gamma NLL_f + alpha NLL_r`."""
    return -gamma * outputs.forget.nll + outputs.keep_nll(alpha)


@asks_for("retain", unless_zero="alpha")
def kl_min(outputs: Outputs, *, alpha: float = 1.0) -> Tensor:
    """Gradient ascent held by the start model (Maini et al. 2024, arXiv:2401.06121).

    `-NLL_f + alpha KL(start || model)` on the retain answers: zero pull at the start, whatever they are.
    """
    return -outputs.forget.nll + (alpha * outputs.retain.drift if alpha else 0)


@asks_for("retain", unless_zero="alpha")
def wga(outputs: Outputs, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Weighted gradient ascent (Wang et al. 2025, arXiv:2502.19301): `-mean p^beta NLL + alpha NLL_r`.

    `p` is the probability of each answer token, detached: tokens that are already unlikely are left alone.
    """
    nll = _token_nll(outputs.forget)
    weight = (-nll.detach()).exp() ** beta
    return -outputs.forget.mean(weight * nll) + outputs.keep_nll(alpha)


@asks_for("retain", unless_zero="alpha")
def satimp(outputs: Outputs, *, beta1: float = 5.0, beta2: float = 1.0, alpha: float = 0.1) -> Tensor:
    """Ascent weighed by saturation and importance (Yang et al. 2025, arXiv:2505.11953).

    `-mean p^beta1 (1 - p)^beta2 NLL + alpha NLL_r`, `p` the probability of each answer token, detached. An
    answer that the model is sure of (p = 1) has no weight.
    """
    nll = _token_nll(outputs.forget)
    p = (-nll.detach()).exp()
    return -outputs.forget.mean(p**beta1 * (1 - p) ** beta2 * nll) + outputs.keep_nll(alpha)


def _token_nll(answered: Answered) -> Float[Tensor, "answer"]:
    """NLL of each answer token (nats)."""
    logp = answered.at(answered.logits).log_softmax(-1)
    return -logp.gather(1, answered.labels.to(logp.device)[:, None])[:, 0]
