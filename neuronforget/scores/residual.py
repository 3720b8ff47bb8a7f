"""Scores that tell the residual stream from the blocks: direct effects, and gradients with a block left out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Batch, Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.recording import answer_nll
from neuronforget.scores.per_example import encoded, over_examples
from neuronforget.scores.rows import blocks_of
from neuronforget.scores.rules import direct_paths, droppable_blocks, frozen_norms
from neuronforget.scores.scores import Contrast, Scores, runs_model
from neuronforget.taps import Pass, TorchHooks


@runs_model
def direct(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    contrast: Contrast = "difference",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score `a (w_j . d_t)`: what the neuron itself writes for the answer's logit, past all later blocks (DLA).

    `d_t` is the direction of the answer token's logit minus the mean logit over the vocabulary, through the final
    norm (and the block's own after the MLP, where it has one) with its scale held fixed; mean over answer tokens, in
    logits. Effects by way of later blocks are not in it. Raises InputError for a norm whose scale cannot be frozen.
    """
    rows, tap = encoded(lm, forget, retain), TorchHooks(lm)

    def measure(batch: Batch) -> Tensor:
        out = tap(batch.inputs)
        return _products(out, _answer_margin(out.logits, batch).sum())

    sign = "positive: it writes towards the answer, so ablating it lowers the answer's logit"
    with activations_only(lm), frozen_norms(lm), direct_paths(lm):
        return over_examples(
            lm, rows, measure, name="direct", sign=sign, contrast=contrast, batch_size=batch_size, progress=progress
        )


@runs_model
def gradient_drop(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    contrast: Contrast = "difference",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score the mean of `|sum_t a g|` over passes that each drop one block's gradient (AtP*, Kramar et al. 2024).

    Direct and indirect effects that cancel in one gradient do not cancel in all (arXiv:2403.00745). One forward and
    as many backward passes as blocks; in the pass that drops its own block a neuron has none, so the sum is divided
    by the other blocks' number. Unsigned. Raises InputError for a model of one block.
    """
    depth = len(blocks_of(lm))
    if depth < 2:
        raise InputError("gradient_drop leaves one block out at a time and needs two or more; use grad_x_act")
    rows, tap = encoded(lm, forget, retain), TorchHooks(lm)
    sign = "large: the forget loss depends on it"
    with activations_only(lm), droppable_blocks(lm) as dropped:

        def measure(batch: Batch) -> Tensor:
            out = tap(batch.inputs)
            loss, total = answer_nll(out.logits, batch).sum(), torch.zeros(())
            for layer in range(depth):
                dropped[:] = [layer]
                total = total + _products(out, loss, keep=layer + 1 < depth).abs()
            return total / (depth - 1)

        return over_examples(
            lm, rows, measure, name="gradient_drop", sign=sign, contrast=contrast, batch_size=batch_size,
            progress=progress,
        )  # fmt: skip


def _products(out: Pass, total: Tensor, keep: bool = False) -> Float[Tensor, "example layer neuron"]:
    """Return `sum_t a g` of each example, `g` the gradient of `total`."""
    layers = sorted(out.acts)
    grads = torch.autograd.grad(total, [out.acts[layer] for layer in layers], retain_graph=keep)
    return torch.stack(
        [(out.acts[k].detach().float() * g.float()).sum(1) for k, g in zip(layers, grads, strict=True)], 1
    ).cpu()


def _answer_margin(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """Mean over answer tokens of the token's logit minus the mean logit."""
    mask, wide = batch.answer_mask[:, 1:], logits[:, :-1].float()
    margin = wide.gather(-1, batch.input_ids[:, 1:, None])[..., 0] - wide.mean(-1)
    return (margin * mask).sum(1) / mask.sum(1)
