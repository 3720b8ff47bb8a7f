"""CounterFact (Meng et al. 2022, arXiv:2202.05262): facts with another object, other words and neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.corpus import Corpus, Example, check_count
from neuronforget.corpora.lines import read_rows
from neuronforget.errors import InputError

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
    check_count(n)
    if part not in get_args(Part):
        raise InputError(f"CounterFact has the parts 'facts' and 'neighbours', not {part!r}")
    place = Path(path)
    if place.is_dir():
        place = next(iter(sorted(place.glob("counterfact.jsonl*"))), place / "counterfact.jsonl")
    found: dict[Example, None] = {}
    for number, (line, row) in enumerate(read_rows(place)):
        if number == n:
            break
        if not isinstance(row, dict) or (lacking := [f for f in FIELDS[part] if not isinstance(row.get(f), str)]):
            what = lacking[0] if isinstance(row, dict) else "fields"
            raise InputError(f"{place}, line {line}: no {what}: that is not CounterFact")
        found[_example(row, part)] = None
    return Corpus(tuple(found), f"counterfact-{part}")


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
