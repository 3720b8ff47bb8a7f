"""Which edits differ, where many are compared: paired permutation tests, corrected for all pairs of edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuronforget.errors import InputError
from neuronforget.results import Results

FLIPS = 10_000
ALL = 13  # differences of which every pattern of signs is tried
PAIRS = 64  # of edits, whose differences are flipped at a time
SIGNS = 2**20  # that are held at a time


@dataclass(frozen=True)
class Place:
    """An edit's place: its value, the difference to the best edit, and whether that is told apart.

    `p` is of the sign-flip permutation test over subjects, `adjusted` for all pairs of edits (`adjusted_p`), since the
    best was chosen by the same numbers; NaN for the best itself. All of an edit that broke the model are NaN.
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

    Values of examples are averaged by subject first, so that phrasings of one fact count once. Edits with a value that
    is NaN come last, held against nothing. Raises InputError where fewer than two edits were measured, and where all
    are NaN.
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
    seed = results.info.get("seed", 0)
    p = [paired_p(means[edit] - means[best], seed) for edit in others]
    adjusted = adjusted_p(np.stack([means[edit] for edit in order]), seed)
    own = float(means[best].mean())
    found = [Place(best, own, 0.0, float("nan"), float("nan"))]
    for edit, raw, after in zip(others, p, adjusted, strict=True):
        value = float(means[edit].mean())
        found.append(Place(edit, value, value - own, raw, after))
    return found + [Place(edit, *[float("nan")] * 4) for edit in broken]


def paired_p(differences: np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p of a mean difference of zero, by flipping signs: all of them where there are few.

    Sums that differ by rounding alone are equal. With up to `ALL` differences every pattern of signs is tried; else
    `FLIPS` random ones, the observed one added.
    """
    if np.isnan(differences).any():
        return float("nan")
    sums = np.concatenate([np.abs(signs @ differences) for signs in _signs(len(differences), seed)])
    return _share(sums >= abs(differences.sum()) * (1 - 1e-9), len(differences))


def adjusted_p(values: np.ndarray, seed: int = 0) -> list[float]:
    """Return the p of each later row against the first, `[edit, subject]`, adjusted for all pairs of rows.

    How often the largest difference of any pair is as large, the signs of all of a subject's differences being flipped
    together; each is over the root of its sum of squares (Westfall & Young 1993; Romano & Wolf 2005,
    doi:10.1198/016214504000000539). Of two rows it is `paired_p`. Holm's correction for the comparisons with the best
    alone tells one of twenty equal edits from it in 20% of cases.
    """
    one, other = np.triu_indices(len(values), 1)
    gaps = values[other] - values[one]
    size = np.sqrt((gaps**2).sum(1))
    gaps = gaps[size > 0] / size[size > 0, None]
    parts = np.array_split(gaps, -(-len(gaps) // PAIRS) or 1)
    most = np.concatenate(
        [
            np.max([np.abs(signs @ rows.T).max(1, initial=0.0) for rows in parts], axis=0)
            for signs in _signs(values.shape[1], seed)
        ]
    )
    found = np.zeros(len(size))
    found[size > 0] = np.abs(gaps.sum(1))
    return [_share(most >= gap * (1 - 1e-9), values.shape[1]) for gap in found[: len(values) - 1]]


def _signs(count: int, seed: int) -> Iterator[np.ndarray]:
    """Every pattern of so many signs, the observed one first; where there are many, random ones, some at a time."""
    if count <= ALL:
        yield 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return
    draw, rows = np.random.default_rng(seed), max(1, SIGNS // count)
    for start in range(0, FLIPS, rows):  # together they are what one draw of all would be
        yield draw.choice((-1, 1), size=(min(rows, FLIPS - start), count))


def _share(as_large: np.ndarray, count: int) -> float:
    """The p of that: of random patterns, the observed one is added."""
    return float(as_large.mean()) if count <= ALL else float((1 + as_large.sum()) / (FLIPS + 1))
