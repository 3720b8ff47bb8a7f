"""Learning rates by layer: one for all, or what a mapping or function says of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.scores.blocks import blocks_of, layer_of, path_of_blocks

#: A rate, or the rate of each layer by number; None stands for what lies in no layer (embeddings, last norm, head).
Rates = float | Mapping[int | None, float] | Callable[[int | None], float]


def default_lr(lm: LM, neurons: Neurons | None, *, adapters: bool = False) -> float:
    """Return 1e-5 (whole model) or 1e-4 (slices) for large models; 3e-4 or 1e-3 under 100M parameters.

    Adapters take ten times the whole model's.
    """
    small = sum(p.numel() for p in lm.parameters.values()) < 100_000_000
    if adapters:
        return 10 * default_lr(lm, None)
    if neurons is None:
        return 3e-4 if small else 1e-5
    return 1e-3 if small else 1e-4


def rates_of(lm: LM, lr: Rates, names: Iterable[str]) -> dict[str, float]:
    """Return the rate of each parameter that has one above 0; the others are not trained.

    Raises InputError for a rate below 0, where none is above, and for a layer without one or that the model lacks.
    """
    if isinstance(lr, int | float):
        if not (math.isfinite(lr) and lr > 0):
            raise InputError(f"training needs lr > 0; found {lr}")
        return dict.fromkeys(names, float(lr))
    if not isinstance(lr, Mapping) and not callable(lr):
        raise InputError(f"lr is a rate above 0, or one for each layer: {{0: 1e-3, None: 1e-4}}; found {lr!r}")
    path, depth = path_of_blocks(lm), len(blocks_of(lm))
    if isinstance(lr, Mapping) and (unknown := [key for key in lr if key is not None and key not in range(depth)]):
        raise InputError(f"lr names layer {unknown[0]!r}: the model has layers 0 to {depth - 1}")
    look = partial(_looked_up, lr) if isinstance(lr, Mapping) else lr
    found = {name: _checked(look(layer_of(path, name)), f"lr of {name}") for name in names}
    if not any(found.values()):
        raise InputError("training needs lr > 0 in a layer that it trains; found 0 in all")
    return {name: rate for name, rate in found.items() if rate}


def as_info(lm: LM, lr: Rates, rates: Mapping[str, float]) -> Any:
    """Return what is written down of the rates: a number, or each layer's."""
    if isinstance(lr, int | float):
        return lr
    found = {layer_of(path_of_blocks(lm), name): rate for name, rate in rates.items()}
    return {"other" if layer is None else str(layer): rate for layer, rate in found.items()}


def _looked_up(lr: Mapping[int | None, float], layer: int | None) -> float:
    if layer not in lr:
        what = "what lies in no layer (embeddings, last norm): add None" if layer is None else f"layer {layer}: add it"
        raise InputError(f"lr has no rate for {what}; 0 leaves it as it is")
    return lr[layer]


def _checked(rate: float, what: str) -> float:
    if not (math.isfinite(rate) and rate >= 0):
        raise InputError(f"training needs lr > 0 (0 in some layers: they stay as they are); {what} is {rate}")
    return rate
