"""RWKU (Jin et al. 2024, arXiv:2406.10890): famous people to be forgotten, with questions about them and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.corpus import Corpus, Example, texts_of
from neuronforget.corpora.from_hub import hub_rows
from neuronforget.corpora.lines import rows_of
from neuronforget.errors import InputError

HUB_ID = "jinzhuoran/RWKU"
#: Cloze questions are asked to be completed, the others to be answered.
CLOZE, QUESTION = "Fill in the blank: {prompt}\nAnswer:", "Question: {prompt}\nAnswer:"
ASKED = ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2")
TEXTS = ("mia_forget", "mia_retain")


@checks_kinds
def rwku(
    part: str = "forget_level2",
    *,
    subjects: str | Sequence[str] | None = None,
    n: int | None = None,
    path: str | Path | None = None,
    template: str | None = None,
) -> Corpus:
    """Read a part of RWKU about some people (None: all): questions with their answers, or passages of plain text.

    Parts are `forget_level1` (cloze) to `forget_level3` (attacks), `neighbor_level1` and `neighbor_level2`, and the
    texts `mia_forget` and `mia_retain`. `path` is a folder with PART.jsonl or PART.jsonl.gz; without it the rows come
    from the hub. `template` takes the place of `CLOZE` and `QUESTION`, `n` keeps the first n rows. Raises InputError
    for an unknown part or person, and rows that are not RWKU's.
    """
    if part not in ASKED + TEXTS:
        raise InputError(f"RWKU has no part {part!r}: use one of {', '.join(ASKED + TEXTS)}")
    fields = ("query", "answer", "subject") if part in ASKED else ("text", "subject")
    rows = _rows(part, path, fields)
    chosen = None if subjects is None else set(texts_of(subjects))
    if chosen is not None and (unknown := chosen - {row["subject"] for row in rows}):
        raise InputError(f"{part} has nothing about {min(unknown)!r}")
    kept = list(islice((row for row in rows if chosen is None or row["subject"] in chosen), n))
    if part in TEXTS:
        return Corpus(tuple(Example("", row["text"], subject=row["subject"]) for row in kept), f"rwku-{part}")
    examples = tuple(Example(row["query"], row["answer"], subject=row["subject"]) for row in kept)
    return Corpus(examples, f"rwku-{part}", template=template or (CLOZE if part.endswith("1") else QUESTION))


def _rows(part: str, path: str | Path | None, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    if path is not None:
        return rows_of(path, part, fields=fields, kind="RWKU")
    instead = f"path=FOLDER, where FOLDER holds {part}.jsonl"
    found = [dict(row) for row in hub_rows(HUB_ID, part, split="test", instead=instead)]
    if not all(isinstance(row.get(field), str) for row in found for field in fields):
        raise InputError(f"{part}, {HUB_ID}, has no {', '.join(fields)}: that is not RWKU")
    return found
