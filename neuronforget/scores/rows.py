"""Rows: many altered copies of an example, each run only from the block where it begins to differ.

A neuron that is changed in block l leaves everything below it as it was. So the model's own forward is called
on all rows, but every block runs only those that have entered by then; new ones start from the block's input
in the clean run. With one position to change, the tokens before it are run once, and every row reads their
keys and values and adds its own; examples of one prompt length then share a pass, row i being one of example
i mod their number. Attention, rotary angles, masks and norms stay the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neuronforget.corpora import Batch
from neuronforget.errors import InputError, not_finite, reason
from neuronforget.models import LM
from neuronforget.scores.blocks import Edit, blocks_of, edited, forward_of, hidden_of, state_of, with_state
from neuronforget.scores.prefix import cache_name, prompt_cache, shared_by_rows

#: Makes of the states of a layer's new rows, as the block leaves them, those of the rows that go on.
Leave = Callable[[int, Tensor], Tensor]
#: A row's size: tokens run anew, tokens attended (those and the shared ones), tokens predicted.
Size = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Clean:
    """Examples as the model runs them: `ids` are the tokens that rows run anew, `prefix` holds those before them.

    `length` counts both. By layer, at `ids`: `inputs` of the blocks (and, one number on, what leaves the last),
    `acts` of their neurons, and the `rest` of what a block returns beside hidden states. `logits` predict `targets`,
    the answer tokens looked at.
    """

    ids: Int[Tensor, "example token"]
    targets: Int[Tensor, "example target"]
    length: int
    prefix: Any
    inputs: dict[int, Tensor]
    acts: dict[int, Tensor]
    rest: dict[int, tuple[Any, ...] | None]
    logits: Float[Tensor, "example target vocab"]

    @property
    def size(self) -> Size:
        """What a row costs."""
        return self.ids.shape[1], self.length, self.targets.shape[1]


@torch.no_grad()
def clean_run(lm: LM, batch: Batch, position: int | None) -> Clean:
    """Run one example up to its last answer token, or (position -1) examples of one prompt length up to its end."""
    starts = batch.answer_mask.int().argmax(1)
    start = int(starts[0])
    assert bool((starts == start).all()) and (position is not None or len(starts) == 1)
    if position is None:
        ids, targets = batch.input_ids[:, :-1], batch.input_ids[:, start:]
    else:
        ids, targets = batch.input_ids[:, :start], batch.input_ids[:, start : start + 1]
    length = ids.shape[1]
    own = length if position is None else 1
    cache = prompt_cache(lm) if own < length else None
    inputs: dict[int, Tensor] = {}
    acts: dict[int, Tensor] = {}
    rest: dict[int, tuple[Any, ...] | None] = {}

    def keep(layer: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        inputs[layer] = _ending(hidden_of(args, kwargs), own)
        left, rest[layer] = state_of(out), tuple(out[1:]) if isinstance(out, tuple | list) else None
        inputs[layer + 1] = _ending(left, own)

    def keep_acts(layer: int, act: Tensor) -> Tensor:
        acts[layer] = _ending(act, own)
        return act

    with ExitStack() as stack:
        for layer, block in enumerate(blocks_of(lm)):
            stack.callback(block.register_forward_hook(partial(keep, layer), with_kwargs=True).remove)
        for site in lm.sites:
            stack.enter_context(edited(lm, site, length, partial(keep_acts, site.layer)))
        logits = _forward(lm, ids, cache, targets.shape[1])
    prefix = None if cache is None else shared_by_rows(lm, cache)
    return Clean(ids[:, -own:], targets, length, prefix, inputs, acts, rest, logits)


def run_rows(
    lm: LM,
    clean: Clean,
    entering: Mapping[int, int],
    edits: Mapping[int, Edit],
    *,
    leave: Leave | None = None,
    going: int = 0,
) -> Float[Tensor, "row target vocab"]:
    """Return the logits of rows, `entering[layer]` of each example at a layer, changed there by `edits[layer]`.

    An edit is given all rows that have entered by then, the new ones last. With `leave`, a layer's new rows go on
    as what it makes of them, `going` rows of each example.
    """
    examples, tokens = clean.ids.shape
    with ExitStack() as stack:
        entered = most = 0
        for layer, block in enumerate(blocks_of(lm)):
            new = examples * entering.get(layer, 0)
            run = partial(_run_entered, block.forward, clean, layer, entered, new, leave)
            stack.enter_context(forward_of(block, run))
            most = max(most, entered + new)
            entered += examples * going if new and leave is not None else new
        for site in (site for site in lm.sites if site.layer in edits):
            stack.enter_context(edited(lm, site, tokens, edits[site.layer]))
        ids = clean.ids.repeat(max(most, entered) // examples, 1)
        return _forward(lm, ids, clean.prefix, clean.targets.shape[1])[:entered]


def run_from(
    lm: LM, clean: Clean, layer: int, states: Float[Tensor, "row token width"]
) -> Float[Tensor, "row target vocab"]:
    """Return the logits of rows that begin as `states` in block `layer`; one number on from the last, above them all.

    Blocks below are not run, and those above run all rows, with whatever else the model hands them.
    """
    with ExitStack() as stack:
        for i, block in enumerate(blocks_of(lm)[: layer + 1]):
            run = partial(_with_hidden, block.forward) if i == layer else partial(_handed_on, clean.rest[i])
            stack.enter_context(forward_of(block, partial(run, states)))
        ids = clean.ids.repeat(len(states) // len(clean.ids), 1)
        return _forward(lm, ids, clean.prefix, clean.targets.shape[1])


def zeroed(neurons: Int[Tensor, "row"], act: Float[Tensor, "row token neuron"]) -> Float[Tensor, "row token neuron"]:
    """Return the activations with neuron `neurons[i]` of row i at 0 (an `Edit`, its first argument given)."""
    act = act.clone()
    act[torch.arange(len(neurons)), :, neurons] = 0
    return act


@torch.no_grad()
def check_rows(lm: LM, clean: Clean) -> bool:
    """Raise InputError unless rows that nothing changes, entering at every layer, give the clean logits.

    Return whether every block adds what its neurons write: what leaves it is affine in their activations, as it is
    not where a norm follows them.
    """
    kind, parts, adds = type(lm.model).__name__, torch.tensor([1.0, 0.5, 0.0]).to(clean.logits), []
    new, root = len(parts) * len(clean.ids), torch.finfo(clean.logits.dtype).eps ** 0.5

    def scale(act: Tensor) -> Tensor:
        scaled = act[-new:].unflatten(0, (len(parts), -1)) * parts.to(act.device)[:, None, None, None]
        return torch.cat([act[:-new], scaled.flatten(0, 1)])

    def look(_layer: int, states: Tensor) -> Tensor:
        one, half, none = states.unflatten(0, (len(parts), -1))
        allowed = root * (one - none).norm() + root**2 * one.norm()
        adds.append(bool((half - (one + none) / 2).norm() <= allowed))
        return one

    try:
        layers = [site.layer for site in lm.sites]
        entering, edits = dict.fromkeys(layers, len(parts)), dict.fromkeys(layers, scale)
        found = run_rows(lm, clean, entering, edits, leave=look, going=1)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"{kind} cannot be run from a block upward ({said})") from error
    if not torch.isfinite(clean.logits).all():
        raise not_finite("logits")
    found = found.unflatten(0, (len(layers), -1))
    gap = float((found - clean.logits).abs().max() / clean.logits.abs().max().clamp_min(1e-30))
    if not gap < root:
        raise InputError(
            f"{kind} cannot be run from a block upward: unchanged rows give other logits (by {gap:.1g} of the "
            "largest): its blocks hand each other more than hidden states; use a first-order score such as grad_x_act"
        )
    return all(adds)


def _ending(value: Tensor, tokens: int) -> Tensor:
    """Return the last tokens of `[example, token, ...]`, on their own."""
    return value if value.shape[1] == tokens else value[:, -tokens:].clone()


def _forward(lm: LM, ids: Tensor, prefix: Any, targets: int) -> Tensor:
    settings: dict[str, Any] = {"use_cache": prefix is not None}
    if prefix is not None:
        settings[cache_name(lm)] = prefix
    if "logits_to_keep" in signature(lm.model.forward).parameters:
        settings["logits_to_keep"] = targets
    return lm.model(input_ids=ids, **settings).logits[:, -targets:]


def _run_entered(
    forward: Callable[..., Any], clean: Clean, layer: int, before: int, new: int, leave: Leave | None,
    *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    """Stand in for a block's forward: run the rows that are in, hand the others on as they are."""
    hidden = hidden_of(args, kwargs)
    rows, inside = len(hidden), before + new
    if not inside:
        return _handed_on(clean.rest[layer], hidden)
    start = clean.inputs[layer]
    fresh = start.expand(new // len(start), *start.shape).flatten(0, 1)
    states = torch.cat([hidden[:before], fresh]) if new else hidden[:inside]
    if inside < rows:  # masks and positions go with their rows; ALiBi's come as [row * head, ...]
        args, kwargs = tree_map(partial(_narrowed, rows, inside), (args, kwargs))
    out = _with_hidden(forward, states, *args, **kwargs)
    left = state_of(out)
    if new and leave is not None:
        left = torch.cat([left[:before], leave(layer, left[before:])])
    whole = torch.cat([left, hidden[len(left) :]])
    return with_state(out, whole)


def _with_hidden(forward: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run a block on other hidden states than it is given."""
    return forward(states, *args[1:], **kwargs) if args else forward(**{**kwargs, "hidden_states": states})


def _handed_on(rest: tuple[Any, ...] | None, states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
    """Return what a block returns that leaves hidden states as they are."""
    return states if rest is None else (states, *rest)


def _narrowed(rows: int, inside: int, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] and value.shape[0] % rows == 0:
        return value[: value.shape[0] // rows * inside]
    return value
