"""attribute(): recording and score in one call."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from neuronforget.arguments import check_settings, checks_kinds
from neuronforget.corpora import Corpus, Source, disjoint
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.sites import expert_info
from neuronforget.recording import record
from neuronforget.recording.unfinished import Unfinished
from neuronforget.runs import environment
from neuronforget.runs.ranks import launched
from neuronforget.scores import Scores, grad_x_act
from neuronforget.scores.scores import Score, check_compared, needs

#: Settings that `attribute` itself has, and hands on.
GIVEN = ("batch_size", "progress", "resume")


@checks_kinds
def attribute(
    lm: LM,
    forget: Source,
    retain: Source | None = None,
    *,
    score: Score = grad_x_act,
    tap: str | None = None,
    batch_size: int = 16,
    resume: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Scores:
    """Score every neuron of the model for what it does on `forget` (against `retain`, if given).

    `score` is any function of the form of those in `neuronforget.scores`; `settings` go to it. One marked with
    `scores.runs_model` is given the model and the corpora, any other the moments of both. `resume` is a folder
    from which a killed recording goes on (see `record`); it goes to a score that runs the model if that has a
    setting of the name. Raises InputError, before any work, for settings that the score has not, for a missing
    `retain` where it compares two corpora, for corpora that share examples or do not fit the model, and for a stream
    where a score runs the model.
    """
    check_score(score, forget, retain, settings)
    pair = disjoint(forget, retain) if retain is not None else (forget,)
    for source in pair:  # what does not fit the model is said before the work, not after half of it
        if isinstance(source, Corpus):
            lm.encode(source)
    if needs(score) == "model":
        whole = [_whole(source, score) for source in pair]
        if resume is not None:
            settings["resume"] = _resumable(score, resume)
        scores = _checked(score(lm, *whole, batch_size=batch_size, progress=progress, **settings), score, lm)
        about = [
            {"corpus": c.name, "data": c.digest(), "model": lm.name, **expert_info(lm.model, lm.sites), **environment()}
            for c in whole
        ]
    else:
        table = needs(score) == "examples"
        kept = [Unfinished(resume, label) if resume is not None else None for label in ("forget", "retain")]
        moments = [
            record(lm, source, tap=tap, batch_size=batch_size, per_example=table, resume=unfinished, progress=progress)
            for source, unfinished in zip(pair, kept, strict=False)
        ]
        scores, about = _checked(score(*moments, **settings), score, lm), [m.info for m in moments]
        for unfinished in kept:
            if unfinished is not None:
                unfinished.clear(launched(next(lm.model.parameters()).device))
    info = dict(zip(("forget", "retain"), [*about, None], strict=False))
    return replace(scores, info={**scores.info, **info})


def check_score(score: Score, forget: Source | str, retain: Source | str | None, settings: dict[str, Any]) -> None:
    """Raise InputError, before any work, for a score that cannot be called so, or needs more than these corpora.

    A corpus that is not read yet may be given by its name.
    """
    _check_call(score, 1 if retain is None else 2, settings)
    check_compared(score, settings, forget, retain)


def _check_call(score: Score, corpora: int, settings: dict[str, Any]) -> None:
    """Raise InputError for a setting that the score has not, one of another kind, and for what is called otherwise."""
    runs, function, places = needs(score) == "model", score, corpora
    if isinstance(score, partial):
        function, places, settings = score.func, places + len(score.args), {**score.keywords, **settings}
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function without a signature
        return
    wanted = signature.parameters
    own = [name for name, p in wanted.items() if p.kind is p.KEYWORD_ONLY and name not in GIVEN]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    for name in settings:
        if name not in wanted and not open_ended:
            raise InputError(f"{_name(score)} has no setting {name!r}; it has {', '.join(own) or 'none'}")
    check_settings(function, settings)
    try:
        signature.bind(*range(places + runs), **{**settings, **(dict.fromkeys(GIVEN[:2]) if runs else {})})
    except TypeError as error:
        raise InputError(f"{_name(score)} cannot be called as scores are: {error}") from None


def _checked(scores: Any, score: Score, lm: LM) -> Scores:
    """A score of one's own may return anything: what is no score of each neuron of this model is said here."""
    if not isinstance(scores, Scores):
        raise InputError(f"{_name(score)} must return Scores, found {type(scores).__name__}")
    layers = tuple(site.layer for site in lm.sites)
    if (tuple(scores.values.shape), scores.layers) != (lm.shape, layers):
        raise InputError(
            f"{_name(score)} must score {lm.shape[1]} neurons of each of the layers {layers}, found {scores!r}"
        )
    return scores


def _whole(source: Source, score: Score) -> Corpus:
    if isinstance(source, Corpus):
        return source
    raise InputError(
        f"{_name(score)} runs the model over whole corpora, found the stream {source.name!r}: give .head(n)"
    )


def _resumable(score: Score, resume: str | Path) -> str | Path:
    if "resume" in inspect.signature(score).parameters:
        return resume
    raise InputError(f"{_name(score)} runs the model itself and cannot be resumed: leave out resume=")


def _name(score: Score) -> str:
    return f"score {getattr(getattr(score, 'func', score), '__name__', score)!r}"
