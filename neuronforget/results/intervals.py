"""Intervals by resampling whole units: of a mean, of a paired difference, and what the units are."""

from __future__ import annotations

import numpy as np

from neuronforget.errors import InputError

RESAMPLES = 1000
VERDICT_RESAMPLES = 10_000  # corrected for many comparisons, an interval ends at the outermost of them
DRAWN = 1_000_000  # units drawn at a time: all at once, ten thousand samples of many examples fill the memory
RATES = ("exact_match", "token_accuracy", "extraction_strength", "probability")  # metrics that lie from 0 to 1
FEWEST = 5  # subjects from which on they are what is resampled


def bootstrap(
    values: np.ndarray, seed: int, *, units: np.ndarray | None = None, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float, float]:
    """Return (mean, low, high): percentile bootstrap (95%, or `level`) over the examples that are not NaN.

    `units` numbers each example's subject: phrasings of one fact, facts of one person stand and fall together, so
    whole subjects are drawn. One unit alone has no interval (NaN), and of few units it is too narrow (`difference`).
    """
    if np.isnan(values).all():
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(
        resampled(values, seed, units=units, resamples=resamples), [(1 - level) / 2, (1 + level) / 2]
    )
    return mean(values), float(low), float(high)


def of_rate(values: np.ndarray, seed: int, *, units: np.ndarray) -> tuple[float, float, float]:
    """Return (mean, low, high) of values from 0 to 1: `bootstrap`, and where all are 0, or all 1, the exact interval.

    Of a mean above 1 - 0.025^(1/n) n units are all 0 less than 2.5% of the time (Clopper & Pearson 1934,
    doi:10.1093/biomet/26.4.404).
    """
    value, low, high = bootstrap(values, seed, units=units)
    if low == high and value in (0.0, 1.0):
        most = 1 - 0.025 ** (1 / len(np.unique(units[~np.isnan(values)])))
        return (value, 0.0, most) if value == 0 else (value, 1 - most, 1.0)
    return value, low, high


def difference(
    values: np.ndarray,
    seed: int,
    *,
    units: np.ndarray | None = None,
    level: float = 0.95,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float, float]:
    """Return (mean, low, high) of paired differences: what verdicts go by, `bootstrap` stretched for few units.

    Of five subjects the bootstrap's 95% interval holds the truth 83% of the time (`benchmarks/covering.py`). Its ends
    are moved away from the mean by Student's quantile over the normal one, and sqrt(n / (n - 1)), n the number of units
    (as Hesterberg 2015, arXiv:1411.5279, moves the quantiles): 1.6 times for five units, 1.04 for fifty, at 95%. Of
    fewer than `FEWEST` units, which may agree by chance, it reaches as far as that over the examples too; one alone has
    none (NaN). Ends beyond what the truth can be, `within`, are put there, which takes no truth out of the interval
    (bounded parameters: Mandelkern 2002, doi:10.1214/ss/1030550859).
    """
    value, low, high = _stretched(values, seed, units, level)
    if units is not None and _count(values, units) < FEWEST:
        _, *ends = _stretched(values, seed, None, level)
        low, high = min(low, ends[0]), max(high, ends[1])
    return value, float(np.clip(low, *within)), float(np.clip(high, *within))


def _stretched(values: np.ndarray, seed: int, units: np.ndarray | None, level: float) -> tuple[float, float, float]:
    from scipy.stats import norm, t

    value, *ends = bootstrap(values, seed, units=units, resamples=VERDICT_RESAMPLES, level=level)
    count, tail = _count(values, units), (1 + level) / 2
    if count < 2:
        return value, ends[0], ends[1]
    stretch = float(t.ppf(tail, count - 1) / norm.ppf(tail)) * (count / (count - 1)) ** 0.5
    low, high = (value + stretch * (end - value) for end in ends)
    return value, low, high


def _count(values: np.ndarray, units: np.ndarray | None) -> int:
    """How many units have a value."""
    known = ~np.isnan(values)
    return int(known.sum()) if units is None else len(np.unique(units[known]))


def of_auc(
    value: float, positive: float, negative: float, level: float = 0.95, *, error: float = 0.0
) -> tuple[float, float]:
    """Return (low, high) of an AUC, the share of pairs in which the positive one of them scores higher.

    Newcombe's method 5 (2006, doi:10.1002/sim.2324): the AUCs from which `value` is no farther than their own standard
    error allows, by Hanley & McNeil's variance. Unlike a bootstrap it holds the truth near 0 and 1 too
    (`benchmarks/covering.py`). NaN for NaN, and where a side has one member alone.

    That variance is of sides that differ by a shift. Where some members are found and the others not at all it is too
    small: with DeLong's standard `error` an end lies at least as far out as Student's interval of the logit has it
    (n - 1 degrees of freedom, n of the smaller side).
    """
    from scipy.optimize import brentq
    from scipy.special import expit, logit
    from scipy.stats import norm, t

    if np.isnan(value) or min(positive, negative) < 2:
        return float("nan"), float("nan")
    z, more, pairs = float(norm.ppf((1 + level) / 2)), (positive + negative) / 2 - 1, positive * negative

    def gap(at: float, found: float) -> float:
        variance = at * (1 - at) / pairs * (1 + more * (1 - at) / (2 - at) + more * at / (1 + at))
        return found - at - z * variance**0.5

    def least(found: float) -> float:
        return brentq(gap, 0.0, min(found, 1 - 1e-9), args=(found,)) if found > 0 else 0.0

    low, high = least(value), 1 - least(1 - value)
    if error > 0 and 0 < value < 1:
        half = float(t.ppf((1 + level) / 2, min(positive, negative) - 1)) * error / (value * (1 - value))
        low, high = min(low, float(expit(logit(value) - half))), max(high, float(expit(logit(value) + half)))
    return low, high


def resampled(
    values: np.ndarray, seed: int, *, units: np.ndarray | None = None, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the mean of each bootstrap sample, of values that are not NaN; NaN where there is one unit alone.

    One seed draws the same units whatever the values are, so that functions of several means can be resampled.
    """
    check_seed(seed)
    known = ~np.isnan(values)
    _, place = np.unique(np.arange(len(known))[known] if units is None else units[known], return_inverse=True)
    sums, counts = np.bincount(place, values[known]), np.bincount(place)
    if len(sums) < 2:
        return np.full(resamples, np.nan)
    generator, together, found = np.random.default_rng(seed), max(1, DRAWN // len(sums)), np.empty(resamples)
    for start in range(0, resamples, together):
        draws = generator.integers(len(sums), size=(len(found[start : start + together]), len(sums)))
        found[start : start + together] = sums[draws].sum(1) / counts[draws].sum(1)
    return found


def worth(values: np.ndarray, units: np.ndarray) -> float:
    """Return how many values, each of a subject of its own, would give so sure a mean as these; at most all of them.

    The variance of the mean by text over that by subject, as it is for the two sides of an AUC (Obuchowski 1997,
    doi:10.2307/2533958). All of them where subjects are fewer than `FEWEST`; of equal values, as many as subjects.
    """
    units, kind = over(units)
    _, place = np.unique(units, return_inverse=True)
    count, gaps = int(place.max()) + 1, values - values.mean()
    if kind == "examples" or count == len(values):
        return len(values)
    alone, together = float((gaps**2).sum()), float((np.bincount(place, gaps) ** 2).sum()) * count / (count - 1)
    if alone <= 0:
        return count
    return max(len(values) * min(1.0, alone * len(values) / (len(values) - 1) / max(together, 1e-300)), 2.0)


def over(units: np.ndarray) -> tuple[np.ndarray, str]:
    """Return what to resample and its name: the subjects, or the examples where there are fewer than `FEWEST` subjects.

    Examples of one subject stand and fall together, so that intervals over them are too narrow for other subjects.
    """
    if len(np.unique(units)) >= FEWEST:
        return units, "subjects"
    return np.arange(len(units)), "examples"


def beyond_draws(gaps: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return (mean, low, high) of a difference to random draws, `[draw, unit]`: zero inside for one more such draw.

    Student's prediction interval: the variance over units, of the mean over draws, and that of one draw, (1 + 1/D)
    times the variance between D of them, with one degree of freedom fewer than the fewer of both are (Satterthwaite's
    would be more, and call 11% of random sets of neurons no random ones after three draws, where these call 3%). Units
    with a NaN are left out. Of one draw, or one unit, there is no interval (NaN).
    """
    from scipy.stats import t

    gaps = gaps[:, ~np.isnan(gaps).any(0)]
    draws, units = gaps.shape
    if not units:
        return float("nan"), float("nan"), float("nan")
    value = float(gaps.mean())
    if min(draws, units) < 2:
        return value, float("nan"), float("nan")
    variance = gaps.mean(0).var(ddof=1) / units + gaps.mean(1).var(ddof=1) * (1 + 1 / draws)
    half = float(t.ppf((1 + level) / 2, min(draws, units) - 1) * variance**0.5)
    return value, value - half, value + half


def mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN; NaN where none is."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def check_seed(seed: int) -> None:
    """Raise InputError for a seed below 0."""
    if seed < 0:
        raise InputError(f"seed must be 0 or more, found {seed}")
