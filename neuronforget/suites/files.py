"""Rows of a data set's folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from neuronforget.corpora.corpus import check_count
from neuronforget.corpora.lines import read_list, read_rows
from neuronforget.errors import InputError

ENDINGS = (".jsonl", ".jsonl.gz", ".json")


def rows_of(
    path: str | Path, name: str | None = None, *, fields: tuple[str, ...] = (), n: int | None = None
) -> list[dict[str, Any]]:
    """Return the rows of a file, or of `name` (.jsonl, .jsonl.gz, .json: a list) in a folder, the first `n` of them.

    Raises InputError where there is no such file or no row, and for a row that lacks one of the `fields`.
    """
    check_count(n)
    place = Path(path)
    if name is not None:
        ends = (place / f"{name}{end}" for end in ENDINGS)
        place = next((p for p in ends if p.is_file()), place / f"{name}.jsonl")
    found = []
    every = read_list(place) if place.suffix == ".json" else read_rows(place)
    for line, row in islice(every, n):
        if not isinstance(row, dict) or (missing := [field for field in fields if field not in row]):
            raise InputError(f"{place}, line {line}: no field {missing[0] if isinstance(row, dict) else fields!r}")
        found.append(row)
    if not found:
        raise InputError(f"{place} has no rows")
    return found
