"""value_fisher: the squared gradient of each neuron's write weights, example by example, without that gradient."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus
from neuronforget.models import LM, activations_only
from neuronforget.models.likelihood import answer_nll
from neuronforget.scores.blocks import writings
from neuronforget.scores.per_example import batched, encoded, over_examples
from neuronforget.scores.scores import Contrast, Scores, runs_model
from neuronforget.taps import TorchHooks


@checks_kinds
@runs_model
def value_fisher(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    contrast: Contrast = "ratio",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score the mean over examples of `||dL/dw_j||^2 = a_j^T (G G^T) a_j`, G the gradient at the MLP's output.

    The Fisher information of the write weights (a ghost norm, Li et al. 2022, arXiv:2110.05679): tokens x tokens in
    place of neurons x width. Unsigned; a neuron that is silent but could be written through scores 0.
    """
    parts, tap = batched(lm, encoded(lm, forget, retain), batch_size), TorchHooks(lm)

    def measure(batch: Batch) -> Tensor:
        out = tap(batch.inputs)
        outputs = [written.pop(site.layer) for site in lm.sites]
        grads = torch.autograd.grad(answer_nll(out.logits, batch).sum(), outputs)
        return torch.stack([_ghost(out.acts[s.layer].detach(), g) for s, g in zip(lm.sites, grads, strict=True)], 1)

    with activations_only(lm), writings(lm) as written:
        return over_examples(
            lm, parts, measure, name="value_fisher", sign="large: the forget loss depends on what it writes",
            contrast=contrast, progress=progress,
        )  # fmt: skip


def _ghost(act: Float[Tensor, "example token neuron"], grad: Tensor) -> Float[Tensor, "example neuron"]:
    act, grad = act.float(), grad.view(*act.shape[:2], -1).float()
    return ((grad @ grad.mT @ act) * act).sum(1).clamp_min(0).cpu()
