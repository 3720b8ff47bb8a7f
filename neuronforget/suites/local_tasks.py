"""Tasks for lm-eval on rows of one's own files, what counts as right there, and what a constant answer scores.

BBH answers are compared whole, an option by its letter: comparing them letter by letter, as one published scorer does,
gives a perfect model .69 and the constant "(A)" .80.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuronforget.corpora.lines import rows_of
from neuronforget.errors import InputError
from neuronforget.metrics.text import SCORERS, exact
from neuronforget.runs import content_key
from neuronforget.suites.answers import constant

WORDS = "words"  # how long a written answer is


def constants(kind: str, documents: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, np.ndarray]]:
    """Return, of each metric of a local task, the constant answer that scores best and its score on every document."""
    right = [_right(document["doc"]) for document in sorted(documents, key=lambda document: document["doc_id"])]
    metrics = [metric for metric in LOCAL[kind][1]["metrics"] if metric != WORDS]
    return {metric: constant(SCORERS.get(metric, exact), right) for metric in metrics}


def _right(doc: Mapping[str, Any]) -> list[str]:
    """What counts as right of a row: its answers, or the place of its right option (MMLU's: from 0, or a letter)."""
    if "answers" in doc or "target" in doc:
        return list(doc["answers"]) if "answers" in doc else [doc["target"]]
    place = doc["answer"] if "choices" in doc else truths(doc).index(doc["best_answer"])
    return [f"option {1 + ('ABCD'.find(place) if isinstance(place, str) else place)}"]


def _written(*metrics: str) -> Callable[[Mapping[str, Any], list[Any]], dict[str, float]]:
    """Score what was written by our own scorers."""

    def score(doc: Mapping[str, Any], results: list[Any]) -> dict[str, float]:
        text = str(results[0]).split("\n")[0].strip()
        return {metric: SCORERS[metric](text, _right(doc)) for metric in metrics} | {WORDS: float(len(text.split()))}

    return score


def _options(doc: Mapping[str, Any]) -> str:
    lettered = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEFGHIJ", doc["choices"], strict=False))
    return f"{doc['question']}\n{lettered}\nAnswer:"


def truths(doc: Mapping[str, Any]) -> list[str]:
    """Return the options in an order that does not tell which is true, and is the same in every run."""
    return sorted([doc["best_answer"], *doc["incorrect_answers"]], key=lambda text: content_key(text=text))


#: Kind of rows -> the fields it needs and the rest of its task.
LOCAL: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "triviaqa": (
        ("question", "answers"),
        {"output_type": "generate_until", "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_target": ""}
        | {"process_results": _written("exact", "f1", "contains"), "metrics": ("exact", "f1", "contains", WORDS)},
    ),
    "bbh": (
        ("input", "target"),
        {"output_type": "generate_until", "doc_to_text": "Q: {{input}}\nA:", "doc_to_target": "{{target}}"}
        | {"process_results": _written("option", "exact", "f1", "contains")}
        | {"metrics": ("option", "exact", "f1", "contains", WORDS)},
    ),
    "mmlu": (
        ("question", "choices", "answer"),
        {"output_type": "multiple_choice", "doc_to_text": _options, "doc_to_target": "answer", "metrics": ("acc",)}
        | {"doc_to_choice": ["A", "B", "C", "D"]},
    ),
    "truthfulqa": (
        ("question", "best_answer", "incorrect_answers"),
        {"output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:", "doc_to_choice": truths}
        | {"doc_to_target": lambda doc: truths(doc).index(doc["best_answer"]), "metrics": ("acc",)},
    ),
}  # fmt: skip


def task_of(kind: str, path: str | Path) -> dict[str, Any]:
    """Return lm-eval's configuration of a task on a local file."""
    if kind not in LOCAL:
        raise InputError(f"no task on local rows is called {kind!r}; there are {', '.join(LOCAL)}")
    fields, about = LOCAL[kind]
    rows = rows_of(path, fields=fields)
    settings = {k: v for k, v in about.items() if k != "metrics"}
    if about["output_type"] == "generate_until":
        settings["generation_kwargs"] = {"until": ["\n"], "do_sample": False, "max_gen_toks": 32}
    metrics = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in about["metrics"]]
    return {"task": f"{kind}_local", "dataset_path": "rows", "custom_dataset": lambda **_: {"test": _dataset(rows)},
            "test_split": "test", "metric_list": metrics, **settings}  # fmt: skip


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)
