"""relp: attribution patching with the backward pass of layer-wise relevance propagation (Jafari et al. 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.recording import record
from neuronforget.scores.blocks import blocks_of
from neuronforget.scores.gradient import grad_x_act
from neuronforget.scores.per_example import encoded, longest
from neuronforget.scores.rules import FrozenAttention, frozen_norms, frozen_routing, halved_gates, linear_activations
from neuronforget.scores.scores import Contrast, Scores, check_contrast, runs_model


@checks_kinds
@runs_model
def relp(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    contrast: Contrast = "difference",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score `-sum_t a g` of the recorded loss, with g from a backward pass in which the model is linear in pieces.

    Norms keep their scale and activations their ratio act(x)/x, attention its pattern, and each factor of a gate
    takes half. Losses and logits are the model's, bit for bit. Raises InputError for a model in which a rule finds
    no place to apply (attention that calls neither softmax nor scaled_dot_product_attention, say).
    """
    rows = encoded(lm, forget, retain)
    check_contrast(contrast, *map(len, rows))
    example = longest(lm, rows)
    with frozen(lm), torch.no_grad(), relevance_rules(lm) as attention:
        lm.model(**example.inputs, use_cache=False)
        if attention.seen < len(blocks_of(lm)):
            raise InputError(
                f"{type(lm.model).__name__} computes {attention.seen} attention patterns that can be seen in "
                f"{len(blocks_of(lm))} blocks: load it with attn_implementation='sdpa' or 'eager', or use grad_x_act"
            )
    with relevance_rules(lm):
        moments = [
            record(lm, corpus, tap="torch_hooks", batch_size=batch_size, progress=progress)
            for corpus in (forget, retain)
            if corpus is not None
        ]
    return replace(grad_x_act(*moments, contrast=contrast), name="relp")


@contextmanager
def relevance_rules(lm: LM) -> Iterator[FrozenAttention]:
    """Within the block the backward pass follows all five rules."""
    with ExitStack() as stack:
        for rule in (frozen_norms, linear_activations, halved_gates, frozen_routing):
            stack.enter_context(rule(lm))
        yield stack.enter_context(FrozenAttention())
