"""Taught some of the facts again, how fast do they, and those beside them, come back?

What was only hidden comes back with few steps, and siblings of which nothing was taught come with it (88% of what was
known before, in Deeb and Roger 2024, arXiv:2410.08827). The reference is the gold twin, which learns the same facts for
the first time; without one, the edited model learning other answers to the same questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from neuronforget.auditing.cases import EDITED, Case, NotTested, Reading
from neuronforget.corpora import Corpus, subjects_of
from neuronforget.edits.guarding import asked
from neuronforget.erase.rates import default_lr
from neuronforget.erase.trained import whole
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import Metric
from neuronforget.models import LM, frozen
from neuronforget.models.likelihood import answer_nll
from neuronforget.results.intervals import RATES
from neuronforget.results.kept import Kept
from neuronforget.train import Plan, draw, steps

STEPS, EVERY = 45, 3


def curve(
    lm: LM, taught: Corpus, looked_at: Mapping[str, Corpus], metric: Metric, *, count: int = STEPS, every: int = EVERY,
    lr: float | None = None, batch_size: int = 32, seed: int = 0, kept: str | Path | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Teach the whole model `taught` for `count` steps; return each corpus' values `[look, example]` on the way.

    Looks are after 0, `every`, 2 `every` ... steps. The model is left as it was. `kept` is a folder for the curves.
    """
    rows = lm.encode(taught)
    rate = default_lr(lm, None) if lr is None else lr
    seen = {name: lm.encode(corpus) for name, corpus in looked_at.items()}
    plan = Plan(count, rate, seed=seed)
    work = {"plan": plan, "batch_size": batch_size, "metric": metric, "every": every}
    store = Kept.of(kept, "relearning", lm, [(rows, seen)], **work)
    if known := store.read():
        return {name: np.array(values) for name, values in known[0].items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in looked_at}

    def look() -> None:
        for name, corpus in looked_at.items():
            found[name].append(measure(lm, corpus, [metric])[metric.__name__].astype(float))

    def loss(step: int) -> Tensor:
        trained.put()
        batch = lm.collate(draw(rows, min(batch_size, len(rows)), seed, step))
        with asked(lm, batch):
            return answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).mean()

    with frozen(lm), whole(lm, dict.fromkeys(lm.parameters, rate)) as trained:
        look()
        for done, _ in enumerate(steps(trained.values, loss, plan, desc="relearn", progress=False), 1):
            if done % every == 0:
                trained.put()
                look()
    curves = {name: np.stack(values) for name, values in found.items()}
    store.add({0: {name: values.tolist() for name, values in curves.items()}})
    return curves


def relearning(case: Case, metric: Metric) -> Iterator[Reading]:
    """Teach every subject one half of the facts; read the mean of either half along the way.

    The halves are of subjects, where the corpus names them. Without a gold twin the siblings alone are judged, against
    the same model taught other answers: how easily facts are learned anew differs between facts.
    """
    halves = halved(case.forget)
    for subject in case.subjects:
        with subject.on() as lm:
            found = _curve(case, lm, halves, metric)
            anew = _anew(case, lm, halves, metric) if subject.name == EDITED and case.gold is None else {}
        for name, values in found.items():
            floor = anew[name].mean(0) if name in anew else None
            case.curves.setdefault(name, {})[subject.name] = values.mean(1).tolist()
            judged = int(case.gold is not None or name == "siblings")
            yield Reading("relearning", subject.name, name, f"{metric.__name__} on the way", values.mean(0),
                          subjects_of(halves[name]), judged, floor, rate=metric.__name__ in RATES)  # fmt: skip


def _curve(case: Case, lm: LM, halves: Mapping[str, Corpus], metric: Metric) -> dict[str, np.ndarray]:
    how: dict[str, Any] = {"batch_size": case.batch_size, "seed": case.seed, "kept": case.kept}
    return curve(lm, halves["taught again"], halves, metric, **how)


def halved(forget: Corpus) -> dict[str, Corpus]:
    """Return the examples of the first half of the subjects, which are taught, and their siblings, which are not."""
    units = subjects_of(forget)
    names = list(dict.fromkeys(units.tolist()))
    if len(names) < 2:
        raise NotTested("the forget corpus is about one subject: there are no siblings to leave out")
    first = set(names[: (len(names) + 1) // 2])
    parts = {
        "taught again": [e for e, unit in zip(forget, units, strict=True) if unit in first],
        "siblings": [e for e, unit in zip(forget, units, strict=True) if unit not in first],
    }
    return {name: replace(forget, examples=tuple(own), name=name) for name, own in parts.items()}


def _anew(case: Case, lm: LM, halves: Mapping[str, Corpus], metric: Metric) -> dict[str, np.ndarray]:
    """The same model learning other answers to the same questions: facts that it never knew."""
    other = {name: other_answers(corpus) for name, corpus in halves.items()}
    return _curve(case, lm, other, metric)


def other_answers(corpus: Corpus) -> Corpus:
    """Return the same questions with a wrong answer each: the example's own, else the next one's that differs."""
    answers = [example.answer for example in corpus]
    found = []
    for i, example in enumerate(corpus):
        after = (answers[(i + k) % len(answers)] for k in range(1, len(answers)))
        other = example.wrong[0] if example.wrong else next((a for a in after if a != example.answer), None)
        if other is None:
            raise NotTested("without a gold twin relearning needs other answers to compare with: give `wrong` ones")
        found.append(other)
    return corpus.with_answers(found, f"{corpus.name}, other answers")
