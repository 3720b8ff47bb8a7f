"""The four sets of TOFU as corpora: every question with its answer, a paraphrase of it, and wrong answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example
from neuronforget.corpora.from_tofu import TEMPLATE, split_rows
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding
from neuronforget.metrics.tofu import SETS
from neuronforget.models import LM

SPLITS = ("forget01", "forget05", "forget10")


@dataclass(frozen=True)
class Protocol:
    """How a model is asked: as it was taught.

    `eos` counts the end of sequence as a token of the answer, as the authors do. Answers are of at most 200 tokens
    and have no stop string; the authors' 200 include the prompt.
    """

    template: str | None = TEMPLATE
    eos: bool = True
    decoding: Decoding = field(default_factory=lambda: Decoding(200, ()))


@dataclass(frozen=True)
class Questions:
    """One set, as the protocol puts it: wrong answers follow each other, as many for each question."""

    truth: Corpus
    paraphrase: Corpus
    wrong: Corpus

    @property
    def answers(self) -> Corpus:
        """Every answer whose loss is wanted, in one corpus: those of like length share a batch."""
        return replace(self.truth, examples=self.truth.examples + self.paraphrase.examples + self.wrong.examples)


@checks_kinds
def questions(split: str, path: str | Path | None, n: int | None, protocol: Protocol) -> dict[str, Questions]:
    """Read the four sets from a folder or (path None) the hub, the first n rows of each.

    Raises InputError for an unknown split and for rows that lack a field.
    """
    if split not in SPLITS:
        raise InputError(f"TOFU's forget sets are {', '.join(SPLITS)}; found {split!r}")
    files = ("retain_perturbed", f"{split}_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    return {kind: _read(kind, file, path, n, protocol) for kind, file in zip(SETS, files, strict=True)}


def _read(kind: str, file: str, path: str | Path | None, n: int | None, protocol: Protocol) -> Questions:
    key = "paraphrased_answer" if kind in ("retain", "forget") else "answer"  # the real sets have no paraphrase
    rows = split_rows(file, path)[:n]
    for i, row in enumerate(rows):
        _check(row, rows[0], key, f"{file}, row {i}")

    def corpus(pairs: list[tuple[str, str]]) -> Corpus:
        return Corpus(tuple(Example(*pair) for pair in pairs), f"tofu {file}", protocol.template, protocol.eos)

    return Questions(
        corpus([(row["question"], row["answer"]) for row in rows]),
        corpus([(row["question"], row[key]) for row in rows]),
        corpus([(row["question"], answer) for row in rows for answer in row["perturbed_answer"]]),
    )


def _check(row: Any, first: Any, paraphrase: str, where: str) -> None:
    for key in ("question", "answer", paraphrase):
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise InputError(f"{where}: no text {key!r}: that is not TOFU")
    wrong = row.get("perturbed_answer")
    if not isinstance(wrong, list) or not wrong or not all(isinstance(answer, str) for answer in wrong):
        raise InputError(f"{where}: no list of wrong answers 'perturbed_answer': that is not TOFU")
    if len(wrong) != len(first["perturbed_answer"]):
        raise InputError(f"{where}: {len(wrong)} wrong answers, {len(first['perturbed_answer'])} in row 0")


def check_room(lm: LM, sets: dict[str, Questions], decoding: Decoding) -> None:
    """Raise InputError before the first pass if a row of any set does not fit the model, its answer included."""
    for found in sets.values():
        rows = lm.encode(found.answers)
        longest = max(row.answer_start for row in rows)
        if lm.max_length is not None and longest + decoding.max_new_tokens > lm.max_length:
            raise InputError(
                f"{found.truth.name}: a question of {longest} tokens and {decoding.max_new_tokens} of answer, but the "
                f"model takes {lm.max_length} at most: ask for shorter answers (max_new_tokens)"
            )
