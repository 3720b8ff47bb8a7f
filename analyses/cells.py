"""Means over seeds with their intervals, and tables, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import t


def half_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95% interval of a mean, by Student's t; of one value alone NaN."""
    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean over seeds and its interval."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {half_interval(values):.{digits}f}" if len(values) > 1 else mean


def verdict(values: Sequence[float]) -> str:
    """Say whether the interval over seeds excludes zero."""
    mean, half = float(np.mean(values)), half_interval(values)
    return "lower" if mean + half < 0 else "higher" if mean - half > 0 else "not told apart"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(text: str, summary: str) -> str:
    """Return Markdown that a reader opens."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"
