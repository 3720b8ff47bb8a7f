"""What selection under uncertainty reads: one number for each example and neuron, from the per-example tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Corpus, subjects_of
from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.scores.scores import check_same

#: From a table's columns (`s`, `u`, `sum_a`, `sum_a2`, `peak`) to the number that is averaged over examples.
Effect = Callable[[Mapping[str, Tensor]], Float[Tensor, "example layer neuron"]]


def zero_ablation(table: Mapping[str, Tensor]) -> Float[Tensor, "example layer neuron"]:
    """Return `-s`: the first-order loss change of each example when the neuron is put at zero (`grad_x_act`)."""
    return -table["s"]


def effects(
    forget: Moments, retain: Moments, effect: Effect, subjects: tuple[Corpus, Corpus] | None = None
) -> tuple[Float[Tensor, "forget layer neuron"], Float[Tensor, "retain layer neuron"]]:
    """Return the effect on every example of both corpora; with `subjects`, these corpora, the mean of each subject's.

    Raises InputError for recordings of different models, without a per-example table, of a single example (subject),
    of other corpora than `subjects`, or NaN.
    """
    check_same((forget.layers, forget["mean"]), (retain.layers, retain["mean"]))
    found = []
    for i, (name, moments) in enumerate((("forget", forget), ("retain", retain))):
        if not moments.table:
            raise InputError(f"the {name} moments have no per-example table: record them with per_example=True")
        if moments.examples < 2:
            raise InputError(f"the {name} corpus has a single example: what varies over examples needs two or more")
        values = effect(moments.table)
        if not torch.isfinite(values).all():
            raise InputError(f"the effects on the {name} examples hold NaN or infinity")
        found.append(values if subjects is None else _by_subject(values, moments, subjects[i], name))
    return found[0], found[1]


def _by_subject(values: Tensor, moments: Moments, corpus: Corpus, name: str) -> Float[Tensor, "subject layer neuron"]:
    if moments.examples != len(corpus) or moments.info.get("data", corpus.digest()) != corpus.digest():
        raise InputError(f"the {name} moments were not recorded on corpus {corpus.name!r}, which `subjects` gives")
    units = torch.from_numpy(subjects_of(corpus))[list(moments.index)]
    count = torch.bincount(units)
    if len(count) < 2:
        raise InputError(f"corpus {corpus.name!r} has a single subject: what varies over subjects needs two or more")
    zero = torch.zeros((len(count), values.shape[2]), dtype=torch.float64)
    means = [zero.index_add(0, units, layer.double()) / count[:, None] for layer in values.unbind(1)]
    return torch.stack([layer.to(values.dtype) for layer in means], 1)
