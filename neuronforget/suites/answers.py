"""Questions answered in the model's own words, scored in every way; a constant answer's score beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from neuronforget.corpora import Corpus, subjects_of
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding, generate, prompt_tokens
from neuronforget.metrics.text import SCORERS, Scorer
from neuronforget.models import LM
from neuronforget.results import Results, example_rows, tidy_row
from neuronforget.results.intervals import over
from neuronforget.runs import environment

CANDIDATES = 200  # most common answers among which the best constant is searched
REFERENCES = ("gold", "best constant")  # edits of their own in the results
SHORT = ("rouge_l", "exact", "f1", "contains")


@dataclass(frozen=True)
class Questions:
    """A corpus to be answered. `answers` are all that count as right, an example; without them its own answer does."""

    corpus: Corpus
    answers: tuple[tuple[str, ...], ...] | None = None
    scorers: tuple[str, ...] = SHORT
    decoding: Decoding = field(default_factory=Decoding)

    def right(self) -> list[tuple[str, ...]]:
        """Return what counts as right, of every example."""
        found = self.answers or tuple((example.answer,) for example in self.corpus)
        if len(found) != len(self.corpus):
            raise InputError(f"{self.corpus.name}: {len(found)} lists of answers to {len(self.corpus)} questions")
        return list(found)


def answer(
    lm: LM,
    asked: Mapping[str, Questions],
    *,
    gold: LM | None = None,
    name: str = "model",
    batch_size: int = 32,
    kept: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    **info: Any,
) -> Results:
    """Return a row of every corpus and scorer (and "words", the answers' length), with intervals (`intervals.over`).

    `scope` is "reference"; rows of the edit "best constant" are what one and the same answer to every question scores,
    the best of the `CANDIDATES` most common right ones; those of "gold" are of a model `gold` that is asked the same.
    `kept` is a folder for written answers. Every prompt is checked before the first is answered. An error while
    answering ends the run: it is no forgetting.
    """
    check_name(name)
    models = {name: lm} | ({"gold": gold} if gold is not None else {})
    for own in asked.values():
        for model in models.values():
            prompt_tokens(model, own.corpus, own.decoding)
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for key, own in tqdm(asked.items(), desc="questions", disable=not progress):
        right, (units, what) = own.right(), over(subjects_of(own.corpus))
        info.setdefault("resampled", {})[key] = what
        for edit, model in models.items():
            texts = generate(model, own.corpus, own.decoding, batch_size=batch_size, kept=kept, progress=progress)
            for metric, values in _columns(own, texts, right).items():
                rows.append(_row(edit, key, metric, values, units, seed))
                names = {"edit": edit, "point": "full", "corpus": key, "metric": metric}
                examples += example_rows(names, values, units)
        for metric in own.scorers:
            best, values = constant(SCORERS[metric], right)
            rows.append(_row("best constant", key, metric, values, units, seed))
            info.setdefault("best constants", {}).setdefault(key, {})[metric] = best
    info |= {"model": lm.name, "digest": lm.digest(), "device": str(lm.device), "dtype": str(lm.model.dtype)}
    info |= {"gold": {"model": gold.name, "digest": gold.digest()}} if gold is not None else {}
    info |= {"seed": seed, "data": {key: own.corpus.digest() for key, own in asked.items()}}
    info |= {"decoding": {key: asdict(own.decoding) for key, own in asked.items()}, "versions": environment()}
    return Results(tuple(rows), tuple(examples), info)


def check_name(name: str, *others: str) -> None:
    """Raise InputError for a model that is called like a reference, or like one of the `others`."""
    if name in (*REFERENCES, *others):
        raise InputError(f"{name!r} is the name of a reference: call the model something else")


def _columns(own: Questions, texts: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    found = {metric: scored(SCORERS[metric], texts, right) for metric in own.scorers}
    return found | {"words": np.array([float(len(text.split())) for text in texts])}


def _row(edit: str, corpus: str, metric: str, values: np.ndarray, units: np.ndarray, seed: int) -> dict[str, Any]:
    names = {"edit": edit, "scope": "reference", "strength": 0.0, "point": "full", "corpus": corpus, "metric": metric}
    return tidy_row(names, values, units, seed)


def scored(scorer: Scorer, texts: Sequence[str], right: Sequence[Sequence[str]]) -> np.ndarray:
    """Return each text's score against its right answers."""
    return np.array([scorer(text, answers) for text, answers in zip(texts, right, strict=True)])


def constant(scorer: Scorer, right: Sequence[Sequence[str]]) -> tuple[str, np.ndarray]:
    """Return the right answer that scores best where it is given to every question, and its scores."""
    common = Counter(answer for answers in right for answer in dict.fromkeys(answers)).most_common(CANDIDATES)
    every = {text: scored(scorer, [text] * len(right), right) for text, _ in common}
    best = max(every, key=lambda text: float(every[text].mean()))
    return best, every[best]
