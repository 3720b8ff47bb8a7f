"""attribute(): recording and score in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.recording import record
from neuronforget.scores import Scores, grad_x_act

#: A score reads the moments of the forget corpus and, for a contrast, of the retain corpus.
Score = Callable[..., Scores]


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

    `score` is any function of the form of those in `neuronforget.scores`; `settings` go to it. Raises
    InputError for corpora that share examples or do not fit the model.
    """
    if retain is not None:
        check_disjoint(forget, retain)
    corpora = [corpus for corpus in (forget, retain) if corpus is not None]
    moments: list[Moments] = [
        record(lm, corpus, tap=tap, batch_size=batch_size, progress=progress) for corpus in corpora
    ]
    scores = score(*moments, **settings)
    info = {"forget": moments[0].info, "retain": moments[1].info if retain is not None else None}
    return replace(scores, info={**scores.info, **info})
