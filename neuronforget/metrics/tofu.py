"""TOFU's formulas (Maini et al. 2024, arXiv:2401.06121), from the mean loss per token of each answer to two verdicts.

A row has the loss of its answer, of one paraphrase of it, and of several wrong answers (all nats per token, >= 0).
The truth ratio has two forms, and published tables hold the second: "paper" is what the paper writes,
`mean_i P(wrong_i) / P(paraphrase)`, high where falsehood is preferred; "legacy" is what the authors' scripts compute,
`exp(mean_i loss(wrong_i) - loss(paraphrase))`, high where the truth is preferred, with a geometric mean inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from neuronforget.errors import InputError

Form = Literal["legacy", "paper"]
SETS = ("retain", "forget", "real_authors", "real_world")
SCORES = ("probability", "rouge", "truth_ratio")
#: The nine numbers of the model utility: the forget set has no part in it.
NINE = tuple(f"{name}_{score}" for name in SETS if name != "forget" for score in SCORES)


class ForgetQuality(NamedTuple):
    """Kolmogorov-Smirnov test between two models' truth ratios: its p-value (falls with n) and its statistic."""

    p: float
    ks: float


def probability(loss: Float[ndarray, "row"]) -> Float[ndarray, "row"]:
    """Return exp(-loss), the length-normalised probability of each answer."""
    return np.exp(-loss)


def choice_probability(loss: Float[ndarray, "row"], wrong: Float[ndarray, "row answer"]) -> Float[ndarray, "row"]:
    """Return P(answer) / (P(answer) + sum_i P(wrong_i)): the probability on real authors and world facts."""
    return 1 / (1 + np.exp(np.minimum(loss[:, None] - wrong, 700)).sum(1))  # beyond 700, exp overflows


def truth_ratio(
    paraphrase: Float[ndarray, "row"], wrong: Float[ndarray, "row answer"], form: Form = "legacy"
) -> Float[ndarray, "row"]:
    """Return each row's truth ratio in the form asked for; the two forms point in opposite directions (see above)."""
    preference = np.clip(truth_preference(paraphrase, wrong, form), -700, 700)  # exp neither overflows nor is 0
    return np.exp(preference if form == "legacy" else -preference)


def truth_preference(
    paraphrase: Float[ndarray, "row"], wrong: Float[ndarray, "row answer"], form: Form = "legacy"
) -> Float[ndarray, "row"]:
    """Return how far the paraphrase is preferred to the wrong answers: log of the ratio, above 0 for the truth."""
    if form == "legacy":
        return wrong.mean(1) - paraphrase
    if form != "paper":
        raise InputError(f"the truth ratio has the forms 'legacy' and 'paper', not {form!r}")
    return -np.logaddexp.reduce(-wrong, axis=1) + np.log(wrong.shape[1]) - paraphrase


def truth_score(
    paraphrase: Float[ndarray, "row"], wrong: Float[ndarray, "row answer"], *, forget: bool, form: Form = "legacy"
) -> Float[ndarray, "row"]:
    """Return what the tables call the truth ratio, 0 to 1, from R, falsehood over truth.

    On the forget set min(R, 1/R), 1 where the model does not prefer either; elsewhere max(0, 1 - R), 1 where it
    prefers the truth.
    """
    preference = truth_preference(paraphrase, wrong, form)
    return np.exp(-np.abs(preference)) if forget else -np.expm1(-np.maximum(preference, 0))


def model_utility(parts: Mapping[str, float | ndarray]) -> float | ndarray:
    """Return the harmonic mean of the nine numbers by name (`NINE`): 0 if one is. Raises InputError if one lacks."""
    from scipy.stats import hmean

    if lacking := [name for name in NINE if name not in parts]:
        raise InputError(f"model utility needs nine numbers, of which {lacking[0]!r} is not given")
    return hmean(np.stack([parts[name] for name in NINE]), axis=0)


def forget_quality(ratios: Float[ndarray, "row"], retain_only: Float[ndarray, "other"]) -> ForgetQuality:
    """Compare a model's truth ratios on the forget set with those of a model that never saw it."""
    from scipy.stats import ks_2samp

    found = ks_2samp(ratios, retain_only)
    return ForgetQuality(float(found.pvalue), float(found.statistic))
