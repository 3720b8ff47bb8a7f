"""How fast forgotten facts come back: half of the people are taught again, both halves are asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import neuronforget as nf
from neuronforget.auditing.cases import NotTested
from neuronforget.auditing.relearning import curve, halved
from neuronforget.metrics import exact_match

TAUGHT, EVERY = 30, 3  # steps of relearning, and how often it is measured
RELEARNED = 0.9


def relearning(lm: nf.LM, forget: nf.Corpus) -> dict[str, list[float]]:
    """Return accuracy as the model, a guard on it left on, learns half of the forget people again: both halves'.

    Examples without a subject count as one person each; where there is one person there are no others.
    """
    try:
        halves = halved(forget)
    except NotTested:
        halves = {"taught again": forget}
    curves = curve(lm, halves["taught again"], halves, exact_match, count=TAUGHT, every=EVERY)
    steps = [EVERY * i for i in range(len(curves["taught again"]))]
    return {"step": steps, **{name.split()[0]: values.mean(1).tolist() for name, values in curves.items()}}


def relearned(arm: Mapping[str, Any]) -> float:
    """Return the first step at which the taught half was answered to RELEARNED; infinity where it never was."""
    steps = zip(arm["relearning"]["step"], arm["relearning"]["taught"], strict=True)
    return float(next((step for step, value in steps if value >= RELEARNED), math.inf))


def came_back(arm: Mapping[str, Any]) -> float:
    """Return the highest accuracy on the other half, of which nothing was taught, once teaching had begun."""
    return max(arm["relearning"].get("siblings", [])[1:], default=math.nan)
