"""What a tap is: a forward pass that also hands out every layer's neuron activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.errors import InputError

Replace = Callable[[Tensor], Tensor]
NO_EDITS: Mapping[int, Replace] = MappingProxyType({})


@dataclass(frozen=True)
class Pass:
    """One forward pass: logits and, by layer, the graph-connected activations `[example, token, neuron]`."""

    logits: Float[Tensor, "example token vocab"]
    acts: dict[int, Tensor]

    def grads(self, loss: Tensor) -> dict[int, Tensor]:
        """Return dloss/da for every layer; weight gradients are not computed. Raises InputError without a graph."""
        if not loss.requires_grad:
            raise InputError(
                "nothing that the loss depends on has a gradient (frozen weights, or torch.no_grad()): call "
                "lm.model.get_input_embeddings().requires_grad_(True) before the pass"
            )
        if cut := [layer for layer, act in self.acts.items() if not act.requires_grad]:
            raise InputError(
                f"activations of layers {cut} have no gradient: an edit put constants there, or reentrant "
                "checkpointing cut them off (enable it with use_reentrant=False, or run the model in eval mode)"
            )
        return dict(zip(self.acts, torch.autograd.grad(loss, list(self.acts.values())), strict=True))


def by_example(act: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return `act` as `[example, token, neuron]`: OPT hands its MLP all tokens in one row."""
    return act.view(*batch["input_ids"].shape, -1)


@runtime_checkable
class Tap(Protocol):
    """Run the model on `batch`; `edits` replaces a layer's activations by what its function returns."""

    name: str

    def __call__(self, batch: Mapping[str, Tensor], edits: Mapping[int, Replace] = NO_EDITS) -> Pass: ...
