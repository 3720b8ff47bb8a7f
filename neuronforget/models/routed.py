"""Routed experts as one MLP: neuron `e * width + j` is neuron j of expert e, 0 where a token is not routed to e.

transformers keeps a layer's experts in three-dimensional weights and multiplies each by the few tokens that it gets.
Here one output projection's input holds every expert's neurons, each times the routing weight of its expert, so that
a neuron is what it is in a dense MLP: one input, one column. Experts compute the tokens that are routed to them, and
that input is made where something reads or changes it; where something is put on the maps that feed the neurons, every
expert computes every token, and counts 0 for those that are not routed to it. All three are the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.models.kinds import adapted_maps
from neuronforget.models.stacks import STATED, Layout

#: What opened experts do not do, as newer versions of it state: a norm behind each, other experts elsewhere.
_BEYOND = ("has_post_expert_norm", "_is_expert_parallel")

#: The key under which `expert_info` has it.
OWN = "neurons of an expert"


class RoutedMLP(nn.Module):
    """A layer's experts as one MLP: `up` (and `gate`) map [d_model -> experts * width], `down` back.

    Its state dict is that of the experts it was made of, so that a checkpoint stays what transformers reads.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.layout = Layout.of(experts)
        stacked = dict(experts.named_parameters(recurse=False))
        trained = any(weight.requires_grad for weight in stacked.values())
        with torch.no_grad():
            opened = self.layout.opened(stacked)
        self.gate = _linear(opened, "gate", trained) if self.layout.gated else None
        self.up, self.down = _linear(opened, "up", trained), _linear(opened, "down", trained)
        self.down_bias = nn.Parameter(opened["down_bias"].detach(), trained) if self.layout.biased else None
        for name in stacked:
            setattr(experts, name, None)
        usual = getattr(type(experts)._apply_gate, "__module__", "") == "transformers.integrations.moe"
        if usual or not self.layout.gated:
            self.act_fn = experts.act_fn
        self._rule = () if usual else (experts._apply_gate,)  # no submodule: its weights are gone, its code is not
        self.register_state_dict_post_hook(_stack)
        self.register_load_state_dict_pre_hook(_open)
        self.train(experts.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return what the experts make of tokens `[token, d_model]`, each of those that it is routed to."""
        routed = top_k_weights.new_zeros(len(hidden_states), self.layout.count)
        routed = routed.scatter_add(1, top_k_index, top_k_weights).to(hidden_states.dtype)
        feeding = [made for made in (self.up, self.gate) if made is not None]
        if torch.compiler.is_compiling() or not all(map(_is_plain, feeding)):
            out = self.down(self._acts_of_all(hidden_states, routed.unsqueeze(-1)).flatten(1))
        else:
            routes = Routes.of(top_k_index, self.layout.count)
            rows = routes.rows(hidden_states)
            shares = top_k_weights.flatten().index_select(0, routes.order).to(rows.dtype).unsqueeze(-1)
            acts = self._activated([routes.mapped(rows, *_of_each(m, routes.count)) for m in feeding]) * shares
            out = self._written(acts, routes)
        return out if self.down_bias is None else out + routed @ self.down_bias

    def _acts_of_all(self, hidden: Tensor, routed: Tensor) -> Tensor:
        """Neurons `[token, expert, neuron]` by every expert on every token: what is put on the maps meets all of them.

        An expert counts 0 where it never sees a token: 0 times what overflows there would be NaN, its gradient too.
        """
        feeding = (made(hidden) for made in (self.up, self.gate) if made is not None)
        shaped = [fed.unflatten(-1, (self.layout.count, -1)).masked_fill(routed == 0, 0) for fed in feeding]
        return self._activated(shaped) * routed

    def _activated(self, feeding: list[Tensor]) -> Tensor:
        if self.gate is None:
            return self.act_fn(*feeding)  # type: ignore[no-any-return]
        up, gate = feeding
        return self._rule[0](self.layout.joined(gate, up, up.ndim - 1)) if self._rule else self.act_fn(gate) * up

    def _written(self, acts: Tensor, routes: Routes) -> Tensor:
        if _is_plain(self.down):
            return routes.summed(routes.mapped(acts, self.down.weight.unflatten(1, (routes.count, -1)).transpose(0, 1)))
        return self.down(routes.spread(acts))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Routes:
    """The pairs of a token and an expert that it is routed to, in the order of experts.

    Sums run in the order of a token's choices, so that results are the same on any device, every time.
    """

    order: Tensor  # of each pair, its place in `[token, choice]`
    expert: Tensor
    choices: int
    count: int

    @classmethod
    def of(cls, index: Tensor, count: int) -> Routes:
        """Sort the choices `[token, choice]` among `count` experts."""
        expert, order = index.flatten().sort(stable=True)
        return cls(order, expert, index.shape[1], count)

    def rows(self, hidden: Tensor) -> Tensor:
        """Return each pair's row of `[token, d]`."""
        return hidden.unsqueeze(1).expand(-1, self.choices, -1).flatten(0, 1).index_select(0, self.order)

    def mapped(self, rows: Tensor, weights: Tensor, biases: Tensor | None = None) -> Tensor:
        """Return each expert's linear map, of `weights` `[expert, out, in]`, of its own pairs' rows."""
        ends = torch.searchsorted(self.expert, torch.arange(self.count, device=rows.device), right=True)
        if _has_kernel(rows, weights):
            out = nn.functional.grouped_mm(rows, weights.mT, offs=ends.int())
            if out.requires_grad:
                out.register_hook(Tensor.contiguous)  # it takes no gradient in turns
        else:
            sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
            own = zip(rows.split(sizes), weights.unbind(0), strict=True)  # one gradient of all rows, not one of each
            parts = [nn.functional.linear(some, weight) for some, weight in own if len(some)]
            out = torch.cat(parts) if parts else rows.new_zeros(0, weights.shape[1])
        return out if biases is None else out + biases.index_select(0, self.expert)

    def spread(self, rows: Tensor) -> Tensor:
        """Return the table `[token, expert * d]` of the pairs' rows, 0 elsewhere."""
        tokens = len(self.order) // self.choices
        place = self.order // self.choices * self.count + self.expert
        return rows.new_zeros(tokens * self.count, rows.shape[1]).index_add_(0, place, rows).view(tokens, -1)

    def summed(self, rows: Tensor) -> Tensor:
        """Return the sum of each token's rows, `[token, d]`."""
        return rows.index_select(0, self.order.argsort()).unflatten(0, (-1, self.choices)).sum(1)


def _has_kernel(rows: Tensor, weights: Tensor) -> bool:
    """Has torch one product for all experts here, as transformers uses it: on a GPU, of rows of whole 16 bytes?"""
    if not rows.is_cuda or {rows.dtype, weights.dtype} != {torch.bfloat16} or any(n % 8 for n in weights.shape[1:]):
        return False
    return hasattr(nn.functional, "grouped_mm") and torch.cuda.get_device_capability(rows.device) >= (8, 0)


def _is_plain(module: nn.Module) -> bool:
    """Is it a linear map that nothing is put on: a hook, an adapter, a parametrisation, another forward?"""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is nn.Linear and "forward" not in vars(module) and not any(hooks)


def _of_each(made: nn.Linear, count: int) -> tuple[Tensor, Tensor | None]:
    """Weights `[expert, neuron, d_model]` and biases `[expert, neuron]` of a map of all experts."""
    return made.weight.unflatten(0, (count, -1)), None if made.bias is None else made.bias.unflatten(0, (count, -1))


def _linear(opened: Mapping[str, Tensor], name: str, trained: bool) -> nn.Linear:
    weight, bias = opened[f"{name}.weight"], opened.get(f"{name}.bias")
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), trained)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), trained)
    return made


def _stack(module: RoutedMLP, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    if all(prefix + name in state for name in module.layout.opened_names):  # adapters have the weights elsewhere
        opened = {name: state.pop(prefix + name) for name in module.layout.opened_names}
        state.update({prefix + name: weight for name, weight in module.layout.stacked(opened).items()})


def _open(module: RoutedMLP, state: dict[str, Tensor], prefix: str, *_rest: Any) -> None:
    if all(prefix + name in state for name in module.layout.stacked_names):
        stacked = {name: state.pop(prefix + name) for name in module.layout.stacked_names}
        state.update({prefix + name: weight for name, weight in module.layout.opened(stacked).items()})


def routed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of routed experts that can be opened, by path."""
    return {path: m for path, m in model.named_modules(remove_duplicate=False) if _can_be_opened(m)}


def _is_experts(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in STATED)


def _can_be_opened(module: nn.Module) -> bool:
    if not _is_experts(module) or any(getattr(module, name, False) for name in _BEYOND):
        return False
    return Layout.of(module).stacked_names == {name for name, _ in module.named_parameters(recurse=False)}


def has_opened(model: nn.Module) -> bool:
    """Are the neurons of a model's routed experts readable?"""
    return any(isinstance(module, RoutedMLP) for module in model.modules())


def neuron_name(layer: int, neuron: int, own: int = 0) -> str:
    """Return what a neuron is called: where experts have `own` neurons each, by its expert and its number there."""
    where = f"neuron {neuron}" if not own else f"expert {neuron // own}, neuron {neuron % own}"
    return f"layer {layer}, {where}"


@checks_kinds
def open_experts(model: nn.Module) -> int:
    """Make the neurons of routed experts readable, in place; return in how many layers they are.

    The model computes the same function (to rounding) more slowly, and is saved as before. What is open stays open. An
    `LM` that was made and asked before goes on with the neurons that it found then: make another, `nf.LM(model, ...)`.
    Raises InputError, the model being as it was, where there are no such experts, or they are stored otherwise in some
    layers, have adapters or are offloaded.
    """
    found = routed_layers(model)
    if not found and not has_opened(model):
        raise InputError(f"{type(model).__name__} has no routed experts that can be opened")
    if left := sorted({path for path, m in model.named_modules() if _is_experts(m)} - found.keys()):
        raise InputError(f"{type(model).__name__} has experts that cannot be opened, stored otherwise: {left[0]}")
    if adapted := [name for name in adapted_maps(model) if any(path.startswith(f"{name}.") for path in found)]:
        raise InputError(f"the experts have adapters ({adapted[0]}): merge them in first (peft's merge_and_unload)")
    if any(weight.device.type == "meta" for experts in found.values() for weight in experts.parameters()):
        raise InputError("the experts are offloaded to CPU or disk: load the model whole, or in a smaller dtype")
    made: dict[int, RoutedMLP] = {}
    for path, experts in found.items():
        made[id(experts)] = made.get(id(experts)) or RoutedMLP(experts)
        model.set_submodule(path, made[id(experts)])
    return sum(isinstance(module, RoutedMLP) for module in model.modules())
