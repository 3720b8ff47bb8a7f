"""From one number per example and neuron to a score: mean, standard error and contrast, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.corpora import Batch, Corpus, Encoded
from neuronforget.errors import not_finite
from neuronforget.models import LM, check_whole
from neuronforget.scores.scores import Contrast, Scores, check_contrast, contrasted

#: Measures a batch: `[example, layer, neuron]`.
Measure = Callable[[Batch], Tensor]


def encoded(lm: LM, *corpora: Corpus | None) -> list[list[Encoded]]:
    """Tokenise the corpora that are given, all of them before any work.

    Raises InputError for one that does not fit, and for a model of which this process holds only a part.
    """
    check_whole(lm)
    return [lm.encode(corpus) for corpus in corpora if corpus is not None]


def longest(lm: LM, rows: list[list[Encoded]]) -> Batch:
    """Return the example with the longest prompt, alone: what a check of the model is made on."""
    return lm.collate([max((row for part in rows for row in part), key=lambda row: row.answer_start)])


def batched(lm: LM, rows: list[list[Encoded]], batch_size: int) -> list[list[Batch]]:
    """Return the batches of each corpus, of like length, longest first."""
    return [list(lm.batches(part, batch_size)) for part in rows]


def over_examples(
    lm: LM,
    parts: list[list[Batch]],
    measure: Measure,
    *,
    name: str,
    sign: str,
    contrast: Contrast,
    progress: bool,
    info: dict[str, Any] | None = None,
) -> Scores:
    """Score every neuron by the mean of `measure` over the forget examples (against the retain examples).

    Raises InputError, before the work, for a contrast that the corpora do not allow.
    """
    counts, found = [sum(len(batch.index) for batch in part) for part in parts], []
    check_contrast(contrast, *counts)
    for which, part, count in zip(("forget", "retain"), parts, counts, strict=False):
        with tqdm(total=count, desc=f"{name} {which}", disable=not progress) as bar:
            found.append(_mean_and_error(measure, part, bar))
    (forget, error), (retain, error_r) = (*found, (None, None))[:2]
    assert forget is not None  # a corpus is never empty
    values, error = contrasted((forget, retain), contrast, (error, error_r))
    about = {"forget": {}, "retain": {} if len(parts) > 1 else None, **(info or {})}
    return Scores(values, name, sign, tuple(site.layer for site in lm.sites), error, about)


def _mean_and_error(
    measure: Measure, parts: Iterable[Batch], bar: Any
) -> tuple[Float[Tensor, "layer neuron"], Float[Tensor, "layer neuron"] | None]:
    """Mean over examples and its standard error (None for one example), by Chan's rule in fp64.

    Raises InputError for the first batch that is NaN or infinite.
    """
    n, mean, m2 = 0, torch.zeros(()), torch.zeros(())
    for batch in parts:
        values = measure(batch).detach().double().cpu()
        if not torch.isfinite(values).all():
            raise not_finite("score of a batch")
        k, part = len(values), values.mean(0)
        delta = part - mean
        m2 = m2 + ((values - part) ** 2).sum(0) + delta**2 * (n * k / (n + k))
        mean, n = mean + delta * (k / (n + k)), n + k
        bar.update(k)
    return mean, (m2 / (n - 1) / n).sqrt() if n > 1 else None
