"""How likely a model finds a batch's answers: what is recorded, trained on and measured alike."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Batch


def answer_nll(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """Return each example's mean negative log-likelihood per answer token, in nats, fp32."""
    mask = batch.answer_mask[:, 1:].to(logits.device)
    return -(token_logp(logits, batch) * mask).sum(1) / mask.sum(1)


def answer_logp(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """Return each example's log-likelihood of the answer, summed over its tokens (nats, fp32)."""
    return (token_logp(logits, batch) * batch.answer_mask[:, 1:].to(logits.device)).sum(1)


def token_logp(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example next"]:
    """Return the log-probability of each next token (nats, fp32); entry t is of token t + 1."""
    ignored = -100  # the last position predicts nothing here: left in, the logits need not be copied without it
    targets = torch.nn.functional.pad(batch.input_ids[:, 1:], (0, 1), value=ignored).to(logits.device)
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=ignored
    )
    return -flat.view(targets.shape)[:, :-1]
