"""Answers and measurements that are kept: one line of JSON an example, in a file named by all that they depend on.

Equal work finds them there, so nothing is computed twice; a run that is killed loses the batch it was at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from neuronforget.corpora import Batch
from neuronforget.edits.guarding import guard_on
from neuronforget.losses.naming import identity
from neuronforget.models import LM
from neuronforget.runs import content_key, environment, writing


class Kept:
    """What is known of the examples 0 to `count` - 1 of one piece of work."""

    def __init__(self, path: Path | None, count: int) -> None:
        self.path, self.count = path, count

    @classmethod
    def of(cls, folder: str | Path | None, kind: str, lm: LM, rows: Sequence[Any], **work: Any) -> Kept:
        """Name the file by the model, a guard on it, the examples' `rows`, versions and the work.

        Without a folder nothing is hashed or kept.
        """
        if folder is None:
            return cls(None, len(rows))
        return cls(Path(folder) / f"{kind}-{work_key(lm, rows=rows, **work)}.jsonl", len(rows))

    def fill(self, batches: Iterable[Batch], values: Callable[[Batch], Iterable[Any]]) -> list[Any]:
        """Return the value of every example; `values` gives those of a batch, where one of them is not there yet.

        A value is what JSON holds: numbers, texts, lists of them.
        """
        found = self.read()
        for batch in batches:
            if not all(i in found for i in batch.index):
                new = dict(zip(batch.index, values(batch), strict=True))
                self.add(new)
                found |= new
        return [found[i] for i in range(self.count)]

    def read(self) -> dict[int, Any]:
        """Return what is there by example; a line that a kill cut short is not."""
        if self.path is None or not self.path.is_file():
            return {}
        return {i: value for i, value in _whole_lines(self.path.read_bytes()) if 0 <= i < self.count}

    def add(self, values: dict[int, Any]) -> None:
        """Write a batch."""
        if self.path is None:
            return
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                if file.tell():  # a line that a kill cut short is ended first
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":
                        file.write(b"\n")
                file.writelines(json.dumps([i, value]).encode() + b"\n" for i, value in values.items())


def work_key(lm: LM, **work: Any) -> str:
    """Return the name of work on a model as it is now, by its content: models by weights, functions by their code."""
    return content_key(**{k: _content(v) for k, v in {"versions": environment(), "model": lm, **work}.items()})


def _content(value: Any) -> Any:
    if isinstance(value, LM):
        return value.digest(), guard_on(value)
    if callable(value):
        return identity(value)
    return [_content(item) for item in value] if isinstance(value, list | tuple) else value


def _whole_lines(content: bytes) -> Iterator[tuple[int, Any]]:
    for line in content.split(b"\n"):
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], int):
            yield row[0], row[1]
