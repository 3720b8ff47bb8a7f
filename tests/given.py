"""Answers to small random batches whose logits and hidden states are given, for tests of losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuronforget.corpora import Batch
from neuronforget.losses import Answered, Outputs

VOCAB, WIDTH = 11, 5


def batch_of(lengths: tuple[int, ...], answers: tuple[int, ...], seed: int = 0, *, spare: int = 0) -> Batch:
    """Right-padded random tokens; the last `answers[i]` tokens of example i are its answer; `spare` more of padding."""
    width = max(lengths)
    ids = torch.randint(1, VOCAB, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    ids = torch.nn.functional.pad(ids, (0, spare))
    place, end = torch.arange(width + spare), torch.tensor(lengths)[:, None]
    mask = place < end - torch.tensor(answers)[:, None]
    real = place < end
    return Batch(ids * real, real.long(), real & ~mask, torch.zeros(len(lengths)).long(), tuple(range(len(lengths))))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Given:
    """Passes of a model whose logits and hidden states are given, by who computes them (or the context's text)."""

    values: dict[str, Tensor]
    layers: list[Any] = field(default_factory=list)

    def logits(self, batch: Batch, who: str = "trained", context: str = "") -> Tensor:
        return self.values[context or who]

    def hidden(self, batch: Batch, who: str = "trained", layer: int | None = None) -> Tensor:
        self.layers.append(layer)
        return self.values[f"hidden {who}"]


def given(batch: Batch, logits: Tensor, reference: Tensor | None = None, **others: Tensor) -> Answered:
    known = None if reference is None else lambda: reference
    return Answered(batch, Given({"trained": logits, **others}), known)


def outputs(
    forget: Answered, retain: Answered | None = None, preferred: Answered | None = None, **others: Any
) -> Outputs:
    def of(part: Answered | None) -> Any:
        return None if part is None else lambda: part

    parts = {k: of(v) if isinstance(v, Answered) else v for k, v in others.items()}
    return Outputs(lambda: forget, of(retain), of(preferred), **parts)
