"""Edit: what an erasure changes in a model, by parameter name, or a guard that acts on it while it runs.

Making an edit leaves the model as it was; `on` and `apply` change it and restore it bit for bit. Every
operator ends here, so that evaluation never knows how an edit was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.edits.certificates import Certificate, certify
from neuronforget.edits.changes import Change, Law, State, written
from neuronforget.edits.checkpoints import check_holds, checkpoint
from neuronforget.edits.guarding import Guard
from neuronforget.edits.precision import Rounding, rounded, rounding, rounding_of
from neuronforget.errors import InputError, reading, warn
from neuronforget.models import LM
from neuronforget.runs import environment, whole_file


@dataclass(frozen=True, eq=False)
class Edit:
    """Changes to named parameters, with how they were made in `info` (method, seed, loss, neurons, ...).

    One with a `guard` (and no changes) has `info["scope"] == "guard"`: it changes no weight, and is no erasure.
    """

    changes: tuple[Change, ...] = field(repr=False)
    info: dict[str, Any] = field(default_factory=dict)
    guard: Guard | None = field(default=None, repr=False)

    @classmethod
    def build(cls, lm: LM, wanted: Iterable[Change], **info: Any) -> Edit:
        """Store `wanted` in the model's dtype, counting the values that this rounds away; warns where it matters.

        Raises InputError if nothing is left of the edit: an operator that changed nothing says so.
        """
        changes, kept = [], Rounding()
        method = info.get("method", "edit")
        dtype = torch.float32
        for change in wanted:
            dtype = (change.after if change.before is None else lm.parameters[change.name]).dtype
            after = rounded(change.after.detach(), dtype, f"{method}: the new values of {change.name}")
            kept += rounding(change.before, change.after, dtype)
            changes.append(replace(change, after=after.clone()))
        if not kept.asked:
            raise InputError(f"{method} changed nothing: no value differs from before")
        if kept.gone:
            raise InputError(f"{method} changed nothing: {kept.words(dtype)}")
        if kept.matters:
            warn(f"{method}: {kept.words(dtype)}")
        return cls(tuple(changes), {**info, **kept.info, **environment()})

    @classmethod
    def guarding(cls, guard: Guard, **info: Any) -> Edit:
        """Return the edit that is this guard, and changes no weight."""
        about = {"method": f"guards.{guard.kind}", "scope": "guard", "guard": dict(guard.settings)}
        return cls((), {**about, **info, **environment()}, guard)

    @property
    def graded(self) -> bool:
        """Has it strengths between none and all of it? Some guards are only on or off."""
        return self.guard is None or self.guard.dial

    def __repr__(self) -> str:
        s = self.summary()
        if self.guard is not None:
            return f"Edit({s['method']}: a guard at strength {self.guard.strength:g}, no weight is changed)"
        what = f"{s['values']} values of {s['parameters']} parameters"
        lost = f", {s['lost']} values lost to the stored dtype" if s["lost"] else ""
        return f"Edit({s['method']}: {what}, relative change {s['relative']:.3g}{lost})"

    @checks_kinds
    def apply(self, lm: LM) -> None:
        """Change the model until `undo`.

        Raises InputError, and changes nothing, unless the model is as the edit was made for.
        """
        self._check(lm, "before")
        try:
            self._put(lm, "after")
        except BaseException:  # interrupted half-way: all of it or nothing
            self._put(lm, "before")
            raise

    def undo(self, lm: LM) -> None:
        """Restore the model bit for bit. Raises InputError, and changes nothing, unless this edit is applied."""
        self._check(lm, "after")
        try:
            self._put(lm, "before")
        except BaseException:
            self._put(lm, "after")
            raise

    @checks_kinds
    @contextmanager
    def on(self, lm: LM) -> Iterator[LM]:
        """Apply within the block, and restore bit for bit whatever happens in it."""
        self.apply(lm)
        try:
            yield lm
        finally:
            self._put(lm, "before")

    @checks_kinds
    def scaled(self, strength: float) -> Edit:
        """Return the edit at another strength: `before + strength (after - before)`. 1 is this edit, 0 none of it.

        Raises InputError for a strength that makes values infinite, and one between 0 and 1 of a guard without a dial.
        """
        if not math.isfinite(strength):
            raise InputError(f"strength must be a finite number, found {strength}")

        scaled_by = self.info.get("strength", 1.0) * strength
        if strength == 1:
            return replace(self, info={**self.info, "strength": scaled_by})
        changes, kept = [], Rounding()
        for change in self.changes:
            before = change.before if change.before is not None else torch.zeros_like(change.after)
            mixed = before.double() + strength * (change.after.double() - before.double())
            after = rounded(mixed, change.after.dtype, f"at strength {strength:g} the values of {change.name}")
            kept += rounding(before, mixed, after.dtype)
            law: Law | None = "add" if change.law == "add" else None  # half of "set it to 0" depends on what it was
            changes.append(replace(change, after=after, law=law))
        guard = None if self.guard is None else self.guard.scaled(strength)
        lost = {} if guard is not None else kept.info
        return replace(self, changes=tuple(changes), info={**self.info, **lost, "strength": scaled_by}, guard=guard)

    def summary(self) -> dict[str, Any]:
        """Return counts and sizes: values, parameters, L2 change relative to the weights it covers, values lost."""
        deltas, bases = 0.0, 0.0
        for change in self.changes:
            before = change.before if change.before is not None else torch.zeros_like(change.after)
            deltas += float((change.after.double() - before.double()).square().sum())
            bases += float(before.double().square().sum())
        return {
            "method": self.info.get("method", "edit"),
            "values": sum(c.after.numel() for c in self.changes),
            "parameters": len({c.name for c in self.changes}),
            "relative": (deltas / bases) ** 0.5 if bases else float("inf") if self.changes else 0.0,
            "norm": deltas**0.5,
            "adds": [c.name for c in self.changes if c.before is None],
            "lost": self.info.get("values_lost_to_dtype", 0),
        }

    def certificate(self, lm: LM) -> Certificate:
        """Apply and undo the edit, and compare every parameter value outside it, and all values afterwards."""
        self._check(lm, "before")
        trained = self.info.get("model_after_training")
        kept = None if trained is None else trained == self.info["model_before_training"]
        return certify(lm, self.changes, self.on(lm), kept)

    def entry(self, lm: LM, request: str | None = None) -> dict[str, Any]:
        """Return what a ledger tells of this edit: its size, how it was made, the neurons, its certificate."""
        about = {"request": request or self.info.get("method", "edit"), "state": "applied", **self.summary()}
        about |= {"neurons": written(lm.sites, self.changes), "info": dict(self.info)}
        return {**about, "certificate": self.certificate(lm).entry()}

    @checks_kinds
    def export(
        self,
        lm: LM,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        request: str | None = None,
        measured: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the edited model as an ordinary checkpoint folder that plain transformers loads, with its model card.

        `dtype` stores the whole checkpoint in another precision, `measured` are rows of `Results` for the card.
        Raises InputError, and writes nothing, for a guard, for an edit that changes nothing (of strength 0), where the
        architecture cannot hold an added bias (plain transformers would drop it), where nothing of the edit is left
        in `dtype`, and where the stored values differ from the edit's.
        """
        if self.guard is not None:
            raise InputError(
                f"{self.info.get('method', 'a guard')} changes no weight: an exported checkpoint would be the "
                "untouched model, with all that it knows; use on() or apply(), or an edit of the weights"
            )
        if not rounding_of(self.changes, None).asked:
            raise InputError("this edit changes nothing: no value differs from before (is it at strength 0?)")
        check_holds(lm, self.changes)
        entry, start = self.entry(lm, request), lm.digest()
        with self.on(lm), checkpoint(lm, folder, [entry], held=self.changes, edits={0: self.changes}, dtype=dtype,
                                     start=start, measured=list(measured)):  # fmt: skip
            pass

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, all of it or nothing. Raises InputError where it cannot be written."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        rows = []
        for i, change in enumerate(self.changes):
            rows.append({"name": change.name, "dim": change.dim, "law": change.law})
            for key in ("after", "before", "index"):
                if (value := getattr(change, key)) is not None:
                    tensors[f"{i}.{key}"] = value.detach().cpu().contiguous().clone()
        about: dict[str, Any] = {"changes": rows, "info": self.info}
        if (guard := self.guard) is not None:
            about["guard"] = {"kind": guard.kind, "settings": guard.settings, "strength": guard.strength}
            tensors |= {f"guard.{name}": tensor for name, tensor in guard.tensors.items()}
        with whole_file(path) as scratch:
            save_file(tensors, scratch, {"edit": json.dumps(about, default=str)})

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with reading(path, "edit"), safe_open(str(path), "pt") as file:
            meta = json.loads((file.metadata() or {})["edit"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            changes = tuple(
                Change(
                    row["name"],
                    tensors[f"{i}.after"],
                    tensors.get(f"{i}.before"),
                    row["dim"],
                    tensors.get(f"{i}.index"),
                    row.get("law"),
                )
                for i, row in enumerate(meta["changes"])
            )
            own = {k.removeprefix("guard."): tensor for k, tensor in tensors.items() if k.startswith("guard.")}
            return cls(changes, meta["info"], Guard(tensors=own, **meta["guard"]) if "guard" in meta else None)

    def _check(self, lm: LM, state: State) -> None:
        """Raise InputError unless the model's values are the edit's `state`."""
        for change in self.changes:
            change.check(lm.model, state)
        if self.guard is not None:
            self.guard.check(lm, state)

    def _put(self, lm: LM, state: State) -> None:
        for change in self.changes:
            change.put(lm.model, state)
        if self.guard is not None:
            self.guard.put(lm, state)
