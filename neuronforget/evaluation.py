"""evaluate(): what each edit did to the forget and the retain corpus, beside its references.

Methods are compared at full strength, over a frontier of strengths, and at matched damage: the strength at
which the retain loss has risen by the same amount. Every number has a bootstrap interval over examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from neuronforget.corpora import Corpus, batches, check_disjoint, encode
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.guarding import asked
from neuronforget.likelihood import answer_logp, answer_nll
from neuronforget.metrics import Metric, Prediction, exact_match, kl_gold, nll, probability, rank, token_accuracy
from neuronforget.models import LM, frozen
from neuronforget.results import Results, example_rows, tidy_row
from neuronforget.runs import environment

METRICS: tuple[Metric, ...] = (exact_match, token_accuracy, probability, nll, rank)


def evaluate(
    lm: LM,
    edits: Mapping[str, Edit],
    forget: Corpus,
    retain: Corpus,
    *,
    gold: LM | None = None,
    metrics: Sequence[Metric] = METRICS,
    strengths: Sequence[float] = (0.25, 0.5, 0.75),
    damage: float | None = 0.05,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = True,
) -> Results:
    """Measure every edit on forget and retain, on their paraphrases ("unseen"), and the untouched (and gold) model.

    `gold` is the model that never knew; with it the KL from gold is measured too. `strengths` are the points
    of the frontier besides 0 and 1, `damage` the rise of the retain loss (nats per answer token) at which
    methods are matched (None: not). The model is left as it was. Raises InputError for corpora that share
    examples and for edits that do not fit the model.
    """
    check_disjoint(forget, retain)
    if {"untouched", "gold"} & edits.keys():
        raise InputError("'untouched' and 'gold' are names of references: call the edit something else")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, found {seed}")
    check_references(lm, gold, damage)
    if gold is not None:
        metrics = (*metrics, kl_gold)
    names = [_name(metric) for metric in metrics]
    if again := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two metrics are called {min(again)!r}: give each function a name of its own")
    run = _Run(lm, gold, _corpora(forget, retain), metrics, batch_size, seed)
    with tqdm(total=len(edits), desc="evaluate", disable=not progress) as bar:
        run.full("untouched", "reference", 0.0)
        if gold is not None:
            run.full("gold", "reference", 0.0, gold)
        for name, edit in edits.items():
            bar.set_postfix(edit=name, refresh=False)
            run.edit(name, edit, strengths, damage)
            bar.update()
    info: dict[str, Any] = {
        "model": lm.name,
        "device": str(lm.device),
        "dtype": str(next(iter(lm.parameters.values())).dtype),
    }
    info |= {"seed": seed, "damage_budget": damage, "data": {c.name: c.digest() for c in (forget, retain)}}
    info |= {"edits": {name: _made(edit) for name, edit in edits.items()}}
    return Results(tuple(run.rows), tuple(run.examples), {**info, "versions": environment()})


def check_references(lm: LM, gold: LM | None, damage: float | None) -> None:
    """Raise InputError if `gold` cannot be compared token by token, or `damage` is no rise of the loss."""
    if damage is not None and not damage > 0:
        raise InputError(f"damage is a rise of the retain loss in nats, above 0, or None; found {damage}")
    sizes = [model.model.get_output_embeddings().weight.shape[0] for model in (lm, gold or lm)]
    if sizes[0] != sizes[1]:
        raise InputError(f"gold is of another vocabulary: {sizes[1]} tokens, the model has {sizes[0]}")


@torch.no_grad()
def measure(
    lm: LM, corpus: Corpus, metrics: Iterable[Metric] = METRICS, *, gold: LM | None = None, batch_size: int = 128
) -> dict[str, np.ndarray]:
    """Return each metric's value of every example, in the corpus' order."""
    metrics = list(metrics)
    rows = encode(corpus, lm.tokenizer, lm.max_length)
    values = {_name(metric): np.full(len(rows), np.nan) for metric in metrics}
    with frozen(lm), frozen(gold or lm):
        for batch in batches(rows, batch_size, lm.pad_id, lm.device):
            with asked(lm, batch):
                logits = lm.model(**batch.inputs, use_cache=False).logits
            twin = gold.model(**batch.inputs, use_cache=False).logits if gold is not None else None
            for metric in metrics:
                values[_name(metric)][list(batch.index)] = metric(Prediction(logits, batch, twin)).float().cpu().numpy()
    return values


@torch.no_grad()
def option_losses(lm: LM, corpus: Corpus, *, batch_size: int = 128, total: bool = False) -> list[list[float]]:
    """Return the NLL (nats per token; with `total` of the whole) of each example's answer, then of its wrong ones."""
    options = [(i, text) for i, e in enumerate(corpus) for text in (e.answer, *e.wrong)]
    rows = replace(corpus, examples=tuple(replace(corpus.examples[i], answer=text) for i, text in options))
    score = (lambda logits, batch: -answer_logp(logits, batch)) if total else answer_nll
    found: list[float] = [math.nan] * len(options)
    with frozen(lm):
        for batch in batches(encode(rows, lm.tokenizer, lm.max_length), batch_size, lm.pad_id, lm.device):
            with asked(lm, batch):
                values = score(lm.model(**batch.inputs, use_cache=False).logits, batch).tolist()
            for place, value in zip(batch.index, values, strict=True):
                found[place] = value
    by: list[list[float]] = [[] for _ in corpus]
    for (i, _), value in zip(options, found, strict=True):
        by[i].append(value)
    return by


def subjects_of(corpus: Corpus) -> np.ndarray:
    """Number each example's subject; one without a subject is a unit of its own."""
    names = [e.subject if e.subject is not None else (i,) for i, e in enumerate(corpus)]
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])


def match_damage(
    lm: LM,
    edit: Edit,
    retain: Corpus,
    damage: float,
    *,
    batch_size: int = 128,
    tolerance: float = 0.1,
    halvings: int = 8,
) -> float:
    """Return the strength (at most 1) at which the retain loss has risen by `damage` nats per answer token.

    The largest strength that keeps within the budget, found by bisection to `tolerance` of it; 1 where the
    whole edit does; 0 where it does not and cannot be weakened.
    """

    def loss() -> float:
        return float(measure(lm, retain, [nll], batch_size=batch_size)["nll"].mean())

    def rise(strength: float) -> float:
        with edit.scaled(strength).on(lm):
            return loss() - start

    start = loss()
    if rise(1.0) <= damage:
        return 1.0
    if not edit.graded:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        found = rise(middle)
        low, high = (middle, high) if found <= damage else (low, middle)
        if abs(found - damage) <= tolerance * damage and found <= damage:
            break
    return low


def _made(edit: Edit) -> dict[str, Any]:
    """How an edit was made, and its size: what a row of results needs to be reproduced."""
    versions, summary = environment(), edit.summary()
    about = {k: v for k, v in edit.info.items() if k not in versions and isinstance(v, bool | int | float | str | dict)}
    return {**about, **{key: summary[key] for key in ("values", "parameters", "relative")}}


def _name(metric: Metric) -> str:
    return getattr(metric, "__name__", str(metric))


def _corpora(forget: Corpus, retain: Corpus) -> dict[str, Corpus]:
    named = {"forget": forget, "forget unseen": forget.paraphrased()}
    named |= {"retain": retain, "retain unseen": retain.paraphrased()}
    return {name: corpus for name, corpus in named.items() if corpus is not None}


class _Run:
    """Rows and examples as they are measured."""

    def __init__(
        self, lm: LM, gold: LM | None, corpora: dict[str, Corpus], metrics: Sequence[Metric], batch_size: int, seed: int
    ) -> None:
        self.lm, self.gold, self.corpora, self.metrics = lm, gold, corpora, metrics
        self.batch_size, self.seed = batch_size, seed
        self.units = {name: subjects_of(corpus) for name, corpus in corpora.items()}
        self.rows: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []

    def full(self, name: str, scope: str, strength: float = 1.0, model: LM | None = None, point: str = "full") -> None:
        """Measure everything on the model as it is now, examples included."""
        for corpus in self.corpora:
            values = measure(
                model or self.lm, self.corpora[corpus], self.metrics, gold=self.gold, batch_size=self.batch_size
            )
            self._add(name, scope, strength, point, corpus, values)
            for metric, column in values.items():
                names = {"edit": name, "point": point, "corpus": corpus, "metric": metric}
                self.examples += example_rows(names, column, self.units[corpus])

    def edit(self, name: str, edit: Edit, strengths: Sequence[float], damage: float | None) -> None:
        """Measure an edit at full strength, over the frontier and at matched damage."""
        scope = edit.info.get("scope", "neurons")
        with edit.on(self.lm):
            self.full(name, scope)
        cheap = [metric for metric in self.metrics if metric is not kl_gold]
        for strength in strengths if edit.graded else ():
            with edit.scaled(strength).on(self.lm):
                for corpus in ("forget", "retain"):
                    values = measure(self.lm, self.corpora[corpus], cheap, batch_size=self.batch_size)
                    self._add(name, scope, strength, "frontier", corpus, values)
        if damage is not None:
            strength = match_damage(self.lm, edit, self.corpora["retain"], damage, batch_size=self.batch_size)
            with edit.scaled(strength).on(self.lm):
                self.full(name, scope, strength, point="matched")

    def _add(
        self, name: str, scope: str, strength: float, point: str, corpus: str, values: dict[str, np.ndarray]
    ) -> None:
        for metric, column in values.items():
            names = {"edit": name, "scope": scope, "strength": float(strength), "point": point, "corpus": corpus}
            self.rows.append(tidy_row({**names, "metric": metric}, column, self.units[corpus], self.seed))
