"""RWKU (Jin et al. 2024, arXiv:2406.10890): famous people to be forgotten, asked in three levels and nine attacks.

Answers are greedy, scored by ROUGE-L recall as the paper does, and by stricter scorers beside it: recall does not fall
with what else is written. Per target, and over targets with intervals that resample targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example
from neuronforget.corpora.from_rwku import CLOZE, QUESTION
from neuronforget.corpora.lines import rows_of
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding
from neuronforget.models import LM
from neuronforget.results import Results
from neuronforget.suites.answers import Questions, answer

#: Corpus -> file; level 3 is also split by its attacks.
LEVELS = {
    "forget 1": "forget_level1", "forget 2": "forget_level2", "forget 3": "forget_level3",
    "neighbor 1": "neighbor_level1", "neighbor 2": "neighbor_level2",
}  # fmt: skip
#: How the nine attacks are spelt in the data; languages of the last are put together.
ATTACKS = (
    "prefix injection", "affirmative suffix", "role play", "multiple choice", "reverse query", "synonym manipulation",
    "context hint", "incontext learning", "cross lingual",
)  # fmt: skip
PROBE = ("query", "answer", "type", "subject")
MEMBERS = {"members": "mia_forget", "non-members": "mia_retain"}


@checks_kinds
def rwku(
    lm: LM,
    path: str | Path,
    *,
    targets: str | Sequence[str] | None = None,
    template: str | None = None,
    n: int | None = None,
    name: str = "model",
    batch_size: int = 32,
    max_new_tokens: int = 32,
    kept: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Results:
    """Ask a model all probes about some targets (None: all); return a row of every level, attack and scorer.

    Corpora are the keys of `LEVELS` and "forget 3, ATTACK". `info["by target"]` has the mean ROUGE-L recall of every
    target and level. `template` (with {prompt}, or "chat") is used in place of `CLOZE` and `QUESTION`; `n` asks the
    first n questions of each level, attack and target. What the data lack is in `info["missing"]`. Raises InputError
    for a folder without the files, and an unknown target, with those that there are.
    """
    chosen = _targets(path, targets)
    asked, missing = {}, {}
    for level, file in LEVELS.items():
        rows = [row for row in rows_of(path, file, fields=PROBE) if row["subject"] in chosen]
        rows = _first(rows, n) if n is not None else rows
        if not rows:
            missing[level] = f"no question about {', '.join(sorted(chosen))} in {file}"
            continue
        asked[level] = _questions(level, rows, template, max_new_tokens)
        for attack in ATTACKS if level == "forget 3" else ():
            own = [row for row in rows if attack_of(row["type"]) == attack]
            if own:
                asked[f"{level}, {attack}"] = _questions(f"{level}, {attack}", own, template, max_new_tokens)
            else:
                missing[f"{level}, {attack}"] = "no such question"
    found = answer(
        lm, asked, name=name, batch_size=batch_size, kept=kept, seed=seed, progress=progress, suite="rwku",
        missing=missing, targets=sorted(chosen),
    )  # fmt: skip
    by_target = {key: _by_target(found, name, key, own.corpus) for key, own in asked.items()}
    return replace(found, info={**found.info, "by target": by_target})


@checks_kinds
def rwku_members(path: str | Path, targets: str | Sequence[str] | None = None) -> tuple[Corpus, Corpus]:
    """Return RWKU's passages of membership inference: (about the targets, about others), for `metrics.membership`.

    The first are of the given targets (None: all). Both are read as plain text; set `max_tokens` for short models.
    """
    chosen = _targets(path, targets, MEMBERS["members"])
    found = []
    for side, file in MEMBERS.items():
        rows = rows_of(path, file, fields=("text", "subject"))
        texts = [row["text"] for row in rows if side == "non-members" or row["subject"] in chosen]
        found.append(Corpus(tuple(Example("", text) for text in dict.fromkeys(texts)), side))
    return found[0], found[1]


def attack_of(spelt: str) -> str:
    """Return which of `ATTACKS` a row's "type" names, however it is spelt; one that is none of them, in plain words."""
    plain = str(spelt).replace("-", " ").lower()
    return next((attack for attack in ATTACKS if plain.startswith(attack)), plain)


def _targets(path: str | Path, wanted: str | Sequence[str] | None, file: str = "forget_level2") -> set[str]:
    known = {row["subject"] for row in rows_of(path, file, fields=("subject",))}
    chosen = known if wanted is None else {wanted} if isinstance(wanted, str) else set(wanted)
    if unknown := chosen - known:
        raise InputError(f"no target is called {min(unknown)!r}; there are {len(known)}: {', '.join(sorted(known))}")
    return chosen


def _first(found: Iterable[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str], int] = {}
    kept = []
    for row in found:
        key = (row["subject"], attack_of(row["type"]))
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= n:
            kept.append(row)
    return kept


def _questions(name: str, found: Sequence[dict[str, Any]], template: str | None, tokens: int) -> Questions:
    made = CLOZE if name.endswith(" 1") else QUESTION
    examples = tuple(Example(row["query"], row["answer"], subject=row["subject"]) for row in found)
    corpus = Corpus(examples, f"rwku {name}", template=template or made)
    return Questions(corpus, decoding=Decoding(tokens, () if template == "chat" else ("\n",)))


def _by_target(found: Results, name: str, key: str, corpus: Corpus) -> dict[str, float]:
    wanted = (name, key, "rouge_l")
    values = [e["value"] for e in found.examples if (e["edit"], e["corpus"], e["metric"]) == wanted]
    by: dict[str, list[float]] = {}
    for example, value in zip(corpus, values, strict=True):
        by.setdefault(str(example.subject), []).append(value)
    return {target: float(np.mean(own)) for target, own in by.items()}
