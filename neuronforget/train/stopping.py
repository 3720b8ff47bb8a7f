"""Stop while the damage is small: a loss that must not rise is measured every few steps of a training.

What is kept are the last values that were measured within the budget, those of the start at first. So a run that
overshoots ends where it had not yet, to within `every` steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.runs.ranks import as_spread


@checks_kinds
@numbers(rise=">= 0", every=">= 1", examples=">= 1")
@dataclass(frozen=True)
class Budget:
    """The retain loss may rise by `rise` (nats per answer token); read after `every` steps and after the last.

    It is read on `examples` of the retain corpus, the same ones each time, drawn by the seed (None: on all).
    """

    rise: float
    every: int = 5
    examples: int | None = 256


@dataclass
class Stopping:
    """What `measure` gave at the start (step 0) and since, and the values to fall back to."""

    measure: Callable[[], float]
    budget: Budget
    checks: list[tuple[int, float]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    @property
    def step(self) -> int:
        """Steps after which the kept values were measured."""
        return [step for step, _ in self.rises if self._within(step)][-1]

    @property
    def rises(self) -> list[tuple[int, float]]:
        """(Steps done, rise since the start in nats) of every measurement."""
        return [(step, value - self.checks[0][1]) for step, value in self.checks]

    @property
    def over(self) -> bool:
        """Was the last measurement beyond the budget (or no number)?"""
        return not self._within(self.checks[-1][0])

    def begin(self, values: Sequence[Tensor]) -> None:
        """Measure the start, unless a resumed run knows it."""
        if not self.checks:
            self._add(0, values)

    def look(self, done: int, values: Sequence[Tensor], *, last: bool) -> bool:
        """Measure where it is time to, and return whether to stop; then `values` are the kept ones again."""
        if done % self.budget.every and not last:
            return False
        self._add(done, values)
        if self.over:
            self.put_back(values)
        return self.over

    @torch.no_grad()
    def put_back(self, values: Sequence[Tensor]) -> None:
        """Write the kept values over `values`."""
        for value, kept in zip(values, self.kept, strict=True):
            value.copy_(kept)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to hold."""
        return {"checks": self.checks, "kept": self.kept}

    def load(self, state: dict[str, Any], values: Sequence[Tensor]) -> None:
        """Take up what `state` returned."""
        self.checks = [(int(step), float(value)) for step, value in state["checks"]]
        self.kept = [as_spread(kept, value) for kept, value in zip(state["kept"], values, strict=True)]

    def _add(self, done: int, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            self.checks.append((done, self.measure()))
        if not self.over:
            self.kept = [value.detach().clone() for value in values]

    def _within(self, step: int) -> bool:
        return dict(self.rises)[step] <= self.budget.rise
