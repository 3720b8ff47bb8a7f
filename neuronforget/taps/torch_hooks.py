"""The reference tap: a forward pre-hook on each output projection. Needs torch alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from neuronforget.models import LM
from neuronforget.taps.protocol import NO_EDITS, Pass, Replace, by_example


class TorchHooks:
    """Tap by plain PyTorch hooks."""

    name = "torch_hooks"

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def __call__(self, batch: Mapping[str, Tensor], edits: Mapping[int, Replace] = NO_EDITS) -> Pass:
        acts: dict[int, Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(_module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
                if inputs[0].shape[:-1].numel() != batch["input_ids"].numel():
                    return None  # a guard that is on reads its context in a pass of its own, before this one
                act = by_example(inputs[0], batch)
                acts[layer] = edits[layer](act) if layer in edits else act
                return (acts[layer].view_as(inputs[0]), *inputs[1:])

            return hook

        handles = [
            self.lm.model.get_submodule(site.path).register_forward_pre_hook(keep(site.layer)) for site in self.lm.sites
        ]
        try:
            logits = self.lm.model(**batch, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return Pass(logits, acts)
