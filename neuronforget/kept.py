"""Answers and measurements that are kept: one line of JSON an example, in a file named by all that they depend on.

Equal work finds them there, so nothing is computed twice; a run that is killed loses the batch it was at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronforget.guarding import guard_on
from neuronforget.models import LM
from neuronforget.runs import content_key, writing


class Kept:
    """What is known of the examples 0 to `count` - 1 of one piece of work."""

    def __init__(self, path: Path | None, count: int) -> None:
        self.path, self.count = path, count

    @classmethod
    def of(cls, folder: str | Path | None, kind: str, lm: LM, count: int, **work: Any) -> Kept:
        """Name the file by the model, a guard on it and the work; without a folder nothing is hashed or kept."""
        if folder is None:
            return cls(None, count)
        key = content_key(model=lm.digest(), guard=guard_on(lm), **work)
        return cls(Path(folder) / f"{kind}-{key}.jsonl", count)

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


def _whole_lines(content: bytes) -> Iterator[tuple[int, Any]]:
    for line in content.split(b"\n"):
        try:
            row: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, list) and len(row) == 2 and isinstance(row[0], int):
            yield row[0], row[1]
