"""Means over seeds with their intervals, and tables, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import t

SAME = 1e-12  # of the largest value: less is rounding
ALIKE = 6  # values that are all equal tell from zero: as signs alone, 2 / 2^6 = .03


def half_interval(values: Sequence[float], drawn: float = 0.0) -> float:
    """Return half the width of the 95% interval of a mean, by Student's t; of one value alone NaN.

    `drawn` is the share of one corpus that each value is of: draws that overlap vary less than corpora do, and the
    more of the corpus is left out, the less (the delete-d jackknife; Shao and Wu 1989). All of it has no interval.
    """
    if len(values) < 2 or drawn >= 1:
        return math.nan
    return float(
        t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) * math.sqrt(1 / len(values) + drawn / (1 - drawn))
    )


def middle(values: Sequence[float], drawn: float = 0.0) -> tuple[float, float]:
    """Return the mean over seeds and half its interval, for a figure: of one value alone 0, none is drawn."""
    half = half_interval(values, drawn)
    return float(np.mean(values)), 0.0 if math.isnan(half) else half


def centre(values: Sequence[float], drawn: float = 0.0) -> tuple[float, float, float]:
    """Return the mean over seeds and the ends of its interval; of one value alone they are the value."""
    mean, half = middle(values, drawn)
    return mean, mean - half, mean + half


def many(seeds: int) -> str:
    """Return how many seeds there are, in words."""
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def spans(what: str, seeds: int) -> str:
    """Return what a figure says of its intervals; of one seed there are none."""
    return f"{what}: 95% over {many(seeds)}" if seeds > 1 else f"one seed, so no {what}"


def cell(values: Sequence[float], digits: int = 2, drawn: float = 0.0) -> str:
    """Return the mean over seeds and its interval."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {half_interval(values, drawn):.{digits}f}" if len(values) > 1 else mean


def verdict(values: Sequence[float]) -> str:
    """Say whether the interval over seeds excludes zero; of values that are all equal, and few, it says nothing."""
    largest = float(np.max(np.abs(values)))
    if np.ptp(values) <= SAME * largest and (len(values) < ALIKE or largest < SAME):
        return "not told apart"
    mean, half = float(np.mean(values)), half_interval(values)
    return "lower" if mean + half < 0 else "higher" if mean - half > 0 else "not told apart"


def told(values: Sequence[float]) -> str:
    """Return a difference's mean over seeds and its interval, bold where the interval excludes zero."""
    return cell(values) if verdict(values) == "not told apart" else f"**{cell(values)}**"


def partly(name: str, found: int, seeds: int) -> str:
    """Return a row's name, with how many of the seeds have it where some do not."""
    return name if found == seeds else f"{name} ({found} of {seeds})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(text: str, summary: str) -> str:
    """Return Markdown that a reader opens."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
