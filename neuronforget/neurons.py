"""Neurons: a set of (layer, neuron), with set algebra and the random controls that belong to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.errors import InputError, reading
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.recording import write_norms
from neuronforget.runs import whole_file


@dataclass(frozen=True)
class Neurons:
    """A set of neurons of a model whose layers with neurons are `layers`, each of `width` neurons."""

    members: frozenset[tuple[int, int]]
    layers: tuple[int, ...]
    width: int
    info: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", frozenset((int(layer), int(j)) for layer, j in self.members))
        known = set(self.layers)
        for layer, j in self.members:
            if layer not in known or not 0 <= j < self.width:
                raise InputError(f"no neuron {j} in layer {layer}: the model has layers {self.layers} of {self.width}")

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "layer neuron"], layers: Iterable[int], **info: Any) -> Neurons:
        """Build the set of the true entries; row i of `mask` is block `layers[i]`."""
        layers = tuple(layers)
        members = frozenset((layers[row], j) for row, j in mask.nonzero().tolist())
        return cls(members, layers, mask.shape[1], info)

    def mask(self) -> Bool[Tensor, "layer neuron"]:
        """Return the set as a boolean array, rows in the order of `layers`."""
        mask = torch.zeros((len(self.layers), self.width), dtype=torch.bool)
        row = {layer: i for i, layer in enumerate(self.layers)}
        for layer, j in self.members:
            mask[row[layer], j] = True
        return mask

    def by_layer(self) -> dict[int, Tensor]:
        """Return the sorted neuron numbers of each layer that has any."""
        mask = self.mask()
        return {layer: mask[i].nonzero()[:, 0] for i, layer in enumerate(self.layers) if mask[i].any()}

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(sorted(self.members))

    def __contains__(self, neuron: tuple[int, int]) -> bool:
        return neuron in self.members

    def __or__(self, other: Neurons) -> Neurons:
        return self._with(self.members | self._like(other).members)

    def __and__(self, other: Neurons) -> Neurons:
        return self._with(self.members & self._like(other).members)

    def __sub__(self, other: Neurons) -> Neurons:
        return self._with(self.members - self._like(other).members)

    def __xor__(self, other: Neurons) -> Neurons:
        return self._with(self.members ^ self._like(other).members)

    def __repr__(self) -> str:
        total = len(self.layers) * self.width
        counts = ", ".join(f"{layer}: {len(index)}" for layer, index in self.by_layer().items())
        return f"Neurons({len(self)} of {total}, {len(self) / total:.1%}; by layer {{{counts}}})"

    @checks_kinds
    def random_like(self, seed: int) -> Neurons:
        """Return as many random neurons of each layer, none of them in this set.

        Of a layer that has too few others, more than half being in this set, they are drawn from the whole of it:
        `info["shared"]` counts those that are in both sets.
        """
        mask, generator = self.mask(), np.random.default_rng(seed)
        out = torch.zeros_like(mask)
        for i, row in enumerate(mask.numpy()):
            count = int(row.sum())
            pool = np.flatnonzero(~row) if count <= (~row).sum() else np.arange(self.width)
            out[i, generator.choice(pool, count, replace=False)] = True
        shared = {"shared": count} if (count := int((out & mask).sum())) else {}
        return Neurons.from_mask(out, self.layers, control="random", seed=seed, **shared)

    @checks_kinds
    @numbers(nearest=">= 1")
    def matched(self, property_: Float[Tensor, "layer neuron"], seed: int, *, nearest: int = 8) -> Neurons:
        """Return a random control that looks like this set in `property_`: write norm, activation, ...

        For each member, in random order, one of its `nearest` free neurons of the same layer by that
        property is drawn. Raises InputError where a layer has no free neuron left.
        """
        mask, generator = self.mask(), np.random.default_rng(seed)
        values, out = property_.double().numpy(), torch.zeros_like(mask)
        if values.shape != tuple(mask.shape):
            raise InputError(f"the property must be [layer, neuron] {tuple(mask.shape)}, found {values.shape}")
        for i, row in enumerate(mask.numpy()):
            free = set(np.flatnonzero(~row).tolist())
            for j in generator.permutation(np.flatnonzero(row)).tolist():
                if not free:
                    raise InputError(
                        f"layer {self.layers[i]}: more than half of it is selected, no control of equal size exists"
                    )
                close = sorted(free, key=lambda k: (abs(values[i, k] - values[i, j]), k))[:nearest]
                drawn = close[generator.integers(len(close))]
                free.discard(drawn)
                out[i, drawn] = True
        return Neurons.from_mask(out, self.layers, control="matched", seed=seed)

    @checks_kinds
    def norm_matched(self, lm: LM, seed: int, *, nearest: int = 8) -> Neurons:
        """Return a random control of the same layers and like norms of the write weights (see `matched`)."""
        return self.matched(write_norms(lm), seed, nearest=nearest)

    @checks_kinds
    def activation_matched(self, moments: Moments, seed: int, *, nearest: int = 8) -> Neurons:
        """Return a random control of the same layers and like activations: root mean square in `moments`."""
        return self.matched(moments.rms, seed, nearest=nearest)

    def recall(self, truth: Neurons) -> float:
        """Return the share of the true neurons that are in this set."""
        if not truth.members:
            raise InputError("recall against an empty set of true neurons is undefined")
        return len(self & truth) / len(truth)

    def save(self, path: str | Path) -> None:
        """Write the set as JSON, all of it or nothing."""
        body = {"layers": self.layers, "width": self.width, "members": sorted(self.members), "info": dict(self.info)}
        with whole_file(path) as scratch:
            scratch.write_text(json.dumps(body), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Neurons:
        """Read what `save` wrote."""
        with reading(path, "set of neurons"):
            body = json.loads(Path(path).read_text(encoding="utf-8"))
            members = frozenset((layer, j) for layer, j in body["members"])
            return cls(members, tuple(body["layers"]), body["width"], body.get("info", {}))

    def _with(self, members: frozenset[tuple[int, int]]) -> Neurons:
        return Neurons(members, self.layers, self.width)

    def _like(self, other: Neurons) -> Neurons:
        if (self.layers, self.width) != (other.layers, other.width):
            raise InputError("the two sets are of different models: their layers or widths differ")
        return other
