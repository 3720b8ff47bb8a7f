"""What a dtype keeps of an edit: a change below half a unit in the last place rounds away.

bf16 keeps 8 significant bits and fp16 11: at a weight of 0.02 half a unit is 6.1e-5 and 7.6e-6. `d` is the change
that was asked for, in float64, `s` what becomes of it when the values before and after are both stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from neuronforget.edits.changes import Change
from neuronforget.errors import InputError

#: Share of the values, and of the change's L2, that may be lost without a word.
NOTHING = 1e-3


@dataclass(frozen=True)
class Rounding:
    """Counts and squared L2 sizes of a change that is stored; `a + b` is of both."""

    asked: int = 0
    """Values that were to change, `d != 0`."""
    lost: int = 0
    """Of these, values that are stored as if nothing had been done, `s == 0`."""
    asked_squares: float = 0.0
    lost_squares: float = 0.0
    off_squares: float = 0.0
    """Sum of `(s - d)^2`, of the values that are lost and of those that are only rounded."""

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def gone(self) -> bool:
        """Is nothing left of a change that was asked for?"""
        return self.asked > 0 and self.lost == self.asked

    @property
    def matters(self) -> bool:
        """Is more lost than the odd value whose change was next to nothing?"""
        return self.lost > NOTHING * self.asked or self.share > NOTHING

    @property
    def share(self) -> float:
        """L2 of the changes that are lost over L2 of all that were asked for, 0 to 1."""
        return (self.lost_squares / self.asked_squares) ** 0.5 if self.asked_squares else 0.0

    @property
    def error(self) -> float:
        """L2 of `s - d` over L2 of `d`: what is lost, and what is only rounded."""
        return (self.off_squares / self.asked_squares) ** 0.5 if self.asked_squares else 0.0

    @property
    def info(self) -> dict[str, Any]:
        """The figures that an edit and a ledger keep."""
        return {
            "values_changed": self.asked - self.lost,
            "values_lost_to_dtype": self.lost,
            "share_lost_to_dtype": self.share,
            "rounding_error": self.error,
        }

    def words(self, dtype: torch.dtype) -> str:
        """Say how much is lost."""
        return (
            f"{self.lost} of {self.asked} changed values round away in the stored dtype, {_name(dtype)} "
            f"({self.share:.2g} of the change's L2; with rounding it is off by {self.error:.2g})"
        )


def rounded(values: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return values as `dtype` stores them. Raises InputError, which says `what`, where they are NaN or infinite."""
    found = values.to(dtype)
    if not torch.isfinite(found).all():
        raise InputError(f"{what} are NaN or infinite, as {_name(dtype)} stores them")
    return found


def rounding(before: Tensor | None, wanted: Tensor, dtype: torch.dtype) -> Rounding:
    """Count what storing `before` (None: zeros) and `wanted` in `dtype` leaves of the change between them."""
    before = torch.zeros_like(wanted) if before is None else before
    asked = wanted.detach().double() - before.detach().to(wanted.device).double()
    kept = wanted.detach().to(dtype).double() - before.detach().to(wanted.device, dtype).double()
    meant = asked != 0
    lost = meant & (kept == 0)
    squares = asked.square()
    off = float((kept - asked).square().sum())
    return Rounding(int(meant.sum()), int(lost.sum()), float(squares.sum()), float(squares[lost].sum()), off)


def rounding_of(changes: Iterable[Change], dtype: torch.dtype | None) -> Rounding:
    """Count what `dtype` (None: the changes' own) keeps of an edit's changes."""
    parts = (rounding(c.before, c.after, dtype if dtype and c.after.is_floating_point() else c.after.dtype)
             for c in changes)  # fmt: skip
    return sum(parts, Rounding())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
