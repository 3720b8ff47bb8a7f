"""A model's blocks: where they are, what they are given, and standing in for what they or their neurons do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.maps import Site

#: Replaces a layer's activations `[row, token, neuron]`.
Edit = Callable[[Tensor], Tensor]


def blocks_of(lm: LM) -> nn.ModuleList:
    """Return the list of blocks that holds the model's neurons."""
    found = lm.model.get_submodule(path_of_blocks(lm))
    assert isinstance(found, nn.ModuleList)
    return found


def path_of_blocks(lm: LM) -> str:
    """Return the name of that list. Raises InputError where the neurons lie in none."""
    words = lm.sites[0].path.split(".")
    for i in range(1, len(words)):
        if isinstance(lm.model.get_submodule(path := ".".join(words[:i])), nn.ModuleList):
            return path
    raise InputError(f"{lm.sites[0].path} is not in a list of blocks: what was asked for goes block by block")


def layer_of(path: str, name: str) -> int | None:
    """Return the block, of those in the list at `path`, that the module or parameter `name` lies in, if in any."""
    head, _, rest = name.partition(f"{path}.")
    return None if head or not rest else int(rest.partition(".")[0])


def state_of(output: Any) -> Tensor:
    """Return the residual stream in what a block hands on: that alone, or the first of several things."""
    return output[0] if isinstance(output, tuple | list) else output


def with_state(output: Any, state: Tensor) -> Any:
    """Return the same with another residual stream."""
    return (state, *output[1:]) if isinstance(output, tuple | list) else state


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def edited(lm: LM, site: Site, tokens: int, edit: Edit) -> Iterator[None]:
    """Within the block of code the activations `[row, token, neuron]` of a layer are what `edit` makes of them."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        act = inputs[0]
        return (edit(act.view(-1, tokens, act.shape[-1])).view(act.shape), *inputs[1:])

    handle = lm.model.get_submodule(site.path).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def writings(lm: LM) -> Iterator[dict[int, Tensor]]:
    """Within the block of code each pass puts what every layer's neurons write, `[..., d_model]`, into the dictionary.

    That is what the output projection returns, by layer; a norm may follow it.
    """
    written: dict[int, Tensor] = {}

    def keep(layer: int, _module: nn.Module, _inputs: Any, out: Tensor) -> None:
        written[layer] = out

    with ExitStack() as stack:
        for site in lm.sites:
            module = lm.model.get_submodule(site.path)
            stack.callback(module.register_forward_hook(partial(keep, site.layer)).remove)
        yield written


@contextmanager
def forward_of(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a block another forward within the block of code, and back what it had."""
    own = vars(block).get("forward")  # a dispatched model has one already
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own


@contextmanager
def checkpointed(lm: LM) -> Iterator[None]:
    """Within the block of code a backward pass computes each block's states again in place of keeping them.

    transformers' own switch acts in training mode alone, where dropout would be on.
    """
    with ExitStack() as stack:
        for block in blocks_of(lm):
            stack.enter_context(forward_of(block, partial(checkpoint, block.forward, use_reentrant=False)))
        yield
