"""TOFU (Maini et al. 2024, arXiv:2401.06121): 200 fictitious authors, 20 question/answer pairs each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.corpus import Corpus, Example
from neuronforget.corpora.from_hub import hub_rows
from neuronforget.corpora.lines import read_rows
from neuronforget.errors import InputError

HUB_ID = "locuslab/TOFU"
ROWS, ROWS_PER_AUTHOR = 4000, 20
TEMPLATE = "Question: {prompt}\nAnswer:"


@checks_kinds
def tofu(
    split: str = "full", *, n: int | None = None, path: str | Path | None = None, template: str | None = TEMPLATE
) -> Corpus:
    """Read a TOFU split: "full", "forgetNN" (the last NN% of the rows) or "retainNN" (the first NN%).

    `path` is a folder with `full.jsonl` (and, for paraphrases and wrong answers, `*_perturbed.jsonl`);
    without it the rows come from the hub. `n` keeps the first n rows.
    """
    match = re.fullmatch(r"(full|forget|retain)(?!00)(\d\d)?", split)
    if not match or (match[1] == "full") != (match[2] is None):
        raise InputError(f"unknown TOFU split {split!r}: use 'full', 'forgetNN' or 'retainNN', such as 'forget10'")
    share = ROWS * int(match[2] or 100) // 100
    rows = split_rows("full", path)
    if bad := [i for i, row in enumerate(rows) if not {"question", "answer"} <= row.keys()]:
        raise InputError(f"row {bad[0]} of {path or HUB_ID} has no 'question' and 'answer': that is not TOFU")
    if len(rows) != ROWS:
        raise InputError(f"TOFU has {ROWS} rows, found {len(rows)} in {path or HUB_ID}")
    keep = rows[-share:] if match[1] == "forget" else rows[:share]
    perturbed = _perturbed(split, path)
    examples = [_example(row, perturbed.get(row["question"], {})) for row in keep]
    return Corpus(tuple(examples[:n]), f"tofu-{split}", template=template)


def _example(row: dict[str, Any], perturbed: dict[str, Any]) -> Example:
    paraphrase = perturbed.get("paraphrased_question")
    return Example(
        row["question"],
        row["answer"],
        paraphrases=(paraphrase,) if paraphrase and paraphrase != row["question"] else (),
        wrong=tuple(perturbed.get("perturbed_answer", ())),
        subject=row.get("subject"),
    )


def split_rows(name: str, path: str | Path | None) -> list[dict[str, Any]]:
    """Return the rows of a TOFU file: `name`.jsonl of the folder `path`, or that configuration of the hub (None)."""
    if path is not None:
        return [row for _, row in read_rows(Path(path) / f"{name}.jsonl")]
    return [dict(row) for row in hub_rows(HUB_ID, name, instead=f"path=FOLDER, where FOLDER holds {name}.jsonl")]


def _perturbed(split: str, path: str | Path | None) -> dict[str, dict[str, Any]]:
    """Paraphrases and false answers exist for the three published forget splits only."""
    if split not in ("forget01", "forget05", "forget10"):
        return {}
    name = f"{split}_perturbed"
    if path is not None and not (Path(path) / f"{name}.jsonl").is_file():
        return {}
    return {row["question"]: row for row in split_rows(name, path)}
