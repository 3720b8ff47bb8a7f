"""What selection under uncertainty reads: one number for each example and neuron, from the per-example tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.scores.scores import check_same

#: From a table's columns (`s`, `u`, `sum_a`, `sum_a2`, `peak`) to the number that is averaged over examples.
Effect = Callable[[Mapping[str, Tensor]], Float[Tensor, "example layer neuron"]]


def zero_ablation(table: Mapping[str, Tensor]) -> Float[Tensor, "example layer neuron"]:
    """Return `-s`: the first-order loss change of each example when the neuron is put at zero (`grad_x_act`)."""
    return -table["s"]


def effects(
    forget: Moments, retain: Moments, effect: Effect
) -> tuple[Float[Tensor, "forget layer neuron"], Float[Tensor, "retain layer neuron"]]:
    """Return the effect on every example of both corpora.

    Raises InputError for recordings of different models, without a per-example table, of a single example, or NaN.
    """
    check_same((forget.layers, forget["mean"]), (retain.layers, retain["mean"]))
    found = []
    for name, moments in (("forget", forget), ("retain", retain)):
        if not moments.table:
            raise InputError(f"the {name} moments have no per-example table: record them with per_example=True")
        if moments.examples < 2:
            raise InputError(f"the {name} corpus has a single example: what varies over examples needs two or more")
        values = effect(moments.table)
        if not torch.isfinite(values).all():
            raise InputError(f"the effects on the {name} examples hold NaN or infinity")
        found.append(values)
    return found[0], found[1]
