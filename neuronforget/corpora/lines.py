"""Rows of a file, as they are parsed: JSONL, plain or gzipped, or a JSON list."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError

ENDINGS = (".jsonl", ".jsonl.gz", ".json")
CODE = "utf-8-sig"  # some editors put a byte-order mark before UTF-8


def read_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, parsed row) of a `.jsonl` or `.jsonl.gz` file; errors name the file and the line."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    number = 0
    try:
        with gzip.open(path, "rt", encoding=CODE) if path.suffix == ".gz" else path.open(encoding=CODE) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})") from None
    except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise InputError(f"{path}, line {number}: not a row ({type(error).__name__})") from None


def read_list(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield (number, row) of a `.json` file that holds a list of rows; a text alone is a row with that `text`."""
    try:
        found = json.loads(Path(path).read_text(encoding=CODE))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(found, list):
        raise InputError(f"{path}: not a list of rows")
    for number, row in enumerate(found, start=1):
        yield number, {"text": row} if isinstance(row, str) else row


@checks_kinds
def rows_of(
    path: str | Path,
    name: str | None = None,
    *,
    fields: tuple[str, ...] = (),
    n: int | None = None,
    kind: str | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of a file, or of `name` (.jsonl, .jsonl.gz, .json: a list) in a folder, the first `n` of them.

    Raises InputError where there is no such file or no row, and for a row that lacks one of the `fields`. With `kind`,
    what the file is taken for, these are texts.
    """
    place = Path(path)
    if name is not None:
        ends = (place / f"{name}{end}" for end in ENDINGS)
        place = next((p for p in ends if p.is_file()), place / f"{name}.jsonl")
    found = []
    every = read_list(place) if place.suffix == ".json" else read_rows(place)
    for line, row in islice(every, n):
        if not isinstance(row, dict) or (missing := [f for f in fields if not _has(row, f, kind is not None)]):
            lacking: Any = missing[0] if isinstance(row, dict) else fields
            what = f"{lacking}: that is not {kind}" if kind else f"field {lacking!r}"
            raise InputError(f"{place}, line {line}: no {what}")
        found.append(row)
    if not found:
        raise InputError(f"{place} has no rows")
    return found


def _has(row: dict[str, Any], field: str, as_text: bool) -> bool:
    return isinstance(row.get(field), str) if as_text else field in row


def file_name(path: str | Path) -> str:
    """Return what a corpus from this file is called: its name up to the first dot."""
    return Path(path).name.split(".")[0]
