"""Recordings that were killed, and how they go on: the moments so far, in one file, atomically replaced.

The file's name is a hash of the work (model, corpus, settings, rank), and it holds a hash of the examples read
until then: only equal work is continued. Batches are added in the same order as without an interruption, so
the result is the same bit for bit.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from neuronforget.errors import InputError
from neuronforget.moments import Moments
from neuronforget.runs import check_writable, content_key
from neuronforget.runs.ranks import Ranks


@dataclass
class Tally:
    """The moments of the first `rounds` batches, and the digest of what was read for them.

    Fields are added up where the model is; tables wait side by side on CPU until someone asks for the `total`.
    """

    path: Path | None = None
    every: float = 30.0
    rounds: int = 0
    read: str = ""
    _due: float = field(default_factory=monotonic)
    _sums: Moments | None = None
    _tables: list[Moments] = field(default_factory=list)

    @property
    def total(self) -> Moments | None:
        """All that was added, on CPU; None before anything was."""
        if self._sums is None:
            return None
        parts, sums = self._tables, self._sums.on("cpu")
        table = {name: torch.cat([part.table[name] for part in parts]) for name in parts[0].table}
        whole = replace(sums, table=table, index=tuple(chain.from_iterable(part.index for part in parts)))
        self._tables = [whole]
        return whole

    def add(self, part: Moments | None, read: str) -> None:
        """Count one more batch (None: this rank had none); the file follows when it is due."""
        if part is not None:
            self.put(part)
        self.rounds, self.read = self.rounds + 1, read
        if self.path and monotonic() >= self._due:
            start = monotonic()
            self.save()
            # A table makes the file large: no more than a twentieth of the time is spent on writing.
            self._due = monotonic() + (max(self.every, 20 * (monotonic() - start)) if self.every else 0)

    def put(self, part: Moments) -> None:
        """Add moments, where the part's fields are."""
        sums, here = replace(part, table={}, index=()), part["mean"].device
        self._sums = sums if self._sums is None else self._sums.on(here) + sums
        self._tables.append(replace(part, fields={}))

    def save(self) -> None:
        """Write the file, if there is to be one and anything to write."""
        if self.path and (total := self.total) is not None:
            replace(total, info={"rounds": self.rounds, "read": self.read}).save(self.path)

    def check(self, number: int, read: str, *, over: bool) -> None:
        """Raise InputError if the corpus is not the one that the file's batches came from."""
        if (number + 1 == self.rounds and read != self.read) or (over and number < self.rounds):
            raise InputError(
                f"{self.path} holds an unfinished recording of other examples: the corpus has changed since; "
                "delete the file to begin anew"
            )


class Unfinished:
    """A folder for recordings in the making; whoever opened it clears it at the end.

    `label` tells apart two works of one run; `every` is the time in seconds between two writings
    (0: one after each batch).
    """

    def __init__(self, folder: str | Path, label: str = "", *, every: float = 30.0) -> None:
        self.folder, self.label, self.every = Path(folder), label, every
        self._paths: set[Path] = set()
        check_writable(self.folder / "recording")

    def tally(self, **work: Any) -> Tally:
        """Return what is there of this work: nothing yet, or what a killed run left. Raises InputError if damaged."""
        path = self.folder / f"recording-{content_key(label=self.label, **work)}.safetensors"
        self._paths.add(path)
        tally = Tally(path, self.every, _due=monotonic() + self.every)
        if path.is_file():
            try:
                found = Moments.load(path)
                tally.rounds, tally.read = found.info["rounds"], found.info["read"]
            except (InputError, KeyError) as error:
                raise InputError(f"no recording to go on with ({error}): delete {path} to begin anew") from None
            tally.put(replace(found, info={}))
        return tally

    def clear(self, ranks: Ranks) -> None:
        """Remove this run's files, what a kill in the middle of writing has left, and the folder if it is empty.

        No rank goes on before all have: its next recording may begin in the same folder.
        """
        with ranks.together():
            for path in self._paths:
                path.unlink(missing_ok=True)
                for scratch in self.folder.glob(f".{path.name}-*"):
                    scratch.unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()
