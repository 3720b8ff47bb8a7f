"""Scores: one number per neuron, with its sign convention, and the contrasts between two corpora."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Corpus
from neuronforget.errors import InputError, reading, warn
from neuronforget.models.routed import OWN, neuron_name
from neuronforget.moments import Moments
from neuronforget.runs import whole_file

Contrast = Literal["difference", "ratio", "z"]
#: Contrasts of a score whose standard error is not known.
Plain = Literal["difference", "ratio"]


def runs_model(score: Score) -> Score:
    """Mark a score that runs the model itself: it is called `score(lm, forget, retain, batch_size=, progress=)`."""
    score.reads = "model"  # type: ignore[attr-defined]
    return score


def reads_examples(score: Score) -> Score:
    """Mark a score of moments that reads their per-example table, which is not recorded otherwise."""
    score.reads = "examples"  # type: ignore[attr-defined]
    return score


def compares(fewest: int = 1, *, unless: tuple[str, Any] | None = None) -> Callable[[Score], Score]:
    """Mark a score that cannot do without a second corpus, and `fewest` examples of each, or only where a setting is
    not as said. It refuses others, and `attribute` does so before anything is recorded (`check_compared`).
    """

    def mark(score: Score) -> Score:
        @functools.wraps(score)
        def compared(forget: Any, retain: Any = None, **settings: Any) -> Scores:
            check_compared(compared, settings, forget, retain)
            return score(forget, retain, **settings)

        compared.compares = fewest, unless  # type: ignore[attr-defined]
        return compared

    return mark


def check_compared(score: Score, settings: Mapping[str, Any], forget: Any, retain: Any) -> None:
    """Raise InputError where the score, so set, needs more than these corpora, or recordings of them, hold.

    A contrast "z" asks for its own (`check_contrast`), whatever the score.
    """
    while isinstance(score, functools.partial):
        settings, score = {**score.keywords, **settings}, score.func
    fewest, unless = getattr(score, "compares", (0, None))
    label = getattr(score, "__name__", "score")
    if unless is not None:
        name, value = unless
        found = settings.get(name, inspect.signature(score).parameters[name].default)
        fewest, label = (0 if found == value else fewest), f"{label}({name}={found!r})"
    if fewest and retain is None:
        raise InputError(f"{label} compares two corpora: give retain too")
    counts = [_count(source) for source in (forget, retain) if source is not None]
    check_contrast(settings.get("contrast", "difference"), *counts)
    known = [count for count in counts if count is not None]
    if fewest and min(known, default=fewest) < fewest:
        raise InputError(
            f"{label} needs {fewest} or more examples of each corpus, found {' and '.join(map(str, known))}"
        )


def _count(source: Any) -> int | None:
    """Return the number of examples; None for a stream, of which it is not known."""
    if isinstance(source, Moments):
        return source.examples
    return len(source) if isinstance(source, Corpus) else None


def needs(score: Score) -> Literal["moments", "examples", "model"]:
    """Return what a score reads; marks are seen through `functools.partial`."""
    return getattr(getattr(score, "func", score), "reads", "moments")


@dataclass(frozen=True)
class Scores:
    """A score of every neuron; the `high` (or, where that is said, the `low`) end has to do with the forget corpus.

    `values` is fp64 `[layer, neuron]`, `layers` the block numbers of its rows, `sign` says in words what a
    positive and a negative value mean, `error` is the standard error over examples where it is known.
    """

    values: Float[Tensor, "layer neuron"]
    name: str
    sign: str
    layers: tuple[int, ...]
    error: Float[Tensor, "layer neuron"] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    end: Literal["high", "low"] = "high"

    @property
    def ranked(self) -> Float[Tensor, "layer neuron"]:
        """The values turned so that a larger one has more to do with the forget corpus."""
        return self.values if self.end == "high" else -self.values

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.layers):
            raise InputError(
                f"scores must be [layer, neuron] for {len(self.layers)} layers, found {tuple(self.values.shape)}"
            )
        if not torch.isfinite(self.values).all():
            raise InputError(
                f"score {self.name!r} is NaN or infinite for {int((~torch.isfinite(self.values)).sum())} neurons"
            )

    @property
    def own(self) -> int:
        """How many neurons each expert of a mixture has; 0 for another model, or where it is not known."""
        return int((self.info.get("forget") or {}).get(OWN, 0))

    def __repr__(self) -> str:
        flat, width = self.values.flatten(), self.values.shape[1]
        best = int(flat.abs().argmax())
        where = neuron_name(self.layers[best // width], best % width, self.own)
        size = f"{len(self.layers)} layers of {width}"
        return f"Scores({self.name!r}, {size}, extreme {flat[best]:.4g} at {where}; {self.sign})"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, all of it or nothing."""
        from safetensors.torch import save_file

        tensors = {"values": self.values.contiguous()}
        if self.error is not None:
            tensors["error"] = self.error.contiguous()
        meta = {"name": self.name, "sign": self.sign, "layers": self.layers, "info": self.info, "end": self.end}
        with whole_file(path) as scratch:
            save_file(tensors, scratch, {"scores": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with reading(path, "scores"), safe_open(str(path), "pt") as file:
            meta = json.loads((file.metadata() or {})["scores"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            meta["layers"] = tuple(meta["layers"])
            return cls(values=tensors["values"], error=tensors.get("error"), **meta)


#: A score reads the moments of the forget corpus and, for a contrast, of the retain corpus; or, marked with
#: `runs_model`, the model and the corpora themselves.
Score = Callable[..., Scores]


def check_same(one: tuple[tuple[int, ...], Tensor], other: tuple[tuple[int, ...], Tensor]) -> None:
    """Raise InputError unless two (layers, [layer, neuron]) are of the same layers of equally many neurons."""
    (layers, values), (others, against) = one, other
    if (layers, values.shape[:2]) != (others, against.shape[:2]):
        raise InputError(
            f"the two are of different models: layers {layers} of {values.shape[1]} neurons, "
            f"layers {others} of {against.shape[1]}"
        )


def both(measure: Callable[[Moments], Tensor], forget: Moments, retain: Moments | None) -> tuple[Tensor, Tensor | None]:
    """Return `measure` of forget and, if given, of retain. Raises InputError for recordings that do not compare."""
    if retain is None:
        return measure(forget), None
    check_same((forget.layers, forget["mean"]), (retain.layers, retain["mean"]))
    kinds = [moments.info.get("positions") for moments in (forget, retain)]
    if None not in kinds and kinds[0] != kinds[1]:
        raise InputError(
            f"forget was recorded with positions={kinds[0]!r}, retain with {kinds[1]!r}: record both alike"
        )
    return measure(forget), measure(retain)


def sources(forget: Moments, retain: Moments | None) -> dict[str, Any]:
    """Return what a score of moments carries in `info`: its recordings, so that a contrast is known for one."""
    return {"forget": forget.info, "retain": None if retain is None else retain.info}


def check_contrast(contrast: Contrast, *examples: int | None) -> None:
    """Raise InputError where "z" is asked of fewer than two corpora, or of one with fewer than two `examples`.

    None stands for a corpus whose size is not known.
    """
    if contrast != "z":
        return
    if len(examples) < 2:
        raise InputError("contrast='z' compares two corpora: give retain too")
    if any(count is not None and count < 2 for count in examples):
        raise InputError(
            "contrast='z' needs a standard error, and so 2 or more examples of each corpus, "
            f"found {' and '.join('?' if count is None else str(count) for count in examples)}"
        )


def contrasted(
    pair: tuple[Tensor, Tensor | None],
    contrast: Contrast,
    errors: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Tensor, Tensor | None]:
    """Return (values, standard error) of forget against retain; forget alone where there is no retain.

    "difference" is forget minus retain, "ratio" forget over retain (plus a thousandth of the layer's median,
    so that a neuron that is silent on retain does not divide by zero), "z" the difference over its standard
    error, which only scores with per-example moments have.
    """
    (forget, retain), (error_f, error_r) = pair, errors
    if retain is None:
        check_contrast(contrast, None)
        return forget, error_f
    if contrast == "difference" or contrast == "z":
        error = (error_f**2 + error_r**2).sqrt() if error_f is not None and error_r is not None else None
        if contrast == "difference":
            return forget - retain, error
        if error is None:
            raise InputError("contrast='z' needs a standard error: a score with one, and two or more examples of each")
        tiny = torch.finfo(error.dtype).tiny
        return (forget - retain) / error.clamp_min(tiny), torch.ones_like(error)
    if contrast == "ratio":
        if bool((forget < 0).any() or (retain < 0).any()):
            warn("contrast='ratio' of a score with both signs: where retain is below zero, the order is reversed")
        return forget / (retain + floor(retain)), None
    raise InputError(f"unknown contrast {contrast!r}: use 'difference', 'ratio' or 'z'")


def floor(values: Float[Tensor, "layer neuron"]) -> Float[Tensor, "layer 1"]:
    """Return a thousandth of each layer's median magnitude, and never zero."""
    return 1e-3 * values.abs().median(1, keepdim=True).values.clamp_min(1e-12)
