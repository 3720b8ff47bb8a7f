"""How often is something claimed where nothing differs? Of models, edits and neurons that are alike in truth.

`covering.py` runs these simulations beside those of the intervals, and writes the tables.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from neuronforget import select
from neuronforget.auditing import Reading
from neuronforget.auditing.cases import EDITED, GOLD, UNTOUCHED
from neuronforget.auditing.verdicts import judge
from neuronforget.evaluation.ranking import adjusted_p
from neuronforget.metrics.tofu import forget_quality
from neuronforget.moments import Moments
from neuronforget.results.intervals import beyond_draws

#: Audited: people, questions of each, checks, and how often a model that never knew is right.
PEOPLE, QUESTIONS, CHECKS = (1, 2, 3, 4, 5, 10, 20), 12, 15
LEFT = 0.6  # of what was known, in a model of which everything should be found
GUESSED = {"guessing": (1, 9), "choice": (7, 3)}
EDITS, DRAWS = (2, 5, 10, 20), (3, 10)
LAYERS, WIDTH, CHOSEN = 2, 300, 15  # neurons of the selections
SPREAD = {"alike": 1.0, "forget thrice": 3.0}


def audits(repeats: int) -> list[dict[str, Any]]:
    """Return, by number of people, the share of audits that find something: in a model as ignorant as its twin, and in
    one that still knows `LEFT` of the answers.
    """
    rows, draw = [], np.random.default_rng(0)
    for count in PEOPLE:
        for name, law in GUESSED.items():
            row = {"people": count, "what": name}
            for column, kept in {"found": 0.0, f"found, {LEFT} left": LEFT}.items():
                made = (judge(_readings(name, law, count, draw, kept), seed) for seed in range(repeats))
                row[column] = sum(any(c.outcome in ("left", "avoided") for c in checks) for checks in made) / repeats
            rows.append(row)
    return rows


def _readings(
    name: str, law: tuple[float, float], count: int, draw: np.random.Generator, kept: float = 0.0
) -> list[Reading]:
    """Each person is as easy to guess for the edited model as another is for the twin: the two are alike in law.

    The edited model still knows the answers of a share `kept`, drawn anew for every check.
    """
    units = np.repeat(np.arange(count), QUESTIONS)
    about: dict[str, Any] = {"two_sided": True, "floor": np.full(len(units), 0.25)} if name == "choice" else {}
    made = []
    for i in range(CHECKS):
        right = {UNTOUCHED: np.ones(len(units))}
        for who in (EDITED, GOLD):
            right[who] = (draw.random(len(units)) < draw.beta(*law, size=count)[units]).astype(float)
        right[EDITED] = np.maximum(right[EDITED], draw.random(len(units)) < kept)
        probe = "asked" if i < 2 else f"probe {i}"
        made += [Reading(probe, who, "forget", f"{i}", x, units, **about) for who, x in right.items()]
    return made


def claims(repeats: int) -> list[dict[str, Any]]:
    """Return how often something is claimed of edits, draws and models that are alike in law: 0.05 is meant."""
    draw, found = np.random.default_rng(0), []
    for count in EDITS:
        hits = 0
        for seed in range(repeats):
            values = draw.normal(size=(count, 20)) + draw.normal(size=20)
            hits += min(adjusted_p(values[values.mean(1).argsort()], seed)) < 0.05
        found.append((f"of {count} equal edits one is told from the best", hits / repeats))
    for count in DRAWS:
        hits = 0
        for _ in range(repeats):
            sets = 0.3 * draw.normal(size=(count + 1, 1)) + draw.normal(size=100) + draw.normal(size=(count + 1, 100))
            _, low, high = beyond_draws(sets[0] - sets[1:])
            hits += low > 0 or high < 0
        found.append((f"a random set of neurons is told from {count} others", hits / repeats))
    for name, alike in {"questions alone": 0.0, "half of the variance authors'": 0.5}.items():
        law = partial(_ratios, alike, draw)
        hits = sum(forget_quality(law(), law()).p < 0.05 for _ in range(repeats))
        found.append((f"forget quality of two ignorant models is below .05, {name}", hits / repeats))
    return [{"claim": claim, "share": share} for claim, share in found]


def _ratios(alike: float, draw: np.random.Generator) -> np.ndarray:
    """Truth ratios of 200 questions about ten authors."""
    return alike**0.5 * np.repeat(draw.normal(size=10), 20) + (1 - alike) ** 0.5 * draw.normal(size=200)


def selections(repeats: int) -> list[dict[str, Any]]:
    """Return what `permutation_null` and `stability` say of neurons without an effect, by how the corpora vary."""
    draw, rows = torch.Generator().manual_seed(0), []
    for name, spread in SPREAD.items():
        for counts in ((10, 10), (20, 100), (100, 20)):
            some, chosen, shared, chance = 0, 0, [], []
            for seed in range(repeats):
                f, r = (_moments(torch.randn((n, LAYERS, WIDTH), generator=draw) * width)
                        for n, width in zip(counts, (spread, 1.0), strict=True))  # fmt: skip
                chosen += (of := len(select.permutation_null(f, r, seed=seed, progress=False)))
                some += of > 0
                again = select.stability(f, r, partial(select.per_layer, k=CHOSEN), resamples=10, progress=False)
                shared, chance = [*shared, again.jaccard], [*chance, again.chance]
            row: dict[str, Any] = {"spread": name, "forget, retain": "{}, {}".format(*counts)}
            row |= {"any selected": some / repeats, "neurons": chosen / repeats}
            rows.append(row | {"overlap of halves": float(np.mean(shared)), "by chance": float(np.mean(chance))})
    return rows


def _moments(effects: torch.Tensor) -> Moments:
    count = len(effects)
    fields = {"mean": effects.double().mean(0)}
    return Moments(
        fields, count, count, count, 0.0, tuple(range(LAYERS)), table={"s": -effects}, index=tuple(range(count))
    )
