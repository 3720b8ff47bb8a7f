"""Ledger: the edits that are on a model, in order, request by request, and what became of those undone.

Each edit is made for the model that the earlier ones left. The last can always be undone, bit for bit; an earlier one
alone where the later ones do not cover its values, or where it is known what they are without it (rebasing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from neuronforget.edits import Edit
from neuronforget.edits.changes import Change, check_experts
from neuronforget.edits.checkpoints import RECORD, check_holds, checkpoint, read_record, write_record
from neuronforget.errors import InputError, reading
from neuronforget.ledger.rebasing import without
from neuronforget.models import LM
from neuronforget.runs import check_folder, whole_folder

_EDITS = "edits"


@dataclass(frozen=True, eq=False)
class Entry:
    """One request: what is told of it (JSON), and its edit, unless it was undone or its weights did not travel."""

    about: Mapping[str, Any]
    edit: Edit | None = field(default=None, repr=False)

    @property
    def request(self) -> str:
        """Its name."""
        return str(self.about["request"])

    @property
    def applied(self) -> bool:
        """Is it on the model?"""
        return self.about["state"] == "applied"

    def noted(self, note: str, **changed: Any) -> Entry:
        """Return it with one more line of history."""
        return replace(self, about={**self.about, **changed, "notes": [*self.about.get("notes", ()), note]})


@dataclass(eq=False)
class Ledger:
    """Requests in order. `start` and `model` are hashes of the model below the edits held here, and with them on."""

    entries: list[Entry] = field(default_factory=list)
    base_model: str = ""
    start: str = ""
    model: str = ""

    @property
    def applied(self) -> list[Entry]:
        """The requests that are on the model, oldest first."""
        return [entry for entry in self.entries if entry.applied]

    def __repr__(self) -> str:
        rows = (f"  {e.request}: {e.about['state']}, {e.about['method']}, {e.about['values']} values"
                + ("" if e.edit or not e.applied else ", cannot be undone from here")
                + "".join(f"\n    {note}" for note in e.about.get("notes", ())) for e in self.entries)  # fmt: skip
        what = f"{len(self.applied)} of {len(self.entries)} requests applied"
        return "\n".join([f"Ledger({what}{f' to {self.base_model}' if self.base_model else ''})", *rows])

    def apply(self, lm: LM, edit: Edit, *, request: str) -> None:
        """Put `edit` on the model and write it down under the request's name, with its certificate.

        Raises InputError, and changes nothing, for a name that is applied already, an edit that changes no weight
        (a guard), and a model that is not as this ledger left it.
        """
        self.check_name(request)
        if not edit.changes:
            raise InputError(f"{request}: this edit changes no weight (a guard): a ledger holds edits of weights")
        check_experts(edit.changes, lm.model)
        if unknown := {c.name for c in edit.changes if c.before is not None} - lm.parameters.keys():
            raise InputError(f"{request}: the model has no parameter {min(unknown)} (a tied weight goes by one name)")
        found = self._check(lm) if self.entries else lm.digest()
        below = [entry.request for entry in self.applied]
        entry = Entry({**edit.entry(lm, request), "on_top_of": below, "when": _now()}, edit)
        edit.apply(lm)
        if not self.entries:
            self.base_model, self.start = lm.name, found
        self.model = lm.digest()
        self.entries.append(entry)

    def undo(self, lm: LM, request: str) -> None:
        """Take one request off the model, bit for bit if it is the last or no later one covers its values.

        Later edits that only set or only add are put on again without it; their entries say so. Raises InputError,
        and changes nothing, where a later edit of the same values is of another kind (it names that request),
        where the edit is not here, and for a model that is not as this ledger left it.
        """
        place = next((i for i, entry in enumerate(self.entries) if entry.applied and entry.request == request), None)
        if place is None:
            raise InputError(f"no request {request!r} is applied; applied: {self._names()}")
        entry = self.entries[place]
        if entry.edit is None:
            raise InputError(
                f"{request} cannot be undone from here: its erased weights did not travel with the checkpoint "
                "(export(undo=True) sends them); undo it in the ledger that it was applied with"
            )
        self._check(lm)
        chain = [i for i in range(place, len(self.entries)) if self.entries[i].applied]
        edits = [e for i in chain if (e := self.entries[i].edit) is not None]
        difference, later = without(lm, edits, [self.entries[i].request for i in chain])
        difference.undo(lm)
        for i, left in zip(chain[1:], later, strict=True):
            after = f"{request}, which was on when this was applied, was undone on {_now()}: {left.note}. Made without "
            note = after + "it this edit could be another, and what it erased may be back in part: measure again"
            self.entries[i] = replace(self.entries[i].noted(note), edit=left.edit)
        self.entries[place] = replace(entry.noted(f"undone on {_now()}", state="undone"), edit=None)
        self.model = lm.digest()

    def undo_all(self, lm: LM) -> None:
        """Take off every request whose edit is here, last first: the model is bit for bit as it was before them."""
        for entry in reversed([entry for entry in self.applied if entry.edit is not None]):
            self.undo(lm, entry.request)

    def replay(self, lm: LM) -> None:
        """Put every edit held here on a model that is as the first was made for; one that has them is left alone.

        Raises InputError, and changes nothing, for any other model.
        """
        if not self.entries or (found := lm.digest()) == self.model:
            return
        if found != self.start:
            self._check_experts(lm)
            raise InputError(f"this ledger is of another model: it starts at {self.start} or {self.model}, not {found}")
        done: list[Edit] = []
        try:
            for edit in (entry.edit for entry in self.applied if entry.edit is not None):
                edit.apply(lm)
                done.append(edit)
            self._check(lm)
        except BaseException:
            for edit in reversed(done):
                edit.undo(lm)
            raise

    def save(self, folder: str | Path) -> None:
        """Write the ledger with its edits, so that they can be undone; replaces an earlier ledger in that folder.

        Raises InputError for a folder that holds anything else, a checkpoint among it.
        """
        check_own_folder(folder)
        with whole_folder(folder, replace=True) as scratch:
            about = {"base_model": self.base_model, "start": self.start, "model": self.model, "undo": True}
            write_record(scratch, [entry.about for entry in self.entries], about)
            self._save_edits(scratch, lambda change: change)

    @classmethod
    def load(cls, folder: str | Path) -> Ledger:
        """Read a ledger's own folder, or the one in a checkpoint that a ledger or an edit exported."""
        folder = Path(folder)
        with reading(folder / RECORD, "ledger"):
            record, entries = read_record(folder), []
            for i, about in enumerate(record["entries"]):
                path = folder / _EDITS / f"{i}.safetensors"
                entries.append(Entry(about, Edit.load(path) if about["state"] == "applied" and path.exists() else None))
            here = any(entry.edit for entry in entries)
            return cls(entries, record["base_model"], record["start"] if here else record["model"], record["model"])

    def export(
        self,
        lm: LM,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        undo: bool = False,
        measured: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the model, which has these requests on, as an ordinary checkpoint with the ledger and a model card.

        `undo=True` sends the edits too: they hold the erased weights, so by default they stay here. `dtype` and
        `measured` are those of `Edit.export`. Raises InputError, and writes nothing, where `Edit.export` does,
        and for a model that is not as this ledger left it.
        """
        self._check(lm)
        edits = {i: entry.edit.changes for i, entry in enumerate(self.entries) if entry.edit is not None}
        for changes in edits.values():
            check_holds(lm, changes)
        every = [change for changes in edits.values() for change in changes]
        names = {change.name for change in every}
        held = [Change(name, p.detach(), None) for name, p in lm.parameters.items() if name in names]
        same = dtype is None and all(change.before is not None for change in every)
        about = {"base_model": self.base_model, "start": self.start if same else "", "undo": undo}
        with checkpoint(lm, folder, [e.about for e in self.entries], held=held, edits=edits, dtype=dtype,
                        measured=list(measured), **about) as scratch:  # fmt: skip
            if undo:
                self._save_edits(scratch, lambda change: _stored_as(change, dtype))

    def check_name(self, request: str) -> None:
        """Raise InputError unless a request may be called so: a word, and none that is applied."""
        if not request.strip() or request in [entry.request for entry in self.applied]:
            raise InputError(f"a request needs a name of its own, found {request!r}; applied: {self._names()}")

    def _check(self, lm: LM) -> str:
        """Return the model's hash. Raises InputError unless it is as this ledger left it."""
        if (found := lm.digest()) != self.model:
            self._check_experts(lm)
            raise InputError(f"the model is not as this ledger left it: expected {self.model}, found {found}")
        return found

    def _check_experts(self, lm: LM) -> None:
        check_experts([c for entry in self.applied if entry.edit for c in entry.edit.changes], lm.model)

    def _names(self) -> str:
        return ", ".join(entry.request for entry in self.applied) or "none"

    def _save_edits(self, folder: Path, as_stored: Callable[[Change], Change]) -> None:
        (folder / _EDITS).mkdir()
        for i, entry in enumerate(self.entries):
            if entry.edit is not None:
                edit = replace(entry.edit, changes=tuple(map(as_stored, entry.edit.changes)))
                edit.save(folder / _EDITS / f"{i}.safetensors")


def check_own_folder(folder: str | Path) -> None:
    """Raise InputError for a folder that holds anything but a ledger, such as a checkpoint, and for a file."""
    folder = Path(folder)
    check_folder(folder)
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - {RECORD, _EDITS}):
        raise InputError(f"{folder} is not a folder of a ledger alone (it holds {min(others)}): choose another one")


def _stored_as(change: Change, dtype: torch.dtype | None) -> Change:
    """Return the change as it is in a checkpoint of `dtype`, where an added bias is one that was zero."""
    before = torch.zeros_like(change.after) if change.before is None else change.before
    wanted = dtype if dtype and change.after.is_floating_point() else change.after.dtype
    return replace(change, after=change.after.to(wanted), before=before.to(wanted))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
