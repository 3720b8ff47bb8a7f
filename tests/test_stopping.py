"""Budgets: a training ends at the last values measured within it, killed and resumed or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.train import Plan, fit
from neuronforget.train.stopping import Budget, Stopping

#: Each step moves the parameter down by about the rate: what is measured rises by as much.
PLAN = Plan(steps=40, lr=0.1, weight_decay=0.0, save_every=7)


def run(budget: Budget, plan: Plan = PLAN, dies_at: int | None = None, **settings: Any) -> tuple[Tensor, Stopping, Any]:
    parameter = torch.zeros(1, requires_grad=True)
    stopping = Stopping(lambda: 2.0 - float(parameter), budget)

    def loss(step: int) -> Tensor:
        if step == dies_at:
            raise KeyboardInterrupt
        return parameter.sum() * (1 + step % 3)

    losses = fit([parameter], loss, plan, stopping=stopping, progress=False, **settings)
    return parameter.detach(), stopping, losses


def values_of(plan: Plan, steps: int) -> float:
    """The parameter after so many steps, by a run of that length without a budget."""
    short = Plan(steps, plan.lr, 0.0)
    return float(run(Budget(1e9, every=1000), short)[0])


@pytest.mark.parametrize(("every", "kept"), [(1, 5), (2, 4), (3, 3), (4, 4), (6, 0)])
def test_the_last_values_within_the_budget_are_kept(every: int, kept: int) -> None:
    at = [-values_of(PLAN, n) for n in range(1, 9)]
    budget = (at[4] + at[5]) / 2  # five steps are within it, six are not
    parameter, stopping, losses = run(Budget(budget, every=every))
    assert stopping.step == kept and float(parameter) == pytest.approx(values_of(PLAN, kept) if kept else 0.0)
    assert stopping.over and len(losses) == -(-6 // every) * every  # it stops where it is read first beyond
    assert [step for step, _ in stopping.rises] == list(range(0, len(losses) + 1, every))
    assert stopping.rises[0] == (0, 0.0) and stopping.rises[-1][1] > budget


def test_a_budget_that_is_never_used_up_changes_nothing() -> None:
    parameter, stopping, losses = run(Budget(100.0, every=9))
    assert len(losses) == 40 and stopping.step == 40 and not stopping.over
    assert float(parameter) == values_of(PLAN, 40)
    assert [step for step, _ in stopping.checks] == [0, 9, 18, 27, 36, 40]


def test_the_last_step_is_measured_too() -> None:
    parameter, stopping, _ = run(Budget(-values_of(PLAN, 39), every=13))  # 39 steps are just within
    assert stopping.step == 39 and float(parameter) == values_of(PLAN, 39)


@pytest.mark.parametrize("dies_at", [6, 8, 15, 20])
def test_a_killed_run_keeps_the_same_values(tmp_path: Path, dies_at: int) -> None:
    budget = Budget(2.05, every=3)
    whole, stopping, losses = run(budget)
    assert 18 <= stopping.step < 24
    with pytest.raises(KeyboardInterrupt):
        run(budget, dies_at=dies_at, resume=tmp_path)
    again, resumed, history = run(budget, resume=tmp_path)
    assert torch.equal(again, whole) and history == losses and resumed.checks == stopping.checks
    assert not list(tmp_path.iterdir())


def test_what_is_no_number_is_beyond_any_budget() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    stopping = Stopping(lambda: float("nan") if float(parameter) < -0.25 else 0.0, Budget(5.0, every=1))
    fit([parameter], lambda step: parameter.sum(), PLAN, stopping=stopping, progress=False)
    assert stopping.step == 2 and float(parameter.detach()) == pytest.approx(-0.2, rel=1e-3)


@pytest.mark.parametrize(
    "bad", [{"rise": -0.1}, {"rise": float("nan")}, {"rise": 1.0, "every": 0}, {"rise": 1.0, "examples": 0}]
)
def test_a_budget_that_means_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=f"Budget: {list(bad)[-1]} must be a"):
        Budget(**bad)
