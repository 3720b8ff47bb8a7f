"""Losses that say what the model should predict in place of the forget answers: a distribution over the vocabulary.

What is matched are the positions that predict an answer token; `v` are logits there, `onehot` the answer token.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.losses.outputs import Answered, Outputs
from neuronforget.losses.parts import asks_for, names


@asks_for("retain", unless_zero="alpha")
def me_gd(outputs: Outputs, *, alpha: float = 1.0) -> Tensor:
    """Maximise entropy (Yuan et al. 2024, arXiv:2410.08109): `KL(uniform || model)` on forget `+ alpha NLL_r`."""
    logp = outputs.forget.at(outputs.forget.logits).log_softmax(-1)
    return outputs.forget.mean(-logp.mean(-1) - math.log(logp.shape[-1])) + outputs.keep_nll(alpha)


@asks_for("retain", unless_zero="alpha")
def undial(outputs: Outputs, *, beta: float = 10.0, alpha: float = 0.0) -> Tensor:
    """Self-distillation with adjusted logits (Dong et al. 2024, arXiv:2402.10052).

    Cross-entropy to `softmax(v_start - beta onehot)`, `+ alpha NLL_r`: the start model's own next choices.
    """
    answered = outputs.forget
    target = _lowered(answered, answered.at(answered.start_logits), beta)
    return _cross_entropy(answered, target) + outputs.keep_nll(alpha)


@asks_for("retain", unless_zero="alpha")
def ce_u(outputs: Outputs, *, alpha: float = 0.0) -> Tensor:
    """Cross-entropy unlearning (Yang 2025, arXiv:2503.01224).

    Cross-entropy to the model's own softmax with the answer token left out, detached; `+ alpha NLL_r`. Its
    gradient fades with the answer's probability.
    """
    answered = outputs.forget
    target = _lowered(answered, answered.at(answered.logits).detach(), math.inf)
    return _cross_entropy(answered, target) + outputs.keep_nll(alpha)


@asks_for("reinforced")
def whp(outputs: Outputs, *, alpha: float = 5.0) -> Tensor:
    """Generic predictions for what only the knowing say (Eldan & Russinovich 2023, arXiv:2310.02238).

    Cross-entropy to `softmax(v_start - alpha relu(v_reinforced - v_start))`: what further training on the
    forget corpus makes likelier becomes unlikely.
    """
    answered = outputs.forget
    start = answered.at(answered.start_logits)
    risen = (answered.at(answered.reinforced_logits) - start).relu()
    return _cross_entropy(answered, start - alpha * risen)


@names(expert="context", novice="context")
@asks_for("retain", unless_zero="alpha")
def elm(
    outputs: Outputs,
    *,
    eta: float = 1000.0,
    alpha: float = 1.0,
    expert: str = "Written by someone who knows the subject well:\n",
    novice: str = "Written by someone who knows nothing of the subject:\n",
) -> Tensor:
    """Erase by what the model says as a novice (ELM, Gandikota et al. 2024, arXiv:2410.02760).

    Cross-entropy to `softmax(logp_start + eta (logp_novice - logp_expert))`, the latter two the start model's
    after the texts `novice` and `expert`, `+ alpha KL(start || model)` on retain. The paper's third term, fluency on
    text generated after the erasure, is not part of it. At its `eta` the target is nearly one token.
    """
    answered = outputs.forget

    def logp(logits: Float[Tensor, "example token vocab"]) -> Float[Tensor, "answer vocab"]:
        return answered.at(logits).log_softmax(-1)

    odds = logp(answered.in_context(novice)) - logp(answered.in_context(expert))
    erase = _cross_entropy(answered, logp(answered.start_logits) + eta * odds)
    return erase + alpha * outputs.retain.drift if alpha else erase


@asks_for("retain", "keep")
def pdu(outputs: Outputs, *, eps: float = 0.3, rate: float = 1.0, dual: float = 1.0) -> Tensor:
    """Flatten the logits under a constraint (Entesari et al. 2025, arXiv:2506.05314), primal and dual in turn.

    `mean (max v - mean v)^2 + lambda (NLL_r - eps)`; lambda begins at `dual` and after each step becomes
    `max(0, lambda + rate (NLL_r - eps))`. It is kept in `outputs.keep`, so that a resumed run has it. `eps` is
    an absolute loss (nats): below what the start model has, lambda grows without end.
    """
    logits = outputs.forget.at(outputs.forget.logits)
    flat = outputs.forget.mean((logits.amax(-1) - logits.mean(-1)).square())
    gap, weight = outputs.retain.nll - eps, outputs.keep(dual)
    value = flat + float(weight) * gap
    with torch.no_grad():
        weight.add_(rate * gap.detach().to(weight)).clamp_(min=0)
    return value


def _lowered(answered: Answered, logits: Float[Tensor, "answer vocab"], by: float) -> Float[Tensor, "answer vocab"]:
    """Take `by` from the answer token's logit."""
    labels = answered.labels.to(logits.device)[:, None]
    return logits.scatter(1, labels, logits.gather(1, labels) - by)


def _cross_entropy(answered: Answered, target: Float[Tensor, "answer vocab"]) -> Tensor:
    """Cross-entropy of the model's predictions to `softmax(target)`, a mean over answer tokens (nats)."""
    logp = answered.at(answered.logits).log_softmax(-1)
    return answered.mean(-(target.softmax(-1).to(logp.device) * logp).sum(-1))
