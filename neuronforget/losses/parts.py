"""What a loss needs, stated beside it, so that what is missing is said before any training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from neuronforget.arguments import check_settings
from neuronforget.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
Named = Literal["block", "context"]

#: Part -> what to do where it was not given.
MISSING = {
    "retain": "this loss has a retain term: give a retain corpus, or set alpha=0 (not pdu, which has none)",
    "preferred": "this loss needs preferred answers: give preferred= (--refusals), or examples with `wrong` answers",
    "refused": "this loss refuses retain prompts too: give preferred= refusals, and a retain corpus",
    "alternates": "this loss needs answers that the model itself generates: it runs inside finetune alone",
    "reinforced": "this loss needs a reinforced model: give reinforced=finetune(lm, forget, loss=learn) (--reinforced)",
    "keep": "this loss keeps a number that changes with every step's batch: give accumulate=1, in one process",
}


def asks_for(*parts: str, unless_zero: str | None = None) -> Callable[[F], F]:
    """Mark a loss that cannot do without these parts of `Outputs`, or only where a setting is not 0.

    Parts are "retain", "preferred", "reinforced", and "keep" (the number that `Outputs.keep` hands out). What is
    missing is then refused before any work; without the mark it is refused when the loss asks, at the first step.
    Raises InputError for another part.
    """
    if unknown := [part for part in parts if part not in MISSING]:
        raise InputError(f"no part of a loss is called {unknown[0]!r}: there are {', '.join(MISSING)}")

    def mark(loss: F) -> F:
        if unless_zero is not None and unless_zero not in inspect.signature(loss).parameters:
            raise InputError(f"{loss.__name__} has no setting {unless_zero!r} that could be 0")
        loss.asks_for = (*getattr(loss, "asks_for", ()), *((part, unless_zero) for part in parts))  # type: ignore
        return loss

    return mark


def names(**settings: Named) -> Callable[[F], F]:
    """Mark the settings of a loss that name a block of the model, or a context that its tokenizer has to write.

    One that is not there is then refused before any work; without the mark it is at the first step.
    """

    def mark(loss: F) -> F:
        loss.names = settings  # type: ignore[attr-defined]
        return loss

    return mark


def named_by(loss: Callable[..., Any]) -> list[tuple[Named, Any]]:
    """Return what a loss names with its settings as they are bound."""
    marks = getattr(inner(loss), "names", {})
    settings = inspect.signature(loss).parameters if marks else {}
    return [(kind, settings[name].default) for name, kind in marks.items()]


def inner(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that settings are bound to."""
    while isinstance(loss, partial):
        loss = loss.func
    return loss


def asked_by(loss: Callable[..., Any]) -> list[str]:
    """Return the parts that a loss is marked to ask for with its settings as they are bound (`functools.partial`)."""
    function = inner(loss)
    settings = inspect.signature(loss).parameters if hasattr(function, "asks_for") else {}
    marks = getattr(function, "asks_for", ())
    return list(dict.fromkeys(part for part, unless in marks if unless is None or settings[unless].default))


def check_loss(loss: Callable[..., Any], **given: Any) -> None:
    """Raise InputError where the loss asks for one of `given` that is None or False, or has a setting out of bounds."""
    check_settings(loss, {})
    for part in asked_by(loss):
        if part in given and (given[part] is None or given[part] is False):
            raise missing(part)


def missing(part: str) -> InputError:
    """Return the error for a part that a loss asks for and that was not given."""
    return InputError(MISSING[part])
