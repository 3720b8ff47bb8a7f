"""What a tap is: a forward pass that also hands out every layer's neuron activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Replace = Callable[[Tensor], Tensor]
NO_EDITS: Mapping[int, Replace] = MappingProxyType({})


@dataclass(frozen=True)
class Pass:
    """One forward pass: logits and, by layer, the graph-connected activations `[example, token, neuron]`."""

    logits: Float[Tensor, "example token vocab"]
    acts: dict[int, Tensor]

    def grads(self, loss: Tensor) -> dict[int, Tensor]:
        """Return dloss/da for every layer; weight gradients are not computed."""
        return dict(zip(self.acts, torch.autograd.grad(loss, list(self.acts.values())), strict=True))


def by_example(act: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return `act` as `[example, token, neuron]`: OPT hands its MLP all tokens in one row."""
    return act.view(*batch["input_ids"].shape, -1)


@runtime_checkable
class Tap(Protocol):
    """Run the model on `batch`; `edits` replaces a layer's activations by what its function returns."""

    name: str

    def __call__(self, batch: Mapping[str, Tensor], edits: Mapping[int, Replace] = NO_EDITS) -> Pass: ...
