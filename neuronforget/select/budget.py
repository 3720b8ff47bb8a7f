"""The retain budget: the largest predicted forget effect whose predicted retain damage stays under epsilon.

With `f_j` and `r_j` the predicted rise of the forget and of the retain loss (nats per answer token) when neuron j
alone is ablated, the rule solves the knapsack

    maximise sum_S f_j   subject to   sum_S r_j <= epsilon,   |S| <= k,   f_j > 0 on S.

Neurons with `f_j <= 0` are never taken. One with `r_j < 0` (its ablation is predicted to help retain) costs
nothing; only with `credit=True` does it pay for the damage of others. First-order effects do not add exactly:
measure the retain loss of the whole set (`nf.evaluate`) before believing it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores
from neuronforget.scores.scores import check_same
from neuronforget.select.ranking import how_many

HALVINGS = 200


@checks_kinds
def retain_budget(
    forget: Scores, retain: Scores, epsilon: float, *, k: int | float | None = None, credit: bool = False
) -> Neurons:
    """Select the neurons with the largest predicted forget effect at a predicted retain damage up to `epsilon`.

    Both scores are first-order or exact loss changes on one corpus each, not contrasts (`grad_x_act(moments)` of
    forget, and of retain). `k` bounds the count (below 1: a share of all neurons): without it every neuron that is
    predicted to help retain is taken, a quarter of the model where scores are noise. `info` holds the predicted
    `effect`, the `damage` charged to epsilon, the signed `retain change`, and `gap`: by what share of its upper bound
    the effect may at most fall short of the best set's. Raises InputError for scores that predict no loss change,
    and where nothing can be selected.
    """
    check_same((forget.layers, forget.values), (retain.layers, retain.values))
    for name, scores in (("forget", forget), ("retain", retain)):
        if scores.info.get("retain") is not None:
            raise InputError(f"the {name} score is a contrast of two corpora: retain_budget needs one corpus' own")
        if not (scores.sign.startswith("positive") and "ablat" in scores.sign):
            raise InputError(
                f"{scores.name!r} predicts no rise of the loss ({scores.sign}): use grad_x_act, mean_patch or exact"
            )
    if not 0 <= epsilon < math.inf:
        raise InputError(f"epsilon must be a rise of the retain loss in nats, 0 or more; found {epsilon}")
    values, signed = forget.values.flatten(), retain.values.flatten()
    costs = signed if credit else signed.clamp_min(0)
    most = values.numel() if k is None else how_many(k, values.numel())
    mask, bound = knapsack(values, costs, epsilon, most)
    if not mask.any():
        raise InputError(f"no neuron raises the forget loss within {epsilon} nats of retain damage: raise epsilon")
    effect, damage = float(values[mask].sum()), float(costs[mask].sum())
    info: dict[str, Any] = {"score": forget.name, "rule": "retain_budget", "epsilon": epsilon, "k": k, "credit": credit}
    info |= {"effect": effect, "damage": damage, "retain change": float(signed[mask].sum())}
    info |= {"gap": max(1 - effect / bound, 0.0)}
    return Neurons.from_mask(mask.view(forget.values.shape), forget.layers, **info)


def knapsack(
    values: Float[Tensor, "item"], costs: Float[Tensor, "item"], budget: float, most: int
) -> tuple[Bool[Tensor, "item"], float]:
    """Return (items, upper bound of the best total value) for at most `most` items of positive value in a budget.

    Lagrangian relaxation: the `most` best of `value - price * cost` at the lowest price that the budget allows
    (without a bound on the count: greedy by value per cost), then whatever still fits, best first. The bound is
    `min over prices of the relaxed value`, which no feasible set exceeds; costs may be negative.
    """
    costs = costs.where(costs.abs() > 1e-100, 0.0)  # a ratio to a denormal cost would be infinite

    def at(price: float) -> Tensor:
        reduced = (values - price * costs).where(values > 0, -torch.inf)
        order = reduced.sort(descending=True, stable=True).indices[:most]
        return order[reduced[order] > 0]

    def relaxed(price: float, taken: Tensor) -> float:
        return float((values - price * costs)[taken].sum()) + price * budget

    def fits(taken: Tensor) -> bool:
        return float(costs[taken].sum()) <= budget

    taken = at(0.0)
    bound = relaxed(0.0, taken)
    low, high = 0.0, 0.0
    if not fits(taken):
        paying = (values > 0) & (costs > 0)
        high = 2 * float((values[paying] / costs[paying]).max()) + 1.0  # here nothing that costs is worth its price
        for _ in range(HALVINGS):
            price = (low + high) / 2
            if price in (low, high):
                break
            taken = at(price)
            bound = min(bound, relaxed(price, taken))
            low, high = (low, price) if fits(taken) else (price, high)
        taken = at(high)
        bound = min(bound, relaxed(high, taken))
    return _filled(taken, values, costs, budget, most, high), bound


def _filled(taken: Tensor, values: Tensor, costs: Tensor, budget: float, most: int, price: float) -> Tensor:
    """Add, best first, every item that still fits; take the best single item instead where it is worth more."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[taken] = True
    left, places = budget - float(costs[taken].sum()), most - len(taken)
    order = (values - price * costs).where((values > 0) & ~mask, -torch.inf).sort(descending=True, stable=True)
    rest = order.indices[order.values > -torch.inf]
    for i, cost in zip(rest.tolist(), costs[rest].tolist(), strict=True):
        if places < 1:
            break
        if cost <= left:
            mask[i], left, places = True, left - cost, places - 1
    alone = values.where((costs <= budget) & (values > 0), -torch.inf)
    if most and alone.max() > values[mask].sum():
        mask = torch.zeros_like(mask).index_fill(0, alone.argmax(), True)
    return mask
