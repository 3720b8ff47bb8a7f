"""Do the scorers tell answers from no answers? Predictors whose score is known, put through every scorer.

A perfect predictor has to score 1, one that says nothing 0, and one that is all but right less than 1: another option,
another sign, a word that begins otherwise. What the best constant answer scores, found by trying
right answers one by one, is what a score has to be told from; run-on text shows which scorers take a right answer with
more behind it; and an answer that is not there, because writing it failed, has to stop the run: an error is no
forgetting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.lines import rows_of
from neuronforget.errors import InputError
from neuronforget.metrics.text import SCORERS, normalised
from neuronforget.suites.answers import constant, scored

#: Right answers of a question, one at least.
Right = Sequence[str]
RUN_ON = ", I think. Question: what else?"
#: Scorers that know right and wrong alone: whatever is not right is 0.
ALL_OR_NOTHING = ("exact", "contains", "option")

#: Rows of every form that answers take, for a test without data.
GENERATED: dict[str, list[Right]] = {
    "names": [["Oslo"], ["Mira Holt", "Holt"], ["the baker of Velm"], ["Oslo"]],
    "options": [["(A)"], ["(B)"], ["(A)"], ["(C)"]],
    "words": [["Yes"], ["No"], ["valid"], ["invalid"], ["No"]],
    "numbers": [["1,024"], ["7"], ["-3"], ["21 September 1947"]],
}


@checks_kinds
def real_rows(folder: str | Path, n: int | None = 150) -> dict[str, list[Right]]:
    """Return right answers of `n` rows, evenly spaced, of BBH, TriviaQA, MMLU, TruthfulQA and RWKU in one folder."""
    read: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Right]]] = {
        "bbh": ("bbh", "bbh", lambda row: [row["target"]]),
        "triviaqa": ("triviaqa", "triviaqa", lambda row: row["answers"]),
        "mmlu": ("mmlu", "mmlu", lambda row: ["ABCD"[row["answer"]]]),
        "truthfulqa": ("truthfulqa", "truthfulqa", lambda row: [row["best_answer"], *row["correct_answers"]]),
    } | {f"rwku {i}": ("rwku", f"forget_level{i}", lambda row: [row["answer"]]) for i in (1, 2, 3)}
    found: dict[str, list[Right]] = {}
    for name, (place, file, right) in read.items():
        rows = rows_of(Path(folder) / place, file)
        step = max(1, len(rows) // n) if n else 1  # rows of one task lie together
        found[name] = [right(row) for row in rows[::step][:n]]
    return found


def self_test(rows: Mapping[str, Sequence[Right]] | None = None) -> list[dict[str, Any]]:
    """Return a row of every data set and scorer: what each predictor scores, and whether a failing one stops the run.

    Keys: data, scorer, perfect, best_constant, constant (its text), empty, run_on, missed (what answers score that are
    all but right), error_stops, ok. `ok` is False where a perfect predictor is not 1, an empty one not 0, one that
    misses scores as one that hits (or anything, with the scorers `ALL_OR_NOTHING`), a constant is right everywhere
    though no answer is, or an error did not stop the run.
    """
    found = []
    for data, right in (GENERATED if rows is None else rows).items():
        for name, scorer in SCORERS.items():
            text, values = constant(scorer, right)
            near = [scorer(said, answers) for answers in right for said in missed(answers, name)]
            row: dict[str, Any] = {
                "data": data, "scorer": name,
                "perfect": float(scored(scorer, [answers[0] for answers in right], right).mean()),
                "best_constant": float(values.mean()), "constant": text,
                "empty": float(scored(scorer, [""] * len(right), right).mean()),
                "run_on": float(scored(scorer, [answers[0] + RUN_ON for answers in right], right).mean()),
                "missed": sum(near) / max(len(near), 1),
                "error_stops": _stops(scorer, right),
            }  # fmt: skip
            row["ok"] = (
                row["perfect"] == 1
                and row["empty"] == 0
                and row["error_stops"]
                and (row["missed"] == 0 if name in ALL_OR_NOTHING else row["missed"] < 1)
                and (row["best_constant"] < 1 or bool(set.intersection(*map(set, right))))
            )
            found.append(row)
    return found


def missed(right: Right, scorer: str) -> list[str]:
    """Return texts that all but give the first right answer: its last word begins otherwise, or its sign is another.

    None where what is left is a right answer too. A sign is nothing to the scorers that count words.
    """
    answer = right[0].strip()
    *_, last = [None, *(found.start() for found in re.finditer(r"(?<![a-z0-9])[a-z0-9]", answer, re.IGNORECASE))]
    found = [] if last is None else [answer[:last] + _other(answer[last]) + answer[last + 1 :]]
    if scorer in ALL_OR_NOTHING and answer.lstrip("-").replace(",", "").isdecimal():
        found.append(answer.removeprefix("-") if answer.startswith("-") else f"-{answer}")
    words = [set(normalised(other).split()) for other in right]
    return [text for text in found if not any(own <= set(normalised(text).split()) for own in words)]


def _other(letter: str) -> str:
    """The next letter or digit; the one before the last."""
    return chr(ord(letter) - 1) if letter in "zZ9" else chr(ord(letter) + 1)


def check(rows: Mapping[str, Sequence[Right]] | None = None) -> list[dict[str, Any]]:
    """Do `self_test`, and raise InputError where a scorer fails it, naming the first."""
    found = self_test(rows)
    if bad := [row for row in found if not row["ok"]]:
        raise InputError(
            f"{len(bad)} of {len(found)} scorer tests fail; first: {bad[0]['scorer']} on {bad[0]['data']}: perfect "
            f"{bad[0]['perfect']:.3f}, empty {bad[0]['empty']:.3f}, all but right {bad[0]['missed']:.3f}, "
            f"best constant {bad[0]['best_constant']:.3f}, an error stops the run: {bad[0]['error_stops']}"
        )
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    head = ("data", "scorer", "perfect", "best constant", "which is", "empty", "all but right", "run-on")
    keys = ("perfect", "best_constant", "constant", "empty", "missed", "run_on")
    lines = [head, ["---"] * len(head)]
    lines += [
        [r["data"], r["scorer"], *(f"{r[k]:.2f}" if k != "constant" else _short(r[k]) for k in keys)] for r in found
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= 32 else text[:29] + "..."


def _stops(scorer: Callable[[str, Right], float], right: Sequence[Right]) -> bool:
    """Is no answer, None, what a failed generation leaves, refused rather than scored as nothing said?"""
    try:
        scorer(None, right[0])  # type: ignore[arg-type]
    except Exception:  # whatever it raises ends the run
        return True
    return False
