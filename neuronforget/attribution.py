"""attribute(): recording and score in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.models import LM
from neuronforget.recording import record
from neuronforget.runs import environment
from neuronforget.scores import Scores, grad_x_act
from neuronforget.scores.scores import Score, needs


def attribute(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    score: Score = grad_x_act,
    tap: str | None = None,
    batch_size: int = 16,
    progress: bool = True,
    **settings: Any,
) -> Scores:
    """Score every neuron of the model for what it does on `forget` (against `retain`, if given).

    `score` is any function of the form of those in `neuronforget.scores`; `settings` go to it. One marked with
    `scores.runs_model` is given the model and the corpora, any other the moments of both. Raises InputError for
    corpora that share examples or do not fit the model.
    """
    if retain is not None:
        check_disjoint(forget, retain)
    corpora = [corpus for corpus in (forget, retain) if corpus is not None]
    if needs(score) == "model":
        scores = score(lm, *corpora, batch_size=batch_size, progress=progress, **settings)
        about = [{"corpus": c.name, "data": c.digest(), "model": lm.name, **environment()} for c in corpora]
    else:
        table = needs(score) == "examples"
        moments = [record(lm, c, tap=tap, batch_size=batch_size, per_example=table, progress=progress) for c in corpora]
        scores, about = score(*moments, **settings), [m.info for m in moments]
    info = dict(zip(("forget", "retain"), [*about, None], strict=False))
    return replace(scores, info={**scores.info, **info})
