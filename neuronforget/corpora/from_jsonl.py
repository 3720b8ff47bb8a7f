"""Examples from a JSONL file, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuronforget.corpora.corpus import Corpus, Example
from neuronforget.errors import InputError


def read_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, parsed row) of a `.jsonl` or `.jsonl.gz` file; errors name the file and the line."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error.msg} at column {error.colno})") from None
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None


def jsonl(path: str | Path, *, n: int | None = None, name: str | None = None, **settings: Any) -> Corpus:
    """Read rows with "prompt" and "answer" (and the optional fields of `Example`), or with "text".

    `n` keeps the first n rows; `settings` are those of `Corpus` (template, eos, max_tokens).
    """
    examples: list[Example] = []
    for number, row in read_rows(path):
        if n is not None and len(examples) == n:
            break
        try:
            examples.append(Example.from_row(row))
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    return Corpus(tuple(examples), name or Path(path).name.split(".")[0], **settings)
