"""Requests one after the other: the ledger that `erase` writes to, and what can be done with it later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Annotated, Literal

import tyro

from neuronforget.commands.console import Folder, output
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.ledger import RECORD, Ledger, check_own_folder
from neuronforget.models import LM, Experts
from neuronforget.runs import check_new, check_writable


def ledger(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    model: str | None = None,
    undo: tuple[str, ...] = (),
    export: Folder | None = None,
    with_edits: bool = False,
    results: Folder | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    device: str = "cpu",
    experts: Experts | None = None,
) -> None:
    """List the requests of a ledger, undo some of them, or export the model with the remaining ones applied.

    Args:
        folder: Folder written by `erase --ledger`, or an exported checkpoint.
        model: Model that the first request was made for (not needed if the folder is a checkpoint).
        undo: Names of requests to undo, in this order.
        export: New folder for the model with the remaining requests, and its model card.
        with_edits: Export the edits too, so that requests can be undone there. They hold the erased weights.
        results: Folder written by `evaluate`, for the model card.
        dtype: Store the exported weights in this precision. What it loses of an edit is counted.
        device: Device of the model: cpu, cuda, cuda:1.
        experts: Read the neurons of routed or shared experts, as for the requests. If not given: what more layers have.
    """
    import torch

    from neuronforget.models import load
    from neuronforget.results import Results

    kept, checkpoint = Ledger.load(folder), (folder / "config.json").is_file()
    if not undo and export is None:
        return print(kept)
    known = [entry.request for entry in kept.applied]
    if unknown := set(undo) - set(known):
        raise InputError(f"no request {min(unknown)!r} is applied; applied requests: {', '.join(known) or 'none'}")
    if model is None and not checkpoint:
        raise InputError("give --model, the checkpoint that the first request was made for")
    if checkpoint and export is None:
        raise InputError(f"{folder} is a checkpoint, which is never changed: give --export, a folder for the new one")
    if export is not None:
        check_new(export)
        check_apart({"--export": export, "the ledger": folder})
    measured = Results.load(results).rows if results else ()
    lm = load(model or folder, device=device, experts=experts)
    kept.replay(lm)
    for name in undo:
        kept.undo(lm, name)
    if export is not None:
        kept.export(lm, export, undo=with_edits, measured=measured, dtype=getattr(torch, dtype) if dtype else None)
    if undo and not checkpoint:
        kept.save(folder)
    print(kept, *([f"written to {export}"] if export else []), sep="\n")


@dataclass(frozen=True)
class Places:
    """Where an erasure goes: a file, a ledger (as `kept`) under the name `request`, a new checkpoint folder."""

    out: Path | None
    ledger: Path | None
    export: Path | None
    request: str | None
    kept: Ledger | None

    @classmethod
    def of(cls, model: str, out: Path | None, ledger: Path | None, export: Path | None, request: str | None) -> Places:
        """Read the ledger. Raises InputError unless there is a place, and each can be written, apart from others."""
        if not (out or ledger):
            raise InputError("give --out, a file for the edit, or --ledger and --request")
        if request and not ledger:
            raise InputError("--request names an erasure in a ledger: give --ledger too, or leave it out")
        places = {"--out": output(out, ".safetensors") if out else None, "--ledger": ledger, "--export": export}
        for option, place in places.items():
            if place:
                check_writable(place)
                if Path(model).is_dir() and place.resolve().is_relative_to(Path(model).resolve()):
                    raise InputError(f"{place} lies in the model's own folder: choose another place with {option}")
        check_apart(places)
        kept = _asked_of(ledger, request, model) if ledger else None
        if export:
            check_new(export)
        return cls(out, ledger, export, request, kept)

    def replay(self, lm: LM) -> None:
        """Put the requests on that the ledger holds: the next edit is made on top of them."""
        if self.kept:
            self.kept.replay(lm)

    def write(self, lm: LM, edit: Edit) -> list[str]:
        """Write the edit everywhere, and return where. A refused export does not take it with it: the error says so."""
        written: list[str] = []
        try:
            if self.out:
                edit.save(self.out)
                written.append(str(self.out))
            if self.kept and self.ledger:
                self.kept.apply(lm, edit, request=self.request or "")
                self.kept.save(self.ledger)
                written.append(str(self.ledger))
            if self.export:
                (self.kept or edit).export(lm, self.export)
                written.append(str(self.export))
        except InputError as error:
            kept = f" (the edit is kept in {' and '.join(written)})" if written else ""
            raise InputError(f"{error}{kept}") from error
        return written


def _asked_of(folder: Path, request: str | None, model: str) -> Ledger:
    """Return the ledger that `request` goes into: the folder's, or that of the model's own folder, or a new one.

    Raises InputError for a request without a name of its own, and a folder that holds anything else.
    """
    check_own_folder(folder)
    if not request:
        raise InputError("--ledger needs --request, the name by which the erasure can be undone")
    source = next((path for path in (folder, Path(model)) if (path / RECORD).is_file()), None)
    kept = Ledger() if source is None else Ledger.load(source)
    kept.check_name(request)
    return kept


def check_fresh(out: Path, beside: Mapping[str, Path | None]) -> None:
    """Raise InputError unless `--out` is a new folder, apart from what the options beside it name."""
    check_new(out)
    check_apart({"--out": out, **beside})


def check_apart(places: Mapping[str, Path | None]) -> None:
    """Raise InputError where one of what several options name lies in another, or is the same."""
    given = {option: place for option, place in places.items() if place}
    for (one, inner), (other, outer) in permutations(given.items(), 2):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise InputError(f"{one} {inner} lies in {other} {outer}: give each a place of its own")
