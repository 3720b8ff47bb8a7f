"""Guard: what acts on a model while it runs and changes no weight of it.

Whoever holds the weights still holds what a guard hides, so it is reported as a guard, never as an erasure. A guard
is tensors and settings, which can be saved, and the name of a mechanism that hangs hooks on the model. The model
carries the handles: any copy of the guard can take them off.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from neuronforget.corpora import Batch
from neuronforget.edits.changes import State
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.runs import content_key

#: Hangs a guard's hooks on a model and yields their handles, one by one: what hangs is known if one fails.
Install = Callable[[LM, "Guard"], Iterable[Any]]
#: Kind of guard -> (its install, whether its strength is a dial; else it is on or off).
MECHANISMS: dict[str, tuple[Install, bool]] = {}

_HOLDER = "_neuronforget_guard"
_SAMPLED = 4096  # values of the input embedding that tell one model from another of its shape


def mechanism(kind: str, *, dial: bool = True) -> Callable[[Install], Install]:
    """Name the function that installs guards of this kind, so that a saved guard finds it again."""

    def named(install: Install) -> Install:
        MECHANISMS[kind] = (install, dial)
        return install

    return named


@dataclass(frozen=True, eq=False)
class Guard:
    """A mechanism by name, with what it needs. `strength` 1 is as it was made, 0 is off."""

    kind: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    settings: Mapping[str, Any]
    strength: float = 1.0

    @classmethod
    def of(cls, lm: LM, kind: str, tensors: Mapping[str, Tensor], **settings: Any) -> Guard:
        """Make a guard for this model. Raises InputError for tensors that are NaN or infinite."""
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(f"{kind}: {name} is NaN or infinite: check the model's weights")
        kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return cls(kind, kept, {**settings, "model": fingerprint(lm)})

    @property
    def dial(self) -> bool:
        """Does the strength grade it, or is it only on or off?"""
        return self._mechanism[1]

    @cached_property
    def key(self) -> str:
        """A hash of all that it is."""
        total = hashlib.sha256()
        for name in sorted(self.tensors):
            total.update(name.encode())
            total.update(self.tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
        settings = {k: self.settings[k] for k in sorted(self.settings)}
        return content_key(kind=self.kind, settings=settings, strength=self.strength, tensors=total.hexdigest())

    def scaled(self, strength: float) -> Guard:
        """Return it at `strength` times its own. Raises InputError where it can only be on or off."""
        if strength not in (0, 1) and not self.dial:
            raise InputError(f"{self.kind} is on or off: strength 1 or 0, found {strength}")
        return self if strength == 1 else replace(self, strength=self.strength * strength)

    def check(self, lm: LM, state: State) -> None:
        """Raise InputError unless the model is without a guard and its own ("before"), or this one is on ("after")."""
        on = vars(lm.model).get(_HOLDER)
        if state == "after":
            if on is None or on.key != self.key:
                raise InputError(f"the guard {self.kind} is not on this model: there is nothing to undo")
            return
        if on is not None:
            raise InputError(f"the guard {on.kind} is on this model: one at a time, take it off first")
        if (found := fingerprint(lm)) != self.settings["model"]:
            raise InputError(f"the guard {self.kind} was made for {self.settings['model']}, this is {found}")
        _ = self._mechanism

    def put(self, lm: LM, state: State) -> None:
        """Hang its hooks on the model ("after"), or take them off."""
        if state == "after":
            vars(lm.model)[_HOLDER] = held = _On(self.kind, self.key)
            held.handles.extend(self._mechanism[0](lm, self) if self.strength else [])
        elif (on := vars(lm.model).pop(_HOLDER, None)) is not None:
            for handle in on.handles:
                handle.remove()

    @property
    def _mechanism(self) -> tuple[Install, bool]:
        if self.kind not in MECHANISMS:
            raise InputError(f"no guard is called {self.kind!r}; there are {', '.join(sorted(MECHANISMS))}")
        return MECHANISMS[self.kind]


@dataclass
class _On:
    """The guard that is on a model, and how many tokens of each row are prompt, where that was said."""

    kind: str
    key: str
    handles: list[Any] = field(default_factory=list)
    prompts: Tensor | None = None


@dataclass(frozen=True)
class Given:
    """What the model is given in one forward pass. `place` counts a row's real tokens, those in its cache included."""

    ids: Int[Tensor, "example token"]
    place: Int[Tensor, "example token"]
    prompt: Bool[Tensor, "example token"]
    goes_on: bool


def guard_on(lm: LM) -> str | None:
    """Return the key of the guard that is on the model, or None: what is kept for one is not for another."""
    on = vars(lm.model).get(_HOLDER)
    return None if on is None else on.key


def check_unguarded(lm: LM) -> None:
    """Raise InputError where a guard is on the model."""
    if (on := vars(lm.model).get(_HOLDER)) is not None:
        raise InputError(
            f"the guard {on.kind} is on this model, and would be part of all that is done: take it off first"
        )


@contextmanager
def asked(lm: LM, batch: Batch) -> Iterator[None]:
    """Within the block a guard that is on takes the batch's prompts for prompts, and does not read the answers.

    A forward pass outside such a block, or the first one of `generate`, is all prompt.
    """
    on = vars(lm.model).get(_HOLDER)
    if on is not None:
        on.prompts = batch.answer_start
    try:
        yield
    finally:
        if on is not None:
            on.prompts = None


def before_pass(lm: LM, do: Callable[[Given, dict[str, Any]], dict[str, Any] | None]) -> Any:
    """Call `do(given, kwargs)` before every forward pass, which may return other keyword arguments for it.

    Passes that `do` itself runs are not announced to it. Returns the hook's handle.
    """
    inside = False

    def hook(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal inside
        if inside:
            return args, kwargs
        kwargs = {**dict(zip(inspect.signature(lm.model.forward).parameters, args, strict=False)), **kwargs}
        inside = True
        try:
            replaced = do(_given(lm, kwargs), kwargs)
        finally:
            inside = False
        return (), kwargs if replaced is None else replaced

    return lm.model.register_forward_pre_hook(hook, with_kwargs=True)


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """Return the cache among a forward pass' arguments, or None (transformers renamed it)."""
    return kwargs.get("cache") if kwargs.get("cache") is not None else kwargs.get("past_key_values")


def accepts(lm: LM, name: str) -> bool:
    """Does the model's forward pass name this argument?"""
    forward = lm.model.forward
    if (own := getattr(forward, "__func__", None)) is not None:  # the class': no model is held by the cache
        return name in _parameters(own)
    return name in inspect.signature(forward).parameters


@cache  # asked for every batch
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def fingerprint(lm: LM) -> str:
    """Return words for what a guard is made for: the model's class, its shape, a hash of its input embedding.

    Edits of neurons do not change it, so a guard goes on a model that has one.
    """
    embedding = lm.model.get_input_embeddings().weight.detach().reshape(-1)
    step = math.ceil(len(embedding) / _SAMPLED)
    values = hashlib.sha256(embedding[::step].float().cpu().numpy().tobytes()).hexdigest()[:8]
    layers, width = lm.shape
    return f"{type(lm.model).__name__} of {layers} layers, {width} neurons ({values})"


def _given(lm: LM, kwargs: Mapping[str, Any]) -> Given:
    ids, cache = kwargs.get("input_ids"), cache_of(kwargs)
    if ids is None:
        raise InputError("a guard reads tokens: give the model input_ids, not embeddings")
    past = 0 if cache is None else cache.get_seq_length()
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise InputError("a guard needs an attention mask [example, token]: generate with the default, dynamic cache")
    mask = torch.ones(len(ids), past + ids.shape[1], device=ids.device) if mask is None else mask
    place = (mask.long().cumsum(1) - 1)[:, -ids.shape[1] :]
    prompt = mask[:, -ids.shape[1] :].bool()
    ends = vars(lm.model)[_HOLDER].prompts
    if ends is not None:
        prompt = prompt & (place < ends.to(place)[:, None])
    return Given(ids, place.clamp(min=0), prompt & (past == 0), past > 0)
