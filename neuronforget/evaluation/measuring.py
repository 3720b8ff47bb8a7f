"""measure(): each metric's value of every example, on a model as it is now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus
from neuronforget.edits.guarding import accepts, asked
from neuronforget.errors import InputError
from neuronforget.metrics import Metric, Prediction, exact_match, nll, probability, rank, token_accuracy
from neuronforget.models import LM, frozen
from neuronforget.models.likelihood import answer_logp, answer_nll
from neuronforget.results.kept import Kept
from neuronforget.runs.memory import free_bytes

EQUAL = 1e-6  # of a loss: less is fp32's rounding
METRICS: tuple[Metric, ...] = (exact_match, token_accuracy, probability, nll, rank)


@dataclass(frozen=True, eq=False)
class Before:
    """What the untouched model predicts at each answer token of a corpus: `kl_untouched` needs no second model.

    `rows` are log-probabilities (nats, fp32, on the CPU) by the examples of a batch, `digest` is the model's.
    """

    rows: dict[tuple[int, ...], Tensor]
    digest: str

    @classmethod
    @torch.no_grad()
    def of(cls, lm: LM, corpus: Corpus, *, batch_size: int = 128) -> Before:
        """Ask the model as it is now. Raises InputError where memory does not hold the answer."""
        rows = lm.encode(corpus)
        tokens = sum(len(row.ids) - max(row.answer_start, 1) for row in rows)
        wanted = 4 * tokens * lm.model.get_output_embeddings().weight.shape[0]
        if wanted > (there := free_bytes(torch.device("cpu"))):
            raise InputError(
                f"the predictions on corpus {corpus.name!r} take {wanted / 2**30:.1f} GiB, {there / 2**30:.1f} are "
                "free: measure fewer retain examples, or leave out divergence="
            )
        found = {}
        with frozen(lm):
            for batch in lm.batches(rows, batch_size):
                found[batch.index] = Prediction(*predicted(lm, batch)).logp.cpu()
        return cls(found, lm.digest())


@checks_kinds
@torch.no_grad()
def measure(
    lm: LM,
    corpus: Corpus,
    metrics: Iterable[Metric] = METRICS,
    *,
    gold: LM | None = None,
    before: Before | None = None,
    batch_size: int = 128,
    kept: str | Path | None = None,
) -> dict[str, np.ndarray]:
    """Return each metric's value of every example, in the corpus' order.

    `before` (of this corpus and batch size) is for `kl_untouched`. `kept` is a folder for the values: equal model,
    corpus and metrics find them there, and a run that was killed loses one batch at most.
    """
    metrics = list(metrics)
    rows = lm.encode(corpus)
    work: dict[str, Any] = {"gold": gold, "before": before and before.digest, "batch_size": batch_size}
    store = Kept.of(kept, "values", lm, rows, metrics=metrics, **work)

    def values(batch: Batch) -> list[list[float]]:
        logits, cut = predicted(lm, batch)
        twin = predicted(gold, batch)[0] if gold is not None else None
        made = Prediction(logits, cut, twin, before.rows[batch.index] if before is not None else None)
        columns = [_values(metric, made) for metric in metrics]
        return [list(row) for row in zip(*columns, strict=True)]

    if not metrics:
        return {}
    with frozen(lm), frozen(gold or lm):
        table = np.array(store.fill(lm.batches(rows, batch_size), values), dtype=np.float64)
    return {name_of(metric): table[:, i] for i, metric in enumerate(metrics)}


def _values(metric: Metric, made: Prediction) -> list[float]:
    """Return a metric's value of each example. Raises InputError where it gives anything else."""
    found, wanted = metric(made), (len(made.batch.index),)
    if not isinstance(found, Tensor) or found.shape != wanted:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"metric {name_of(metric)!r} must return a tensor of shape {wanted}, a value per example: it returned "
            f"{what}"
        )
    return found.float().tolist()


def predicted(lm: LM, batch: Batch) -> tuple[Tensor, Batch]:
    """Return the logits from the last token before the batch's first answer on, and the batch cut to the same tokens.

    No metric looks at what stands before, and a model that can leaves it out: its head is a good part of its work.
    """
    kept = batch.input_ids.shape[1] - int(batch.answer_start.min()) + 1
    fewer = {"logits_to_keep": kept} if accepts(lm, "logits_to_keep") else {}
    with asked(lm, batch):
        logits = lm.model(**batch.inputs, use_cache=False, **fewer).logits[:, -kept:]
    return logits, batch.last(kept)


@checks_kinds
@torch.no_grad()
def option_losses(
    lm: LM, corpus: Corpus, *, batch_size: int = 128, total: bool = False, kept: str | Path | None = None
) -> list[list[float]]:
    """Return the NLL (nats per token; with `total` of the whole) of each example's answer, then of its wrong ones.

    `kept` is a folder for them, as for `measure`.
    """
    options = [(i, text) for i, e in enumerate(corpus) for text in (e.answer, *e.wrong)]
    each = replace(corpus, examples=tuple(replace(corpus.examples[i], answer=text) for i, text in options))
    rows = lm.encode(each)
    score = (lambda logits, batch: -answer_logp(logits, batch)) if total else answer_nll
    store = Kept.of(kept, "options", lm, rows, total=total, batch_size=batch_size)
    with frozen(lm):
        found = store.fill(lm.batches(rows, batch_size), lambda batch: score(*predicted(lm, batch)).tolist())
    by: list[list[float]] = [[] for _ in corpus]
    for (i, _), value in zip(options, found, strict=True):
        by[i].append(value)
    return by


def preferred(losses: Sequence[float] | np.ndarray) -> float:
    """Return 1 where the first of several losses is the lowest, its share among equals where others are as low, else 0.

    Rounding tells none apart: a model that finds all answers equally likely chooses by chance. NaN where one is NaN.
    """
    found = np.asarray(losses, dtype=float)
    if np.isnan(found).any():
        return float("nan")
    lowest = np.isclose(found, found.min(), rtol=EQUAL, atol=0)
    return float(lowest[0] / lowest.sum())


def name_of(metric: Metric) -> str:
    """Return what a metric is called in results."""
    return getattr(metric, "__name__", str(metric))
