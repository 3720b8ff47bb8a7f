"""What a guard reads in prompts: the model's hidden states over their tokens, never over an answer's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuronforget.corpora import Corpus
from neuronforget.edits.guarding import accepts
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.scores.blocks import blocks_of, state_of


def check_layers(lm: LM, layers: Sequence[int] | None) -> list[int]:
    """Return the blocks asked for; without any the one half-way up. Raises InputError for one that is not there."""
    depth = len(blocks_of(lm))
    found = [(depth - 1) // 2] if layers is None else sorted(layers)
    if not found or len(set(found)) < len(found) or not all(0 <= layer < depth for layer in found):
        raise InputError(f"layers are blocks from 0 to {depth - 1}, at least one, each once; found {found}")
    return found


def check_prompts(corpus: Corpus) -> None:
    """Raise InputError for plain text: it has no prompt that a guard could read."""
    for i, example in enumerate(corpus):
        if not example.prompt.strip():
            raise InputError(f"guards read prompts: example {i} of {corpus.name!r} is plain text, without one")


@contextmanager
def block_outputs(lm: LM, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the block of code a forward pass leaves here what each of `layers` gives to the next one."""
    kept: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            kept[layer] = state_of(output)

        return hook

    handles = [blocks_of(lm)[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def positions(lm: LM, place: Int[Tensor, "example token"]) -> Mapping[str, Tensor]:
    """Return the position argument for tokens at these places, for models that take one."""
    return {"position_ids": place.clamp(min=0)} if accepts(lm, "position_ids") else {}


@torch.no_grad()
def prompt_means(
    lm: LM, ids: Int[Tensor, "example token"], prompt: Bool[Tensor, "example token"], layers: Sequence[int]
) -> Float[Tensor, "example layer width"]:
    """Return the mean hidden state over each prompt's tokens after each of `layers`, fp32; nothing else is read."""
    seen = prompt.long()
    with block_outputs(lm, layers) as kept:
        lm.model(input_ids=ids, attention_mask=seen, use_cache=False, **positions(lm, seen.cumsum(1) - 1))
    states = torch.stack([kept[layer].float() for layer in layers], 1)
    weights = seen / seen.sum(1, keepdim=True).clamp(min=1)
    return (states * weights[:, None, :, None].to(states)).sum(2)


def corpus_means(
    lm: LM, corpus: Corpus, layers: Sequence[int], batch_size: int = 32
) -> Float[Tensor, "example layer width"]:
    """Return `prompt_means` of every example, in the corpus' order, on the CPU."""
    check_prompts(corpus)
    rows = lm.encode(corpus)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    with frozen(lm):
        for batch in lm.batches(rows, batch_size):
            width = int(batch.answer_start.max())
            place = torch.arange(width, device=lm.device)
            prompt = place < batch.answer_start[:, None]
            means = prompt_means(lm, batch.input_ids[:, :width], prompt, layers).cpu()
            for i, row in zip(batch.index, means, strict=True):
                found[i] = row
    return torch.stack(found)
