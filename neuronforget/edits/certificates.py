"""Certificate: what was checked of an edit, value by value, on the model that it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch

from neuronforget.edits.changes import Change
from neuronforget.models import LM


@dataclass(frozen=True)
class Certificate:
    """What was checked: every parameter value outside the edit, and every one after it was undone.

    `training_equal`: the whole model's hash was the same before and after the edit was trained (None: not trained).
    """

    outside_values: int
    inside_values: int
    outside_equal: bool
    undone_equal: bool
    training_equal: bool | None = None

    @property
    def holds(self) -> bool:
        """Nothing outside the edit moved, undoing it restored every bit, and so did its training, if it had one."""
        return self.outside_equal and self.undone_equal and self.training_equal is not False

    def entry(self) -> dict[str, int | bool | None]:
        """Return it as plain values, whether it holds among them."""
        return {**asdict(self), "holds": self.holds}

    @property
    def touches_weights(self) -> bool:
        """Is any weight, or bias, inside the edit? Of a guard none is."""
        return self.inside_values > 0


def certify(
    lm: LM, changes: Sequence[Change], applied: AbstractContextManager[LM], training_equal: bool | None = None
) -> Certificate:
    """Enter and leave `applied`, and compare every parameter value outside `changes`, and all values afterwards."""
    start = {name: p.detach().clone() for name, p in lm.parameters.items()}
    covered = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in start.items()}
    added = 0
    for change in changes:
        if change.before is not None:
            change.write(covered[change.name], torch.ones_like(change.after, dtype=torch.bool))
        else:
            added += change.after.numel()
    with applied:
        outside = all(
            torch.equal(p[~covered[n]], start[n][~covered[n]]) for n, p in lm.model.named_parameters() if n in start
        )
    undone = dict(lm.model.named_parameters())
    same = undone.keys() == start.keys() and all(torch.equal(p, start[n]) for n, p in undone.items())
    inside = sum(int(c.sum()) for c in covered.values())
    outside_values = sum(p.numel() for p in start.values()) - inside
    return Certificate(outside_values, inside + added, outside, same, training_equal)
