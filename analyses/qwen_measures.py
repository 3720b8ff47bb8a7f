"""What `qwen_case_study.py` measures of one model: probes, membership, other tasks, shift; and what each step costs."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from qwen_rows import Rows

import neuronforget as nf
from neuronforget.corpora.lines import rows_of
from neuronforget.evaluation.generation import Decoding
from neuronforget.metrics.membership import membership
from neuronforget.metrics.shift import activation_shift
from neuronforget.metrics.text import SCORERS
from neuronforget.results import Results
from neuronforget.results.intervals import bootstrap
from neuronforget.suites.answers import Questions, answer, constant
from neuronforget.suites.rwku import ATTACKS, rwku
from neuronforget.suites.utility import utility

Value = dict[str, float]
LEVELS = ("forget 1", "forget 2", "forget 3"), ("neighbor 1", "neighbor 2")
SIDES = {"members": "FM", "non-members": "RM"}
SHOWN = 12  # examples of each corpus, for the shift of activations
#: Statistics of single texts whose mean stands in the published table.
PUBLISHED = {"loss": "log-likelihood", "min_k++@100%": "mink++ k=100%"}


@dataclass
class Costs:
    """Seconds and peak memory of each step, by its name; a step that comes again is added up."""

    device: torch.device
    steps: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Measure what is done within the block."""
        card = self.device.type == "cuda"
        if card:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        if card:
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        # of a process the kernel tells the highest so far alone
        peak = torch.cuda.max_memory_allocated(self.device) if card else _resident()
        known = self.steps.setdefault(step, {"times": 0, "seconds": 0.0, "GiB": 0.0})
        known |= {"times": known["times"] + 1, "seconds": known["seconds"] + seconds,
                  "GiB": max(known["GiB"], peak / 2**30)}  # fmt: skip


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def state(
    lm: nf.LM, rows: Rows, costs: Costs, edit: nf.Edit | None, batch: int, seed: int, *, tasks: bool = True
) -> dict[str, Any]:
    """Return what is measured of the model, with an edit on: column -> value and interval, and scores by question.

    `tasks=False` leaves out what lm-eval asks.
    """
    found: dict[str, Any] = {"values": {}, "questions": {}}
    with nullcontext() if edit is None else edit.on(lm):
        with costs.of("RWKU probes"):
            asked = rwku(lm, rows.data / "rwku", targets=rows.target, n=rows.size.n, batch_size=batch, progress=False)
            _probes(asked, found, seed)
        with costs.of("membership"):
            attacks = {"attacks": ("loss", "zlib", "min_k", "min_k++"), "ks": (0.2, 1.0)}
            told = membership(lm, rows.members, rows.others, batch_size=batch, seed=seed, progress=False, **attacks)
            _membership(told, found["values"], seed)
        if tasks:
            with costs.of("TriviaQA, BBH"):
                asked = utility(lm, local=rows.local, batch_size=batch, seed=seed)
                for row in (row for row in asked.rows if row["edit"] == "model"):
                    found["values"][f"{row['corpus']}, {row['metric']}"] = _value(row)
        with costs.of("answers without stop strings"):
            for row in _run_on(lm, rows, batch, seed).rows:
                if row["edit"] == "model" and row["metric"] == "exact":
                    found["values"][f"{row['corpus']}, exact, no stop"] = _value(row)
    with costs.of("activation shift"):
        for corpus in (rows.forget, rows.retain):
            found["values"][f"shift, {corpus.name}"] = shift(lm, edit, corpus, seed)
    return found


def _value(row: Mapping[str, Any]) -> Value:
    return {key: float(row[key]) for key in ("value", "low", "high", "n", "nan") if key in row}


def _mean(values: Sequence[float] | np.ndarray, seed: int) -> Value:
    value, low, high = bootstrap(np.asarray(values), seed)
    return {"value": value, "low": low, "high": high, "n": float(len(values)), "nan": float(np.isnan(values).sum())}


def _probes(asked: Results, found: dict[str, Any], seed: int) -> None:
    """Every level and attack, and all questions of the target, and of its neighbours, together."""
    for row in asked.rows:
        if row["edit"] == "model":
            found["values"][f"{row['corpus']}, {row['metric']}"] = _value(row)
    for name, levels in zip(("forget", "neighbours"), LEVELS, strict=True):
        for metric in ("rouge_l", "exact"):
            own = [e["value"] for level in levels for e in asked.examples
                   if (e["edit"], e["corpus"], e["metric"]) == ("model", level, metric)]  # fmt: skip
            found["values"][f"{name}, {metric}"] = _mean(own, seed)
            found["questions"][f"{name}, {metric}"] = own


def _membership(told: Results, values: dict[str, Value], seed: int) -> None:
    """AUC of FM against RM; and the published statistics: means over the texts of one side."""
    for row in told.rows:
        values[f"AUC, {row['metric']}"] = _value(row)
    for metric, name in PUBLISHED.items():
        for side, short in SIDES.items():
            own = [e["value"] for e in told.examples if (e["metric"], e["corpus"]) == (metric, side)]
            values[f"{name}, {short}"] = _mean(own, seed)


def _run_on(lm: nf.LM, rows: Rows, batch: int, seed: int) -> Results:
    """Answer known questions, and TriviaQA's, to the last token: exact match then counts what follows the answer."""
    near = replace(rows.near, examples=tuple(replace(e, answer=e.answer.strip()) for e in rows.near))
    near = near if rows.size.n is None else near.head(4 * rows.size.n)
    trivia = rows_of(rows.local["triviaqa"], fields=("question", "answers"))
    asked = nf.Corpus(tuple(nf.corpora.Example(f"Question: {row['question']}\nAnswer:", row["answers"][0])
                            for row in trivia), "triviaqa")  # fmt: skip
    plain = Decoding(32, ())
    questions = {
        "neighbours": Questions(near, scorers=("exact",), decoding=plain),
        "triviaqa": Questions(asked, tuple(tuple(row["answers"]) for row in trivia), ("exact",), plain),
    }
    return answer(lm, questions, batch_size=batch, seed=seed, progress=False)


def shift(lm: nf.LM, edit: nf.Edit | nf.LM | None, corpus: nf.Corpus, seed: int) -> Value:
    """Return the RMS of `a_after - a_before` over layers, neurons and tokens; examples are resampled."""
    if edit is None:
        return {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0.0, "nan": 0.0}
    shown = [replace(corpus, examples=(example,)) for example in corpus.examples[:SHOWN]]
    squares = [float(np.mean(np.square(activation_shift(lm, edit, one)))) for one in shown]
    found = _mean(squares, seed)
    return found | {key: float(np.sqrt(found[key])) for key in ("value", "low", "high")}


def constants(rows: Rows) -> dict[str, tuple[str, float]]:
    """Return the constant answer that scores best on each local task, and its score."""
    trivia = [row["answers"] for row in rows_of(rows.local["triviaqa"])]
    bbh = [[row["target"]] for row in rows_of(rows.local["bbh"])]
    asked = {"triviaqa, exact": ("exact", trivia), "triviaqa, contains": ("contains", trivia)}
    asked |= {"bbh, option": ("option", bbh), "bbh, exact": ("exact", bbh)}
    found = {name: constant(SCORERS[metric], right) for name, (metric, right) in asked.items()}
    return {name: (text, float(values.mean())) for name, (text, values) in found.items()}


__all__ = ["ATTACKS", "LEVELS", "SIDES", "Costs", "constants", "shift", "state"]
