"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on a model, by peft: `W + (alpha / rank) B A`.

They are put into the model for a block of code and taken out again; what they learned is told as changes to the
model's own weights. A is drawn by the seed and B is 0, so that at the start the model computes as without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.edits.changes import Change
from neuronforget.errors import InputError, reason
from neuronforget.models import LM, frozen
from neuronforget.scores.blocks import blocks_of, path_of_blocks

#: What peft calls the one adapter.
NAME = "neuronforget"


@checks_kinds
@numbers(rank=">= 1", alpha="> 0")
@dataclass(frozen=True)
class LoRA:
    """Adapters of this `rank` at the blocks' linear maps, `alpha` 2 rank by default.

    `targets` are the maps' last names ("down_proj", "q_proj"; None: all in the blocks, not the embeddings or the head).
    """

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] | None = None

    @property
    def scale(self) -> float:
        """What the product `B A` is multiplied by: alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def names(self, lm: LM) -> list[str]:
        """Return the weights that are adapted. Raises InputError where there are none."""
        path = path_of_blocks(lm)
        maps = [name for name, module in blocks_of(lm).named_modules() if _is_linear(module)]
        found = [m for m in maps if self.targets is None or m.rpartition(".")[2] in self.targets]
        if not found:
            known = sorted({m.rpartition(".")[2] for m in maps})
            raise InputError(f"no linear map called {', '.join(self.targets or ())} to adapt; the blocks have {known}")
        return [f"{path}.{name}.weight" for name in found]


@dataclass(frozen=True, eq=False)
class Adapters:
    """Peft's layers by the name of the weight that each adapts, while the model computes with them."""

    layers: dict[str, Any]

    def values(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return A `[rank, inputs]` and B `[outputs, rank]` of one weight, fp32."""
        layer = self.layers[name]
        return layer.lora_A[NAME].weight, layer.lora_B[NAME].weight

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within the block the model computes without them."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @torch.no_grad()
    def changes(self) -> Iterator[Change]:
        """Yield what they add to each of the model's own weights as its change, fp32: made when it is asked for."""
        for name, layer in self.layers.items():
            before = layer.get_base_layer().weight.detach()
            delta = layer.get_delta_weight(NAME).to(before.device)
            yield Change(name, before.to(_wide(before)) + delta, before.clone())


@contextmanager
def adapted(lm: LM, lora: LoRA, names: Iterable[str], *, seed: int = 0) -> Iterator[Adapters]:
    """Within the block the model has adapters at the weights `names`, and nothing else has gradients.

    Raises InputError without peft, and where the model has adapters of its own.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise InputError("adapters need peft: pip install 'neuronforget[adapters]'") from error
    if hasattr(lm.model, "peft_config") or any(isinstance(m, BaseTunerLayer) for m in lm.model.modules()):
        raise InputError("the model has adapters already: merge them into it first (peft's merge_and_unload)")
    paths = {name: name.removesuffix(".weight") for name in names}
    config = LoraConfig(r=lora.rank, lora_alpha=lora.scale * lora.rank, target_modules=list(paths.values()))  # type: ignore[arg-type]
    devices = [lm.device] if lm.device.type == "cuda" else []
    with frozen(lm):
        tree = [(module, dict(module._modules)) for module in lm.model.modules()]  # peft may wrap more than is named
        try:
            with torch.random.fork_rng(devices), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of transposed weights, which peft sees to itself
                torch.manual_seed(seed)
                _inject(inject_adapter_in_model, config, lm, paths.values())
            found = Adapters({name: lm.model.get_submodule(path).eval() for name, path in paths.items()})
            for value in (v for name in paths for v in found.values(name)):
                value.data = value.data.to(_wide(value))
            yield found
        finally:
            for module, children in tree:
                module._modules.clear()
                module._modules.update(children)
            if hasattr(lm.model, "peft_config"):
                del lm.model.peft_config


def _inject(inject: Any, config: Any, lm: LM, paths: Iterable[str]) -> None:
    """Put peft's layers in place. Raises InputError where it refuses a map, or puts none at it."""
    kind, own = type(lm.model).__name__, lm.model.config
    was = own.model_type
    try:
        own.model_type = ""  # by it peft takes every gate_proj of a mixture for its stacked experts, and leaves it out
        inject(config, lm.model, NAME)
    except ValueError as error:
        raise InputError(f"peft cannot adapt {kind}: {reason(error)}; name other maps by LoRA(targets=...)") from None
    finally:
        own.model_type = was
    if left := [path for path in paths if not hasattr(lm.model.get_submodule(path), "lora_A")]:
        raise InputError(f"peft puts no adapter at {left[0]} of {kind}; name other maps by LoRA(targets=...)")


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return False
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward or _computes_a_linear_map(module)
    return type(module).__name__ == "Conv1D"


@torch.no_grad()
def _computes_a_linear_map(module: nn.Linear) -> bool:
    """Does a subclass compute what it is called? PhiMoE's router returns a choice of experts too."""
    ones = torch.ones_like(module.weight[:1])
    try:
        found = module.forward(ones)
    except (RuntimeError, TypeError, ValueError):
        return False
    return isinstance(found, Tensor) and found.shape == (1, len(module.weight))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
