"""CounterFact (Meng et al. 2022, arXiv:2202.05262): facts with another object, other words and neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.corpus import Corpus, Example
from neuronforget.corpora.lines import rows_of

Part = Literal["facts", "neighbours"]
FIELDS = {
    "facts": ("prompt", "ground_truth", "rephrase_prompt", "target_new", "subject"),
    "neighbours": ("locality_prompt", "locality_ground_truth"),
}


@checks_kinds
def counterfact(path: str | Path, *, part: Part = "facts", n: int | None = None) -> Corpus:
    """Read CounterFact's facts, or the facts about neighbours that an edit of them should leave as they are.

    A fact has its true object as answer, the other words as paraphrase, and the new object among the wrong ones. `path`
    is the file (.jsonl, .jsonl.gz), or a folder with `counterfact` so named; `n` keeps the first n rows. Equal
    neighbours are read once. Raises InputError for rows that are not CounterFact's.
    """
    rows = rows_of(path, "counterfact" if Path(path).is_dir() else None, fields=FIELDS[part], n=n, kind="CounterFact")
    return Corpus(tuple(dict.fromkeys(_example(row, part) for row in rows)), f"counterfact-{part}")


def _example(row: dict[str, Any], part: Part) -> Example:
    if part == "neighbours":
        return Example(row["locality_prompt"], row["locality_ground_truth"])
    return Example(
        row["prompt"],
        row["ground_truth"],
        paraphrases=(row["rephrase_prompt"],),
        wrong=(row["target_new"],),
        subject=row["subject"],
    )
