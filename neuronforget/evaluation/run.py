"""evaluate(): what each edit did to the forget and the retain corpus, beside its references.

Methods are compared at full strength, over a frontier of strengths, and at matched damage: the strength at which the
retain loss has risen by the same amount, or the predictions on retain have moved as far. Each number has a bootstrap
interval over subjects (examples where none are named), a rate of 0 or 1 an exact one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.corpora import Corpus, check_disjoint, digests_of, subjects_of
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import METRICS, Before, measure, name_of
from neuronforget.metrics import Metric, kl_gold, kl_untouched, nll
from neuronforget.models import LM
from neuronforget.results import Results, check_edit_names, example_rows, tidy_row
from neuronforget.runs import environment


@checks_kinds
@numbers(damage="> 0", divergence="> 0")
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
    divergence: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    kept: str | Path | None = None,
    progress: bool = True,
) -> Results:
    """Measure every edit on forget and retain, on their paraphrases ("unseen"), and the untouched (and gold) model.

    `gold` is the model that never knew; with it the KL from gold is measured too. `strengths` are the points
    of the frontier besides 0 and 1, `damage` the rise of the retain loss (nats per answer token) at which
    methods are matched, `divergence` the KL from the untouched model on retain (nats per answer token) at which they
    are matched too (None: not). `kept` is a folder for what is measured: nothing is measured twice, and a run that was
    killed loses one batch at most. The model is left as it was. Raises InputError for corpora that share examples and
    for edits that do not fit the model.
    """
    check_disjoint(forget, retain)
    check_edit_names(edits)
    check_references(lm, gold)
    if gold is not None:
        metrics = (*metrics, kl_gold)
    names = [name_of(metric) for metric in metrics]
    if again := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two metrics are called {min(again)!r}: give each function a name of its own")
    budgets = {"matched": damage, "matched KL": divergence}
    run = _Run(lm, gold, _corpora(forget, retain), metrics, budgets, batch_size, seed, kept)
    run.all(edits, strengths, progress)
    dtype = next(iter(lm.parameters.values())).dtype
    info: dict[str, Any] = {"model": lm.name, "device": str(lm.device), "dtype": str(dtype)}
    info |= {"shape": list(lm.shape), "seed": seed, "damage_budget": damage, "divergence_budget": divergence}
    parts = {"forget": forget, "retain": retain}
    info |= {"data": digests_of(parts.values())}
    info |= {"corpora": {role: {"name": c.name, "digest": c.digest()} for role, c in parts.items()}}
    info |= {"edits": {name: _made(edit) for name, edit in edits.items()}}
    return Results(tuple(run.rows), tuple(run.examples), {**info, "versions": environment()})


def check_references(lm: LM, gold: LM | None) -> None:
    """Raise InputError if `gold` cannot be compared token by token, or is `lm`."""
    if gold is not None and gold.model is lm.model:
        raise InputError("gold is the model itself, which an edit changes with it: load a copy, or leave gold= out")
    sizes = [model.model.get_output_embeddings().weight.shape[0] for model in (lm, gold or lm)]
    if sizes[0] != sizes[1]:
        raise InputError(f"gold is of another vocabulary: {sizes[1]} tokens, the model has {sizes[0]}")


@checks_kinds
def match_damage(
    lm: LM,
    edit: Edit,
    retain: Corpus,
    damage: float,
    *,
    before: Before | None = None,
    batch_size: int = 128,
    tolerance: float = 0.1,
    halvings: int = 8,
    kept: str | Path | None = None,
) -> float:
    """Return the strength (at most 1) at which the retain loss has risen by `damage` nats per answer token.

    With `before` it is the KL from what the untouched model predicts that has come to `damage`. The largest strength
    that keeps within the budget, found by bisection to `tolerance` of it; 1 where the whole edit does; 0 where it does
    not and cannot be weakened.
    """
    metric = nll if before is None else kl_untouched

    def level() -> float:
        return float(
            measure(lm, retain, [metric], before=before, batch_size=batch_size, kept=kept)[metric.__name__].mean()
        )

    def rise(strength: float) -> float:
        with edit.scaled(strength).on(lm):
            return level() - start

    start = level()
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


def _corpora(forget: Corpus, retain: Corpus) -> dict[str, Corpus]:
    named = {"forget": forget, "forget unseen": forget.paraphrased()}
    named |= {"retain": retain, "retain unseen": retain.paraphrased()}
    return {name: corpus for name, corpus in named.items() if corpus is not None}


class _Run:
    """Rows and examples as they are measured."""

    def __init__(
        self,
        lm: LM,
        gold: LM | None,
        corpora: dict[str, Corpus],
        metrics: Sequence[Metric],
        budgets: dict[str, float | None],
        batch_size: int,
        seed: int,
        kept: str | Path | None,
    ) -> None:
        self.lm, self.gold, self.corpora, self.metrics = lm, gold, corpora, metrics
        self.budgets = {point: budget for point, budget in budgets.items() if budget is not None}
        self.seed = seed
        self.settings: dict[str, Any] = {"batch_size": batch_size, "kept": kept}
        self.units = {name: subjects_of(corpus) for name, corpus in corpora.items()}
        self.before = Before.of(lm, corpora["retain"], batch_size=batch_size) if "matched KL" in self.budgets else None
        self.rows: list[dict[str, Any]] = []
        self.examples: list[dict[str, Any]] = []

    def all(self, edits: Mapping[str, Edit], strengths: Sequence[float], progress: bool) -> None:
        """Measure the references, then one edit after another."""
        with tqdm(total=len(edits), desc="evaluate", disable=not progress) as bar:
            self.full("untouched", "reference", 0.0)
            if self.gold is not None:
                self.full("gold", "reference", 0.0, self.gold)
            for name, edit in edits.items():
                bar.set_postfix(edit=name, refresh=False)
                self.edit(name, edit, strengths)
                bar.update()

    def full(self, name: str, scope: str, strength: float = 1.0, model: LM | None = None, point: str = "full") -> None:
        """Measure everything on the model as it is now, examples included."""
        for corpus in self.corpora:
            values = self._values(corpus, self.metrics, model)
            self._add(name, scope, strength, point, corpus, values)
            for metric, column in values.items():
                names = {"edit": name, "point": point, "corpus": corpus, "metric": metric}
                self.examples += example_rows(names, column, self.units[corpus])

    def edit(self, name: str, edit: Edit, strengths: Sequence[float]) -> None:
        """Measure an edit at full strength, over the frontier and at matched damage."""
        scope = edit.info.get("scope", "neurons")
        with edit.on(self.lm):
            self.full(name, scope)
        cheap = [metric for metric in self.metrics if metric is not kl_gold]
        for strength in strengths if edit.graded else ():
            with edit.scaled(strength).on(self.lm):
                for corpus in ("forget", "retain"):
                    self._add(name, scope, strength, "frontier", corpus, self._values(corpus, cheap))
        for point, budget in self.budgets.items():
            before = self.before if point == "matched KL" else None
            strength = match_damage(self.lm, edit, self.corpora["retain"], budget, before=before, **self.settings)
            with edit.scaled(strength).on(self.lm):
                self.full(name, scope, strength, point=point)

    def _values(self, corpus: str, metrics: Sequence[Metric], model: LM | None = None) -> dict[str, np.ndarray]:
        before = self.before if corpus == "retain" else None
        metrics = [*metrics, kl_untouched] if before is not None else metrics
        return measure(
            model or self.lm, self.corpora[corpus], metrics,
            gold=self.gold if kl_gold in metrics else None, before=before, **self.settings,
        )  # fmt: skip

    def _add(
        self, name: str, scope: str, strength: float, point: str, corpus: str, values: dict[str, np.ndarray]
    ) -> None:
        for metric, column in values.items():
            names = {"edit": name, "scope": scope, "strength": float(strength), "point": point, "corpus": corpus}
            self.rows.append(tidy_row({**names, "metric": metric}, column, self.units[corpus], self.seed))
