"""Is the localisation right, by its use? Ablate what a ranking puts first, or all but that, beside random neurons.

What is measured is the caller's: any function from the model, as it then is, to one number per example. Intervals of
levels are 95% bootstrap intervals over examples. Those of a difference to random neurons are paired, and hold zero
where one more random draw would do as much (`intervals.beyond_draws`): three draws say little of a fourth, ten more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget import select
from neuronforget.arguments import checks_kinds
from neuronforget.erase import ablate
from neuronforget.errors import InputError
from neuronforget.metrics.localisation import Interval, counts, layers_of
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.results.intervals import beyond_draws, bootstrap, mean
from neuronforget.scores import Scores

#: From a model to one number per example: `lambda lm: measure(lm, forget, [nll])["nll"]`.
Measure = Callable[[LM], np.ndarray]


@dataclass(frozen=True, eq=False)
class Curve:
    """What a measure does as more of a ranking's top is ablated ("knock_out") or kept alone ("keep_only").

    `values` is [k, example], `control` [control, k, example]: as many random neurons of each layer. `ks` start
    at 0 and `total` is the number of neurons.
    """

    kind: Literal["knock_out", "keep_only"]
    score: str
    ks: tuple[int, ...]
    total: int
    values: Float[np.ndarray, "k example"] = field(repr=False)
    control: Float[np.ndarray, "control k example"] = field(repr=False)
    seed: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Tidy rows: kind, order ("score" or "random"), k, value, low, high over examples, n, nan (no value)."""
        out = []
        for order, values in ((self.score, self.values), ("random", self.control.mean(0))):
            for k, column in zip(self.ks, values, strict=True):
                value, low, high = bootstrap(column, self.seed)
                row = {"kind": self.kind, "order": order, "k": k, "value": value, "low": low, "high": high}
                out.append({**row, "n": len(column), "nan": int(np.isnan(column).sum())})
        return out

    @property
    def area(self) -> Interval:
        """Area between score and random over the share of neurons: their mean distance, and `beyond_draws`'s interval.

        The controls are drawn anew at each k, so that their areas vary less than those of random rankings do.
        """
        share = np.array(self.ks) / self.total
        gap = self.values - self.control
        trapezoids = (gap[:, 1:] + gap[:, :-1]) / 2 * np.diff(share)[:, None]
        return beyond_draws(trapezoids.sum(1) / (share[-1] - share[0]))


@checks_kinds
def ablation_curve(
    lm: LM,
    scores: Scores,
    measure: Measure,
    *,
    kind: Literal["knock_out", "keep_only"] = "knock_out",
    ks: Sequence[int | float] | None = None,
    controls: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Curve:
    """Measure the model with the top k of a ranking ablated (or all but them), and random neurons in their place.

    `ks` are counts, or shares below 1 (default: halvings of the model). Each control has as many neurons of each
    layer, drawn anew at each k. The model is left as it was. Raises InputError for impossible counts, before any work.
    """
    if controls < 1:
        raise InputError(f"a curve needs a control to be compared with: controls must be 1 or more, found {controls}")
    if (scores.layers, tuple(scores.values.shape)) != (layers_of(lm), lm.shape):
        raise InputError(f"the scores are of another model: {scores!r} does not fit {lm!r}")
    total = scores.values.numel()
    sizes = (0, *counts(ks, total))
    everything = Neurons.from_mask(torch.ones_like(scores.values, dtype=torch.bool), scores.layers)
    none = everything - everything

    def at(chosen: Neurons) -> np.ndarray:
        return measured(lm, everything - chosen if kind == "keep_only" else chosen, measure)

    points, others = [], []
    for i, k in enumerate(tqdm(sizes, desc=kind.replace("_", " "), disable=not progress)):
        chosen = select.top(scores, k) if k else none
        points.append(at(chosen))
        same = k in (0, total)  # there is one way to choose none, or all
        drawn = [points[-1] if same else at(chosen.random_like(seed_of(seed, i, c))) for c in range(controls)]
        others.append(np.stack(drawn))
    return Curve(kind, scores.name, sizes, total, np.stack(points), np.stack(others, 1), seed)


@checks_kinds
def selected_minus_random(
    lm: LM,
    neurons: Neurons,
    measure: Measure,
    *,
    norms: Float[Tensor, "layer neuron"] | None = None,
    controls: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Ablate a selection and its random controls; return the difference that the selection makes beyond each kind.

    Kinds: "count" (as many anywhere), "layer" (as many of each layer), and, with `norms` [layer, neuron]
    (`recording.write_norms(lm)`), "norm" (of each layer, with like norms). Rows: control, selected, random, value
    (selected minus random), low, high (`intervals.beyond_draws`: zero lies inside where one more random set would do
    as much; NaN of one control), n, nan, controls. Of the `n` examples, `nan` have no value with the selection or with
    one of its controls; every number is a mean over the others (NaN where there is none).
    """
    if controls < 1:
        raise InputError(f"controls must be 1 or more, found {controls}")
    if not len(neurons):
        raise InputError("the set of neurons is empty: there is nothing to ablate")
    sets = _control_sets(neurons, norms, controls, seed)
    chosen, rows = measured(lm, neurons, measure), []
    with tqdm(total=controls * len(sets), desc="controls", disable=not progress) as bar:
        for kind, drawn in sets.items():
            others = []
            for control in drawn:
                others.append(measured(lm, control, measure))
                bar.update()
            rows.append({"control": kind, **_beside(chosen, np.stack(others)), "controls": controls})
    return rows


def _beside(
    chosen: Float[np.ndarray, "example"], others: Float[np.ndarray, "control example"]
) -> dict[str, float | int]:
    """The levels of a selection and of its controls, and their difference, over one and the same examples."""
    both = ~np.isnan(chosen - others).any(0)
    value, low, high = beyond_draws(chosen - others)
    found = {"selected": mean(chosen[both]), "random": mean(others[:, both]), "value": value, "low": low, "high": high}
    return {**found, "n": len(both), "nan": int((~both).sum())}


def measured(lm: LM, neurons: Neurons, measure: Measure) -> np.ndarray:
    """Return the measure with `neurons` at zero (with none: of the model as it is), fp64."""
    if not len(neurons):
        return np.asarray(measure(lm), dtype=np.float64)
    with ablate(lm, neurons).on(lm):
        return np.asarray(measure(lm), dtype=np.float64)


def _control_sets(neurons: Neurons, norms: Tensor | None, controls: int, seed: int) -> Mapping[str, list[Neurons]]:
    anywhere = [anywhere_in(neurons.mask(), neurons.layers, len(neurons), seed_of(seed, 0, c)) for c in range(controls)]
    sets = {"count": anywhere, "layer": [neurons.random_like(seed_of(seed, 1, c)) for c in range(controls)]}
    if norms is not None:
        sets["norm"] = [neurons.matched(norms, seed_of(seed, 2, c)) for c in range(controls)]
    return sets


@checks_kinds
def anywhere_in(taken: Bool[Tensor, "layer neuron"], layers: tuple[int, ...], count: int, seed: int) -> Neurons:
    """Return `count` random neurons of the whole model, those `taken` only where there are too few others."""
    noise = torch.rand(taken.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return select.top(Scores(noise.masked_fill(taken, -1.0), "random", "", layers), count)


def seed_of(*parts: int) -> int:
    """Return the seed of one draw among many: independent of those of other parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
