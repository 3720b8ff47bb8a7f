"""Examples from a JSONL file, plain or gzipped."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.corpus import Corpus, examples
from neuronforget.corpora.lines import file_name, read_rows


@checks_kinds
def jsonl(path: str | Path, *, n: int | None = None, name: str | None = None, **settings: Any) -> Corpus:
    """Read rows with "prompt" and "answer" (and the optional fields of `Example`), or with "text".

    `n` keeps the first n rows; `settings` are those of `Corpus` (template, eos, max_tokens).
    """
    found = islice(examples(read_rows(path), f"{path}, line"), n)
    return Corpus(tuple(found), name or file_name(path), **settings)
