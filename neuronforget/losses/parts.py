"""Which parts of `Outputs` a loss cannot do without, so that one that is missing is said before any training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from neuronforget.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])

#: Part -> what to do where it was not given.
MISSING = {
    "retain": "this loss has a retain term: give a retain corpus, or set alpha=0 (not pdu, which has none)",
    "preferred": "this loss needs preferred answers: give preferred= (--refusals), or examples with `wrong` answers",
    "refused": "this loss refuses retain prompts too: give preferred= refusals, and a retain corpus",
    "alternates": "this loss needs answers that the model itself generates: it runs inside finetune alone",
    "reinforced": "this loss needs a reinforced model: give reinforced=finetune(lm, forget, loss=learn) (--reinforced)",
}


def asks_for(part: str) -> Callable[[F], F]:
    """Mark a loss that asks for a part whatever its settings are; one without marks is refused when it asks."""

    def mark(loss: F) -> F:
        loss.asks_for = part  # type: ignore[attr-defined]
        return loss

    return mark


def asked_by(loss: Callable[..., Any]) -> str | None:
    """Return the part that a loss is marked to ask for; marks are seen through `functools.partial`."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "asks_for", None)


def missing(part: str) -> InputError:
    """Return the error for a part that a loss asks for and that was not given."""
    return InputError(MISSING[part])
