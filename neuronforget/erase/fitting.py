"""What a loss asks for, held against the model and the corpora that it is to be trained with, before any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.losses import parts
from neuronforget.models import LM
from neuronforget.scores.blocks import blocks_of


def check_loss(lm: LM, forget: Corpus, loss: Callable[..., Any], **given: Any) -> None:
    """Raise InputError as `losses.parts.check_loss` does, and for a block or a context that the model does not have."""
    parts.check_loss(loss, **given)
    for kind, value in parts.named_by(loss):
        if kind == "block":
            block(lm, value)
        elif value:
            context_ids(lm, value, max(len(row.ids) for row in lm.encode(forget)))


def block(lm: LM, layer: int | None) -> nn.Module:
    """Return the block that a loss names (None: the one a quarter of the way up)."""
    blocks = blocks_of(lm)
    if layer is None:
        layer = max(round(len(blocks) / 4) - 1, 0)
    if not 0 <= layer < len(blocks):
        raise InputError(f"no block {layer}: the model has blocks 0 to {len(blocks) - 1}; bind another layer=")
    return blocks[layer]


def context_ids(lm: LM, context: str, tokens: int) -> list[int]:
    """Return the tokens of a text that stands before examples of up to so many tokens."""
    ids = lm.tokenizer(context, add_special_tokens=False)["input_ids"]
    if not ids or ((unknown := lm.tokenizer.unk_token_id) is not None and unknown in ids):
        raise InputError(
            f"the model's tokenizer cannot write the context {context[:60]!r}: bind one in words that it has"
        )
    width, longest = tokens + len(ids), lm.max_length
    if longest is not None and width > longest:
        raise InputError(f"{width} tokens with the context, but the model takes {longest} at most: shorten it")
    return list(ids)
