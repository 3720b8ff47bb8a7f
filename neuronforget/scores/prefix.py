"""The prompt's keys and values, shared by rows of its last token: run once, read by every row, never changed.

A row is one token that reads the tokens before it. So what those leave in each layer's cache is kept from the one run
of the whole prompt, and in a pass of rows each row's own keys and values are put behind those of its example.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.models import LM


def prompt_cache(lm: LM) -> Any:
    """Return a cache which, in one run, keeps all tokens but the last, though that is seen too."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=lm.model.config)
    if any(not hasattr(layer, "update") for layer in cache.layers):  # linear attention keeps a state, no tokens
        raise _no_keys(lm)
    for layer in cache.layers:
        layer.update = partial(_all_but_last, layer.update)
    return cache


def _all_but_last(update: Callable[..., Any], keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
    update(keys[..., :-1, :], values[..., :-1, :], *args, **kwargs)
    return keys, values


def shared_by_rows(lm: LM, cache: Any) -> Any:
    """Return the cache so that a row's own keys and values are appended for its pass and never kept."""
    if any(getattr(layer, "keys", None) is None for layer in cache.layers):
        raise _no_keys(lm)
    for layer in cache.layers:
        layer.update = partial(_appended, layer.keys, layer.values)
    return cache


def _no_keys(lm: LM) -> InputError:
    return InputError(
        f"{type(lm.model).__name__} has layers without keys and values of their own: their prompt cannot be shared "
        "between rows; use exact with position=None, or a first-order score such as grad_x_act"
    )


def _appended(keys: Tensor, values: Tensor, own_keys: Tensor, own_values: Tensor, *_: Any, **__: Any) -> Any:
    def whole(kept: Tensor, own: Tensor) -> Tensor:
        own = own.unflatten(0, (-1, len(kept)))
        return torch.cat([kept.expand(len(own), *kept.shape), own], -2).flatten(0, 1)

    return whole(keys, own_keys), whole(values, own_values)


def cache_name(lm: LM) -> str:
    """transformers 5.24 calls `cache` what was `past_key_values`."""
    return "cache" if "cache" in signature(lm.model.forward).parameters else "past_key_values"
