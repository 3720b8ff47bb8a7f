"""Moments: everything the scores need to know about each neuron on a corpus, and its merge law.

`stats(A ++ B) == stats(A) + stats(B)` over batches, processes and machines: sums add, means and squared
deviations follow Chan et al. (1979), all in fp64. Definitions are in `neuronforget_kernels.reference`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from neuronforget_kernels.reference import PIECE_FIELDS, SUMS, TABLE_FIELDS
from torch import Tensor

from neuronforget.errors import InputError, not_finite, reading
from neuronforget.runs import content_key, whole_file

NAMED = 3  # merged corpora that are named one by one


@dataclass(frozen=True)
class Moments:
    """Statistics over `tokens` tokens and `examples` examples; each field is fp64 `[layer, neuron]`.

    `layers` are the block numbers of the rows; `pooled` counts the examples with a token; `norms` holds the
    L1 and L2 norm of each neuron's write weights; `table` (if asked for) each example's `s`, `u`, `sum_a`,
    `sum_a2` and signed `peak`, fp32 `[example, layer, neuron]`, rows in the order of `index`.
    """

    fields: dict[str, Tensor]
    tokens: int
    examples: int
    pooled: int
    loss: float
    layers: tuple[int, ...]
    norms: dict[str, Tensor] = field(default_factory=dict)
    table: dict[str, Tensor] = field(default_factory=dict)
    index: tuple[int, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __repr__(self) -> str:
        where = self.info.get("corpus", "?")
        rows, width = self["mean"].shape
        return (
            f"Moments({where!r}: {self.examples} examples, {self.tokens} tokens, {rows} layers of {width} neurons, "
            f"loss {self.loss / max(self.examples, 1):.3f}, tap {self.info.get('tap', '?')})"
        )

    @property
    def variance(self) -> Tensor:
        """Population variance of `a` over tokens."""
        return self["m2"] / self.tokens

    @property
    def rms(self) -> Tensor:
        """Root of the mean of `a` squared over tokens."""
        return (self.variance + self["mean"] ** 2).sqrt()

    def __add__(self, other: Moments) -> Moments:
        """Merge two recordings of the same model. Raises InputError for others, and for unlike `positions`."""
        if self["mean"].shape != other["mean"].shape or self.layers != other.layers:
            raise InputError("moments of different models cannot be merged: their layers or widths differ")
        kinds = [moments.info.get("positions") for moments in (self, other)]
        if None not in kinds and kinds[0] != kinds[1]:
            raise InputError(
                f"one was recorded with positions={kinds[0]!r}, the other with {kinds[1]!r}: record both alike"
            )
        fields = {name: self[name] + other[name] for name in SUMS}
        fields["min"] = torch.minimum(self["min"], other["min"])
        fields["max"] = torch.maximum(self["max"], other["max"])
        fields["mean"], fields["m2"] = _chan(self, other, "mean", "m2", self.tokens, other.tokens)
        fields["pool_mean"], fields["pool_m2"] = _chan(self, other, "pool_mean", "pool_m2", self.pooled, other.pooled)
        both = bool(self.table) and bool(other.table)
        return replace(
            self,
            fields=fields,
            tokens=self.tokens + other.tokens,
            examples=self.examples + other.examples,
            pooled=self.pooled + other.pooled,
            loss=self.loss + other.loss,
            table={k: torch.cat([self.table[k], other.table[k]]) for k in TABLE_FIELDS} if both else {},
            index=self.index + other.index if both else (),
            info=_both_sources(self.info, other.info),
        )

    def on(self, device: torch.device | str) -> Moments:
        """Return the same moments with their fields on another device; norms and table stay on CPU."""
        return replace(self, fields={name: values.to(device) for name, values in self.fields.items()})

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, all of it or nothing; everything but the tensors is in its metadata."""
        from safetensors.torch import save_file

        groups = {"fields": self.fields, "norms": self.norms, "table": self.table}
        tensors = {f"{group}.{k}": v.contiguous() for group, d in groups.items() for k, v in d.items()}
        names = ("tokens", "examples", "pooled", "loss", "layers", "index", "info")
        with whole_file(path) as scratch:
            save_file(tensors, scratch, {"moments": json.dumps({n: getattr(self, n) for n in names})})

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what `save` wrote. Raises InputError for any other file."""
        from safetensors import safe_open

        groups: dict[str, dict[str, Tensor]] = {"fields": {}, "norms": {}, "table": {}}
        with reading(path, "moments"), safe_open(str(path), "pt") as file:
            meta = json.loads((file.metadata() or {})["moments"])
            for key in file.keys():  # noqa: SIM118 (not a dict)
                group, name = key.split(".", 1)
                groups[group][name] = file.get_tensor(key)
            meta["layers"], meta["index"] = tuple(meta["layers"]), tuple(meta["index"])
            return cls(**{**groups, **meta})


def merge(parts: Iterable[Moments]) -> Moments:
    """Merge recordings in the order given."""
    return reduce(Moments.__add__, parts)


def _both_sources(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What is known of the merged: where they were recorded on different data, both are named, of many the first ones.

    Of many the `data` are a hash of what was merged.
    """
    unlike = {key for key in ("corpus", "data") if one.get(key, other.get(key)) != other.get(key, one.get(key))}
    both = {key: f"{one[key]} + {other[key]}" for key in unlike}
    if both.get("data", "").count(" + ") >= NAMED:
        both["data"] = content_key(merged=both["data"])
    if "corpus" in both:
        both["corpus"] = _shortened(both["corpus"].split(" + "))
    return {**other, **one, **both}


def _shortened(names: list[str]) -> str:
    """`a + b + c + 4 more`, also of names that were shortened before."""
    counts = [int(name.removesuffix(" more")) for name in names if re.fullmatch(r"\d+ more", name)]
    names = [name for name in names if not re.fullmatch(r"\d+ more", name)]
    left = len(names[NAMED:]) + sum(counts)
    return " + ".join([*names[:NAMED], *([f"{left} more"] if left else [])])


def _chan(x: Moments, y: Moments, mean: str, m2: str, nx: int, ny: int) -> tuple[Tensor, Tensor]:
    total = max(nx + ny, 1)
    delta = y[mean] - x[mean] if nx and ny else torch.zeros_like(x[mean])
    base = x[mean] if nx else y[mean]
    return base + delta * (ny / total), x[m2] + y[m2] + delta**2 * (nx * ny / total)


def check_fields(fields: dict[str, Tensor]) -> None:
    """Raise InputError when a statistic is NaN or infinite: the model overflowed on this corpus."""
    if math.isfinite(torch.stack([fields[name].sum() for name in PIECE_FIELDS]).sum().item()):
        return  # one wait for the device; finite values do not sum to NaN or infinity in fp64
    for name in PIECE_FIELDS:
        bad = int((~torch.isfinite(fields[name])).sum())
        if bad:
            raise not_finite(f"statistic {name!r} of {bad} neurons")
