"""Which edits differ, where many are compared: paired permutation tests, corrected for their number (Holm 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuronforget.errors import InputError
from neuronforget.results import Results

FLIPS = 10_000


@dataclass(frozen=True)
class Place:
    """An edit's place: its value, the difference to the best edit, and whether that is told apart.

    `p` is of the sign-flip permutation test over subjects, `adjusted` after Holm's correction for all edits that are
    compared with the best; NaN for the best itself. All of an edit that broke the model are NaN.
    """

    edit: str
    value: float
    difference: float
    p: float
    adjusted: float

    def tied(self, alpha: float = 0.05) -> bool:
        """Is it the best, or not told apart from it?"""
        return not (self.adjusted < alpha or np.isnan(self.value))


def ranked(
    results: Results,
    corpus: str = "forget",
    metric: str = "exact_match",
    point: str = "full",
    *,
    scopes: Sequence[str] = ("neurons", "full"),
    higher: bool = False,
) -> list[Place]:
    """Return the edits of some scopes from best to worst (`higher`: the highest value is), each held against the best.

    Values of examples are averaged by subject first, so that phrasings of one fact count once. A correction for the
    best having been chosen by the same numbers is not made. Edits with a value that is NaN come last, held against
    nothing. Raises InputError where fewer than two edits were measured, and where all are NaN.
    """
    scope = {row["edit"]: row["scope"] for row in results.rows}
    wanted = (corpus, metric, point)
    values: dict[str, dict[int, list[float]]] = {}
    for e in results.examples:
        if (e["corpus"], e["metric"], e["point"]) == wanted and scope.get(e["edit"]) in scopes:
            values.setdefault(e["edit"], {}).setdefault(e["unit"], []).append(e["value"])
    if len(values) < 2:
        raise InputError(f"to rank edits two of {'/'.join(scopes)} need values of {metric} on {corpus!r} at {point!r}")
    means = {edit: np.array([np.mean(own[unit]) for unit in sorted(own)]) for edit, own in values.items()}
    if len({tuple(sorted(own)) for own in values.values()}) > 1:
        raise InputError(f"the edits were not measured on the same examples of {corpus!r}")
    broken = [edit for edit, own in means.items() if np.isnan(own).any()]
    order = sorted(
        means.keys() - set(broken), key=lambda edit: (float(means[edit].mean()) * (-1 if higher else 1), edit)
    )
    if not order:
        raise InputError(f"every edit has values of {metric} on {corpus!r} that are NaN")
    best, others = order[0], order[1:]
    p = [paired_p(means[edit] - means[best], results.info.get("seed", 0)) for edit in others]
    adjusted = holm(p)
    own = float(means[best].mean())
    found = [Place(best, own, 0.0, float("nan"), float("nan"))]
    for edit, raw, after in zip(others, p, adjusted, strict=True):
        value = float(means[edit].mean())
        found.append(Place(edit, value, value - own, raw, after))
    return found + [Place(edit, *[float("nan")] * 4) for edit in broken]


def paired_p(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p of a mean difference of zero, by flipping signs: all of them where there are few.

    Sums that differ by rounding alone are equal. With up to 13 differences every pattern of signs is tried; else
    `FLIPS` random ones, the observed one added.
    """
    n, observed = len(differences), abs(differences.sum()) * (1 - 1e-9)
    if np.isnan(differences).any():
        return float("nan")
    if n <= 13:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ differences) >= observed))
    signs = np.random.default_rng(seed).choice((-1, 1), size=(FLIPS, n))
    return float((1 + np.sum(np.abs(signs @ differences) >= observed)) / (FLIPS + 1))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction: those below alpha hold together at that error."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, highest = [0.0] * len(p), 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - step) * p[i]))
        found[i] = highest
    return found
