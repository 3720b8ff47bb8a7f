"""Other rules for the backward pass; the forward keeps every bit. Found by structure, not by family.

Each rule adds to a value something that is zero and whose gradient is not: `y + (z - z.detach())`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from neuronforget.errors import InputError, not_finite
from neuronforget.models import LM
from neuronforget.models.maps import Site
from neuronforget.models.routed import RoutedMLP, routed_layers
from neuronforget.scores.blocks import blocks_of, hidden_of, state_of, with_state


@contextmanager
def frozen_norms(lm: LM) -> Iterator[None]:
    """Within the block norms are linear backwards: their scale counts as a constant, `x / scale.detach()`.

    A norm is a leaf module with "norm" in its class name; that `(norm(x) - bias) * scale(x)` is linear in x is
    tried on random input, with and without the mean taken off. Raises InputError for one that is neither.
    """
    with ExitStack() as stack:
        for path, module in lm.model.named_modules():
            named = "norm" in type(module).__name__.lower() and ".parametrizations." not in path
            if named and not any(module.children()):
                stack.callback(module.register_forward_hook(_NormRule(path)).remove)
        yield


@contextmanager
def linear_activations(lm: LM) -> Iterator[None]:
    """Within the block an activation multiplies backwards by its ratio, `x * (act(x) / x).detach()`."""
    with ExitStack() as stack:
        for site in lm.sites:
            for module in _activations(lm, site):
                stack.callback(module.register_forward_hook(_ratio_rule).remove)
        yield


@contextmanager
def halved_gates(lm: LM) -> Iterator[None]:
    """Within the block each factor of a gated neuron gets half of its gradient; the neuron's own stays whole."""
    with ExitStack() as stack:
        for site in lm.sites:
            if sum(part.name.endswith("weight") for part in site.read) > 1:
                module = lm.model.get_submodule(site.path)
                stack.callback(module.register_forward_pre_hook(_half_rule).remove)
        yield


@contextmanager
def frozen_routing(lm: LM) -> Iterator[None]:
    """Within the block the weights by which tokens are routed to experts are constants backwards."""
    opened = [module for module in lm.model.modules() if isinstance(module, RoutedMLP)]
    with ExitStack() as stack:
        for module in (*opened, *routed_layers(lm.model).values()):
            stack.callback(module.register_forward_pre_hook(_constant_routing).remove)
        yield


class FrozenAttention(TorchFunctionMode):
    """Within the block attention patterns are constants backwards: gradients reach values, not queries and keys.

    Every `softmax` over keys is detached (a router's has no such dimension), and every `scaled_dot_product_attention`
    gets detached queries and keys: in the forward pass nothing else calls them. `seen` counts them.
    """

    seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if name == "scaled_dot_product_attention":
            self.seen += 1
            named = {k: v.detach() if k in ("query", "key") else v for k, v in kwargs.items()}
            return func(*(arg.detach() for arg in args[:2]), *args[2:], **named)
        out = func(*args, **kwargs)
        if name == "softmax" and out.ndim > 2:
            self.seen += 1
            return out.detach()
        return out


@contextmanager
def direct_paths(lm: LM) -> Iterator[None]:
    """Within the block gradients go down the residual stream past the blocks, and from it into each, no further."""
    with ExitStack() as stack:
        for block in blocks_of(lm):
            held: list[Tensor] = []
            stack.callback(block.register_forward_pre_hook(partial(_cut, held), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(partial(_past, held)).remove)
        yield


@contextmanager
def droppable_blocks(lm: LM) -> Iterator[list[int]]:
    """Within the block the blocks named in the list given hand no gradient to what they added to the stream."""
    dropped: list[int] = []
    with ExitStack() as stack:
        for layer, block in enumerate(blocks_of(lm)):
            hook = partial(_droppable, dropped, layer)
            stack.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        yield dropped


class _NormRule:
    def __init__(self, path: str) -> None:
        self.path, self.scale = path, None  # type: str, Callable[[Tensor], Tensor] | None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = self._find_scale(module, inputs[0][:1].detach())
        scale, bias = self.scale(inputs[0]), _bias(module)
        return out + ((out - bias) * (scale / scale.detach() - 1)).to(out.dtype)

    def _find_scale(self, module: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
        if not torch.isfinite(like).all():
            raise not_finite(f"input of {self.path}")
        draw = torch.Generator().manual_seed(0)
        size = float(like.double().pow(2).mean().sqrt())  # as large as what it gets: epsilon counts as it does there
        x, y = ((size * torch.randn(like.shape, generator=draw)).to(like) for _ in range(2))
        tolerance = 10 * max(torch.finfo(like.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
        for centred in (False, True):
            scale = partial(norm_scale, norm_eps(module), centred)
            try:
                with torch.no_grad():
                    parts = [(module.forward(z) - _bias(module)) * scale(z) for z in (x, y, 2 * x + y)]
            except (TypeError, AttributeError):  # one that is gated wants the gate too
                break
            if (2 * parts[0] + parts[1] - parts[2]).abs().max() < tolerance * parts[2].abs().max():
                return scale
        raise InputError(
            f"{self.path} ({type(module).__name__}) is neither a layer norm nor an RMS norm, so its scale cannot be "
            "frozen; use grad_x_act"
        )


def norm_scale(eps: float, centred: bool, x: Tensor) -> Tensor:
    """Return what a norm divides each vector by, fp32 or better: RMS, or (`centred`) standard deviation."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x - x.mean(-1, keepdim=True) if centred else x
    return (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def norm_eps(module: nn.Module) -> float:
    """Return a norm's epsilon, 0 where it has none."""
    return next((float(v) for n in ("eps", "variance_epsilon") if (v := getattr(module, n, None)) is not None), 0.0)


def _bias(module: nn.Module) -> Any:
    bias = getattr(module, "bias", None)
    return 0.0 if bias is None else bias.detach()


def _activations(lm: LM, site: Site) -> list[nn.Module]:
    """The parameter-free modules beside the output projection. Raises InputError where there is none."""
    parent = lm.model.get_submodule(site.path.rpartition(".")[0])
    skip = (nn.Dropout, nn.Identity)
    found = [m for m in parent.children() if not any(True for _ in m.parameters()) and not isinstance(m, skip)]
    found = [m for m in found if "norm" not in type(m).__name__.lower()]
    if not found:
        raise InputError(f"no activation module beside {site.path}: its rule cannot be applied; use grad_x_act")
    return found


def _ratio_rule(_module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    x = inputs[0]
    ratio = torch.where(x == 0, torch.zeros_like(x), out / torch.where(x == 0, torch.ones_like(x), x)).detach()
    return out.detach() + (x - x.detach()) * ratio


def _half_rule(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0] / 2 + (inputs[0] / 2).detach(), *inputs[1:])


def _constant_routing(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden, experts, weights = inputs
    return hidden, experts, weights.detach()


def _cut(held: list[Tensor], _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    held[:] = [hidden_of(args, kwargs)]
    inner = held[0].detach().requires_grad_()
    return ((inner, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": inner})


def _past(held: list[Tensor], _block: nn.Module, _args: Any, out: Any) -> Any:
    stream = held.pop()
    return with_state(out, state_of(out) + (stream - stream.detach()))


def _droppable(dropped: list[int], layer: int, _block: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> Any:
    stream, states = hidden_of(args, kwargs), state_of(out)
    added = states - stream
    added.register_hook(lambda grad: torch.zeros_like(grad) if layer in dropped else grad)
    return with_state(out, states.detach() + (stream - stream.detach()) + (added - added.detach()))
