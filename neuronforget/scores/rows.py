"""Rows: many altered copies of one example, each run only from the block where it begins to differ.

A neuron that is changed in block l leaves everything below it as it was. So the model's own forward is called
on all rows, but every block runs only those that have entered by then; new ones start from the block's input
in the clean run. With one position to change, the tokens before it are run once, and every row reads their
keys and values and adds its own. Attention, rotary angles, masks and norms stay the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neuronforget.corpora import Batch
from neuronforget.errors import InputError, not_finite
from neuronforget.models import LM
from neuronforget.sites import Site

#: Replaces a layer's activations `[row, token, neuron]`; rows are those that have entered so far.
Edit = Callable[[Tensor], Tensor]
#: A row's size: tokens run anew, tokens attended (those and the shared ones), tokens predicted.
Size = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Clean:
    """One example as the model runs it: `ids` are the tokens that rows run anew, `prefix` holds those before them.

    `length` counts both. By layer, at `ids`: `inputs` of the blocks (and, one number on, what leaves the last),
    `acts` of their neurons, and the `rest` of what a block returns beside hidden states. `logits` predict `targets`,
    the answer tokens looked at.
    """

    ids: Int[Tensor, "1 token"]
    targets: Int[Tensor, "target"]
    length: int
    prefix: Any
    inputs: dict[int, Tensor]
    acts: dict[int, Tensor]
    rest: dict[int, tuple[Any, ...] | None]
    logits: Float[Tensor, "1 target vocab"]

    @property
    def size(self) -> Size:
        """What a row costs."""
        return self.ids.shape[1], self.length, len(self.targets)


def blocks_of(lm: LM) -> nn.ModuleList:
    """Return the list of blocks that holds the model's neurons."""
    words = lm.sites[0].path.split(".")
    for i in range(1, len(words)):
        found = lm.model.get_submodule(".".join(words[:i]))
        if isinstance(found, nn.ModuleList):
            return found
    raise InputError(f"{lm.sites[0].path} lies in no list of blocks: this score needs them to run rows from one upward")


@torch.no_grad()
def clean_run(lm: LM, example: Batch, position: int | None) -> Clean:
    """Run a batch of one example: up to the last answer token, or (position -1) to the last prompt token."""
    start = int(example.answer_mask[0].int().argmax())
    ids, targets, prefix = example.input_ids[:, :-1], example.input_ids[0, start:], None
    if position is not None:
        ids, targets = ids[:, :start], targets[:1]
    length = ids.shape[1]
    if position is not None and length > 1:
        ids, prefix = ids[:, -1:], _prefix(lm, ids[:, :-1])
    inputs: dict[int, Tensor] = {}
    acts: dict[int, Tensor] = {}
    rest: dict[int, tuple[Any, ...] | None] = {}

    def keep(layer: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        inputs[layer] = hidden_of(args, kwargs)
        inputs[layer + 1], rest[layer] = (out[0], tuple(out[1:])) if isinstance(out, tuple) else (out, None)

    with ExitStack() as stack:
        for layer, block in enumerate(blocks_of(lm)):
            hook = block.register_forward_hook(partial(keep, layer), with_kwargs=True)
            stack.callback(hook.remove)
        for site in lm.sites:
            stack.enter_context(_edited(lm, site, ids.shape[1], partial(acts.setdefault, site.layer)))
        logits = _forward(lm, ids, prefix, len(targets))
    return Clean(ids, targets, length, prefix, inputs, acts, rest, logits)


def run_rows(
    lm: LM, clean: Clean, entering: Mapping[int, int], edits: Mapping[int, Edit]
) -> Float[Tensor, "row target vocab"]:
    """Return the logits of rows of which `entering[layer]` enter at a layer, changed there by `edits[layer]`."""
    rows, tokens = sum(entering.values()), clean.ids.shape[1]
    with ExitStack() as stack:
        entered = 0
        for layer, block in enumerate(blocks_of(lm)):
            new = entering.get(layer, 0)
            stack.enter_context(_forward_of(block, partial(_run_entered, block.forward, clean, layer, entered, new)))
            entered += new
        for site in (site for site in lm.sites if site.layer in edits):
            stack.enter_context(_edited(lm, site, tokens, edits[site.layer]))
        return _forward(lm, clean.ids.expand(rows, -1), clean.prefix, len(clean.targets))


def zeroed(neurons: Int[Tensor, "row"], act: Float[Tensor, "row token neuron"]) -> Float[Tensor, "row token neuron"]:
    """Return the activations with neuron `neurons[i]` of row i at 0 (an `Edit`, its first argument given)."""
    act = act.clone()
    act[torch.arange(len(neurons)), :, neurons] = 0
    return act


@torch.no_grad()
def check_rows(lm: LM, example: Batch, position: int | None) -> None:
    """Raise InputError unless rows that nothing changes, entering at every layer, give the clean logits."""
    kind, clean = type(lm.model).__name__, clean_run(lm, example, position)
    try:
        found = run_rows(lm, clean, {site.layer: 2 for site in lm.sites}, {})
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{kind} cannot be run from a block upward ({type(error).__name__}: {reason})") from error
    if not torch.isfinite(clean.logits).all():
        raise not_finite("logits")
    gap = float((found - clean.logits).abs().max() / clean.logits.abs().max().clamp_min(1e-30))
    if not gap < torch.finfo(clean.logits.dtype).eps ** 0.5:
        raise InputError(
            f"{kind} cannot be run from a block upward: unchanged rows give other logits (by {gap:.1g} of the "
            "largest): its blocks hand each other more than hidden states; use a first-order score such as grad_x_act"
        )


def _prefix(lm: LM, ids: Tensor) -> Any:
    """Return the keys and values of the shared tokens; a row's own are appended for its pass and never kept."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=lm.model.config)
    lm.model(input_ids=ids, use_cache=True, **{_cache_name(lm): cache})
    if any(getattr(layer, "keys", None) is None for layer in cache.layers):
        raise InputError(
            f"{type(lm.model).__name__} has layers without keys and values of their own: their prompt cannot be shared "
            "between rows; use exact with position=None, or a first-order score such as grad_x_act"
        )
    for layer in cache.layers:
        layer.update = partial(_appended, layer.keys, layer.values)
    return cache


def _appended(keys: Tensor, values: Tensor, own_keys: Tensor, own_values: Tensor, *_: Any, **__: Any) -> Any:
    rows = len(own_keys)
    shared = (kept.expand(rows, *kept.shape[1:]) for kept in (keys, values))
    return tuple(torch.cat(pair, -2) for pair in zip(shared, (own_keys, own_values), strict=True))


def _cache_name(lm: LM) -> str:
    """transformers 5.24 calls `cache` what was `past_key_values`."""
    return "cache" if "cache" in signature(lm.model.forward).parameters else "past_key_values"


def _forward(lm: LM, ids: Tensor, prefix: Any, targets: int) -> Tensor:
    settings: dict[str, Any] = {"use_cache": prefix is not None}
    if prefix is not None:
        settings[_cache_name(lm)] = prefix
    if "logits_to_keep" in signature(lm.model.forward).parameters:
        settings["logits_to_keep"] = targets
    return lm.model(input_ids=ids, **settings).logits[:, -targets:]


def _run_entered(
    forward: Callable[..., Any], clean: Clean, layer: int, before: int, new: int, *args: Any, **kwargs: Any
) -> Any:
    """Stand in for a block's forward: run the rows that are in, hand the others on as they are."""
    hidden = hidden_of(args, kwargs)
    rows, inside = len(hidden), before + new
    if not inside:
        rest = clean.rest[layer]
        return hidden if rest is None else (hidden, *rest)
    states = torch.cat([hidden[:before], clean.inputs[layer].expand(new, -1, -1)]) if new else hidden[:inside]
    if inside < rows:  # masks and positions go with their rows; ALiBi's come as [row * head, ...]
        args, kwargs = tree_map(partial(_narrowed, rows, inside), (args, kwargs))
    out = forward(states, *args[1:], **kwargs) if args else forward(**{**kwargs, "hidden_states": states})
    whole = torch.cat([out[0] if isinstance(out, tuple) else out, hidden[inside:]])
    return (whole, *out[1:]) if isinstance(out, tuple) else whole


def _narrowed(rows: int, inside: int, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] and value.shape[0] % rows == 0:
        return value[: value.shape[0] // rows * inside]
    return value


@contextmanager
def _edited(lm: LM, site: Site, tokens: int, edit: Edit) -> Iterator[None]:
    """Within the block the layer's neurons are what `edit` makes of them."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        act = inputs[0]
        return (edit(act.view(-1, tokens, act.shape[-1])).view(act.shape), *inputs[1:])

    handle = lm.model.get_submodule(site.path).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hidden_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states among a block's arguments."""
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def _forward_of(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a block another forward within the block, and back what it had."""
    own = vars(block).get("forward")  # a dispatched model has one already
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own
