"""Tap by TransformerLens: its bridge around a twin that shares every tensor with the model.

The bridge rewires the module tree that it is given and cannot be unwrapped, so it gets a tree of its own.
Only its MLP components are kept: the full bridge re-implements attention eagerly (slower, more memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.models import LM, shared_twin
from neuronforget.taps.protocol import NO_EDITS, Pass, Replace, by_example


def _only_mlps(architecture: Any) -> None:
    for blocks in architecture.component_mapping.values():
        if blocks.is_list_item:
            blocks.submodules = {name: part for name, part in blocks.submodules.items() if name == "mlp"}
            blocks.hook_aliases = {}  # they name the submodules just dropped


class Lens:
    """Tap by `TransformerBridge`; `points` are its hook points, `blocks.{layer}.mlp.out.hook_in`."""

    name = "transformer_lens"

    def __init__(self, lm: LM) -> None:
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        self.lm, kind = lm, type(lm.model).__name__
        if any(lm.model.get_submodule(site.path)._forward_pre_hooks for site in lm.sites):
            raise InputError(
                "hooks on output projections (a guard that is on?) change what these read, and TransformerLens reads "
                "the activations before them: use tap='torch_hooks'"
            )
        try:
            self.bridge = build_bridge_from_module(
                shared_twin(lm.model), kind, hf_config=lm.model.config, post_adapter_hook=_only_mlps
            )
        except (ValueError, KeyError, AttributeError, TypeError, NotImplementedError, ImportError) as error:
            raise InputError(f"TransformerLens does not know {kind} ({error}): use tap='torch_hooks'") from None
        # On routed experts `hook_post` is the MLP's output, so both names are asked for.
        mlps = {layer: block.mlp for layer, block in self.bridge.blocks_with("mlp")}
        dense = {k: mlp for k, mlp in mlps.items() if hasattr(mlp, "W_out") and hasattr(mlp, "out")}
        names = {id(p): name.removesuffix(".weight") for name, p in lm.model.named_parameters()}
        self.paths = {layer: names.get(id(mlp.out.weight)) for layer, mlp in dense.items()}
        if self.paths != {site.layer: site.path for site in lm.sites}:
            raise InputError(f"TransformerLens maps the neurons of {kind} elsewhere: use tap='torch_hooks'")
        self.points = {layer: mlp.out.hook_in for layer, mlp in dense.items()}

    def __call__(self, batch: Mapping[str, Tensor], edits: Mapping[int, Replace] = NO_EDITS) -> Pass:
        acts: dict[int, Tensor] = {}

        def keep(act: Tensor, hook: Any, layer: int) -> Tensor:
            rows = by_example(act, batch)
            acts[layer] = edits[layer](rows) if layer in edits else rows
            return acts[layer].view_as(act)

        rest = dict(batch)
        if self.bridge.training != self.lm.model.training:
            self.bridge.train(self.lm.model.training)
        for layer, point in self.points.items():
            point.add_hook(partial(keep, layer=layer))
        try:
            logits = self.bridge(rest.pop("input_ids"), return_type="logits", **rest)
        finally:
            for point in self.points.values():
                point.remove_hooks()
        return Pass(logits, acts)
