"""How fast forgotten facts come back: half of the people are taught again, both halves are asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import neuronforget as nf
from neuronforget.losses import learn
from neuronforget.measuring import measure
from neuronforget.metrics import exact_match

TAUGHT, EVERY = 30, 3  # steps of relearning, and how often it is measured
RELEARNED = 0.9


def relearning(lm: nf.LM, forget: nf.Corpus) -> dict[str, list[float]]:
    """Return accuracy as the model learns half of the forget people again: on them, and on the others.

    Examples without a subject count as one person each. Where there is one person there are no others.
    """
    whose = [example.subject or example.prompt for example in forget]
    people = list(dict.fromkeys(whose))
    first = set(people[: (len(people) + 1) // 2])
    halves = {
        name: replace(forget, name=name, examples=tuple(
            e for e, person in zip(forget, whose, strict=True) if (person in first) == taught
        ))
        for name, taught in (("taught", True), ("siblings", False)) if taught or len(people) > 1
    }  # fmt: skip
    curve: dict[str, list[float]] = {"step": [], **{name: [] for name in halves}}
    steps = iter(range(TAUGHT + 1))

    def relearn(outputs: nf.losses.Outputs) -> Any:
        if (step := next(steps)) % EVERY == 0:
            curve["step"].append(step)
            for name, corpus in halves.items():
                curve[name].append(float(measure(lm, corpus, [exact_match])["exact_match"].mean()))
        return learn(outputs)

    nf.erase.finetune(lm, halves["taught"], loss=relearn, steps=TAUGHT + 1, progress=False)
    return curve


def relearned(arm: Mapping[str, Any]) -> float:
    """Return the first step at which the taught half was answered to RELEARNED; infinity where it never was."""
    steps = zip(arm["relearning"]["step"], arm["relearning"]["taught"], strict=True)
    return float(next((step for step, value in steps if value >= RELEARNED), math.inf))


def came_back(arm: Mapping[str, Any]) -> float:
    """Return the highest accuracy on the other half, of which nothing was taught, once teaching had begun."""
    return max(arm["relearning"].get("siblings", [])[1:], default=math.nan)
