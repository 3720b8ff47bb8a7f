"""Routed experts as one MLP: neuron `e * width + j` is neuron j of expert e, 0 where a token is not routed to e.

transformers keeps a layer's experts in three-dimensional weights and multiplies each by the few tokens that it gets.
Here one output projection's input holds every expert's neurons, each times the routing weight of its expert, so that
a neuron is what it is in a dense MLP: one input, one column. Every expert computes every token, and counts 0 for those
that are not routed to it: exact, at rather more than the cost of a dense MLP as wide as all experts together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.kinds import adapted_maps

#: What transformers states of every class of experts that it can compute in several ways.
_STATED = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")
#: What opened experts do not do, as newer versions of it state: a norm behind each, other experts elsewhere.
_BEYOND = ("has_post_expert_norm", "_is_expert_parallel")


@dataclass(frozen=True)
class Layout:
    """How transformers stacks the weights of `count` experts; `opened` and `stacked` are each other's inverse."""

    count: int
    gated: bool
    biased: bool
    transposed: bool
    concatenated: bool

    @classmethod
    def of(cls, experts: Any) -> Layout:
        """Read it off a module of experts."""
        gated, biased, transposed, concatenated = (getattr(experts, name) for name in _STATED[:4])
        return cls(experts.num_experts, gated, biased, transposed, concatenated)

    @property
    def feed(self) -> str:
        """Name of the stacked weight that feeds the neurons."""
        return "gate_up_proj" if self.gated else "up_proj"

    @property
    def stacked_names(self) -> set[str]:
        """Names of the stacked weights."""
        weights = {self.feed, "down_proj"}
        return weights | {f"{name}_bias" for name in weights} if self.biased else weights

    @property
    def opened_names(self) -> set[str]:
        """Names of the weights of one MLP."""
        maps = ("gate", "up") if self.gated else ("up",)
        weights = {f"{name}.weight" for name in (*maps, "down")}
        return weights | {f"{name}.bias" for name in maps} | {"down_bias"} if self.biased else weights

    def opened(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of one MLP, `[experts * width, d_model]` and, of `down`, the transpose."""
        feed, down = stacked[self.feed], stacked["down_proj"]
        found = self._feeding("weight", feed.mT if self.transposed else feed)
        found["down.weight"] = (down if self.transposed else down.mT).flatten(0, 1).T.contiguous()
        if self.biased:
            found |= self._feeding("bias", stacked[f"{self.feed}_bias"])
            found["down_bias"] = stacked["down_proj_bias"]
        return found

    def _feeding(self, kind: str, feed: Tensor) -> dict[str, Tensor]:
        halves = self.split(feed, 1) if self.gated else (feed,)
        names = ("gate", "up")[-len(halves) :]
        return {f"{n}.{kind}": half.flatten(0, 1).contiguous() for n, half in zip(names, halves, strict=True)}

    def stacked(self, opened: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as transformers keeps them."""
        feed, down = self._fed("weight", opened), opened["down.weight"].T.unflatten(0, (self.count, -1))
        found = {
            self.feed: (feed.mT if self.transposed else feed).contiguous(),
            "down_proj": (down if self.transposed else down.mT).contiguous(),
        }
        if self.biased:
            found |= {f"{self.feed}_bias": self._fed("bias", opened), "down_proj_bias": opened["down_bias"]}
        return found

    def _fed(self, kind: str, opened: Mapping[str, Tensor]) -> Tensor:
        up = opened[f"up.{kind}"].unflatten(0, (self.count, -1))
        return self.joined(opened[f"gate.{kind}"].unflatten(0, (self.count, -1)), up, 1) if self.gated else up

    def split(self, both: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Return gates and ups: one after the other, or in turns."""
        sizes, axis = ((2, -1), dim) if self.concatenated else ((-1, 2), dim + 1)
        gate, up = both.unflatten(dim, sizes).unbind(axis)
        return gate, up

    def joined(self, gate: Tensor, up: Tensor, dim: int) -> Tensor:
        """Undo `split`."""
        return (
            torch.cat((gate, up), dim) if self.concatenated else torch.stack((gate, up), dim + 1).flatten(dim, dim + 1)
        )


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
        acts = self._acts(hidden_states, (routed == 0).unsqueeze(-1)) * routed.unsqueeze(-1)
        out: Tensor = self.down(acts.flatten(1))
        return out if self.down_bias is None else out + routed @ self.down_bias

    def _acts(self, hidden: Tensor, elsewhere: Tensor) -> Tensor:
        """Neurons before routing, `[token, expert, neuron]`, of experts that never see a token those of zeros.

        0 times what overflows in such an expert would be NaN, and so would its gradient.
        """
        up = self.up(hidden).unflatten(-1, (self.layout.count, -1)).masked_fill(elsewhere, 0)
        if self.gate is None:
            return self.act_fn(up)  # type: ignore[no-any-return]
        gate = self.gate(hidden).unflatten(-1, (self.layout.count, -1)).masked_fill(elsewhere, 0)
        return self._rule[0](self.layout.joined(gate, up, 2)) if self._rule else self.act_fn(gate) * up


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
    return all(hasattr(module, name) for name in _STATED)


def _can_be_opened(module: nn.Module) -> bool:
    if not _is_experts(module) or any(getattr(module, name, False) for name in _BEYOND):
        return False
    return Layout.of(module).stacked_names == {name for name, _ in module.named_parameters(recurse=False)}


def has_opened(model: nn.Module) -> bool:
    """Are the neurons of a model's routed experts readable?"""
    return any(isinstance(module, RoutedMLP) for module in model.modules())


def experts_of_a_layer(model: nn.Module) -> int:
    """Return how many experts each layer has. Raises InputError unless they are opened, and as many in all layers."""
    counts = {module.layout.count for module in model.modules() if isinstance(module, RoutedMLP)}
    if len(counts) != 1:
        found = f"layers of {sorted(counts)} experts" if counts else "none that is opened (nf.open_experts)"
        raise InputError(f"whole experts need as many in each layer; {type(model).__name__} has {found}")
    return counts.pop()


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
