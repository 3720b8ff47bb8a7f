"""The numbers of `tofu_study.py`, from a run of the suite: values with intervals where authors are enough for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import hmean

import neuronforget as nf
from neuronforget.metrics.tofu import SCORES
from neuronforget.results.intervals import FEWEST, resampled

#: Corpus and metric of the suite's rows, by the names of the tables.
NUMBERS = {
    "model utility": ("all", "model_utility"), "forget quality": ("forget", "forget_quality_p"),
    "KS": ("forget", "forget_quality_ks"), "forget probability": ("forget", "probability"),
    "forget ROUGE": ("forget", "rouge"), "forget truth ratio": ("forget", "truth_ratio"),
    "retain probability": ("retain", "probability"), "retain ROUGE": ("retain", "rouge"),
    "retain truth ratio": ("retain", "truth_ratio"),
    "words": ("forget", "words"),
}  # fmt: skip


def numbers_of(found: nf.Results, seed: int) -> dict[str, list[float]]:
    """Return name -> [value, low, high] of the model that was asked."""
    rows = {(row["corpus"], row["metric"]): row for row in found.rows if row["edit"] == "model"}
    values = {name: shown(rows[key]) for name, key in NUMBERS.items()}
    return {**values, "retain utility": retain_utility(found, seed)}


def shown(row: Mapping[str, Any]) -> list[float]:
    """Return [value, low, high] of a row; no interval over fewer than five authors."""
    ends = [row["low"], row["high"]] if row["units"] >= FEWEST else [math.nan, math.nan]
    return [row["value"], *ends]


def retain_utility(found: nf.Results, seed: int) -> list[float]:
    """Return the harmonic mean of retain's three numbers: utility without real facts, which no small model knows."""
    means, drawn = [], []
    for metric in SCORES:
        wanted = ("model", "retain", metric)
        rows = [row for row in found.examples if (row["edit"], row["corpus"], row["metric"]) == wanted]
        values, units = (np.array([row[key] for row in rows]) for key in ("value", "unit"))
        means.append(values.mean())
        drawn.append(resampled(values, seed, units=units))
    low, high = np.quantile(hmean(drawn), [0.025, 0.975])
    return shown({"value": float(hmean(means)), "low": float(low), "high": float(high), "units": len(set(units))})
