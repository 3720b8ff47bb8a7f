"""What becomes of later edits when an earlier one is left out.

History is rolled back to before the edit, on copies, and the later edits are put on again. Where such an edit finds
the values it was made for, nothing of it changes. Where it does not, its `law` decides: what it "set" it sets again,
bit for bit; what it "added" it adds again, up to rounding; of anything else (a training that began at the values that
are gone) it is unknown what it would give, so the request is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.edits.precision import Rounding, rounding
from neuronforget.errors import InputError
from neuronforget.models import LM


@dataclass(frozen=True, eq=False)
class Later:
    """A later edit as it is without the one left out: values that keep their law, those added anew, and its cost."""

    edit: Edit
    set_again: int
    added_again: int
    rounding: Rounding

    @property
    def note(self) -> str:
        """Say what became of it."""
        parts = [f"{self.set_again} of its values cover that edit's and stay as they are"] if self.set_again else []
        if self.added_again:
            cost = f"rounding moved the change by {self.rounding.error:.2g} of its L2, {self.rounding.lost} values lost"
            parts.append(f"{self.added_again} of its values cover that edit's and were added anew ({cost})")
        return "; ".join(parts) or "its own values are as they were"


def without(lm: LM, edits: Sequence[Edit], requests: Sequence[str]) -> tuple[Edit, list[Later]]:
    """Leave out the first of `edits`, which are on the model in this order; the model is left as it is.

    Returns the edit that is to be undone on the model, and the later edits as they are then. Raises InputError
    where the model is not as the edits left it, and where a later edit cannot be put on other values.
    """
    names = {change.name for change in edits[0].changes}
    now = {name: p.detach().clone() for name, p in lm.parameters.items() if name in names}
    values: dict[str, Tensor | None] = {name: now[name].clone() if name in now else None for name in names}
    for edit in reversed(edits):
        for change in reversed(edit.changes):
            if change.name in values:
                values[change.name] = _put(change, values[change.name], change.after, change.before)
    later = []
    for edit, request in zip(edits[1:], requests[1:], strict=True):
        found = Later(edit, 0, 0, Rounding())
        changes = []
        for change in edit.changes:
            if change.name in values:
                change, found = _again(change, values[change.name], found, (requests[0], request))
                values[change.name] = _put(change, values[change.name], change.before, change.after)
            changes.append(change)
        later.append(replace(found, edit=replace(edit, changes=tuple(changes))))
    return Edit(tuple(Change(name, now[name], values[name]) for name in sorted(now))), later


def _put(change: Change, value: Tensor | None, found: Tensor | None, wanted: Tensor | None) -> Tensor | None:
    """Return `value` with `wanted` where the change lies, which must hold `found` there; None: no such parameter."""
    if not _equal(None if value is None else change.read(value), found):
        raise InputError(f"{change.name} is not as the ledger left it: it was changed since, outside the ledger")
    if value is None or wanted is None:
        return None if wanted is None else wanted.clone()
    change.write(value, wanted)
    return value


def _again(change: Change, value: Tensor | None, found: Later, names: tuple[str, str]) -> tuple[Change, Later]:
    """Return the change as it is on `value`, and what that cost so far."""
    old, was = None if value is None else change.read(value).clone(), change.before
    if _equal(old, was):
        return change, found
    gone, request = names
    if change.law is None or (old is None and change.index is not None):
        raise InputError(
            f"{gone} cannot be undone alone: {request} came later, changed the same values of {change.name}, and "
            f"what it would have made of other values is unknown; undo {request} first (undo in reverse order)"
        )
    base = torch.zeros_like(change.after) if old is None else old.to(change.after.device, change.after.dtype)
    past = torch.zeros_like(base) if was is None else was.to(base.device)
    differs = base != past
    if change.law == "set":
        again = replace(change, before=old)
        return again, replace(found, set_again=found.set_again + int(differs.sum()))
    wanted = torch.where(differs, base.double() + (change.after.double() - past.double()), change.after.double())
    after = wanted.to(change.after.dtype)
    if not torch.isfinite(after).all():
        raise InputError(f"{gone} cannot be undone alone: what {request} added to {change.name} overflows without it")
    cost = found.rounding + rounding(base, wanted, after.dtype)
    added = found.added_again + int(differs.sum())
    return replace(change, before=old, after=after), replace(found, added_again=added, rounding=cost)


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Are they the same bits? (0 and -0 are not.)"""
    if one is None or other is None:
        return one is other
    a, b = (x.detach().cpu().contiguous() for x in (one, other))
    return (a.shape, a.dtype) == (b.shape, b.dtype) and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )
