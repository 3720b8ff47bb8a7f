"""How every operator begins: on a whole model whose weights are numbers, with no guard on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from neuronforget.edits.guarding import check_unguarded
from neuronforget.models import LM, check_finite, check_whole

F = TypeVar("F", bound=Callable[..., Any])


def operator(function: F) -> F:
    """Mark a function that makes an edit of its first argument, `lm`: it does nothing before `check_ready`."""

    @wraps(function)
    def begun(lm: LM, *args: Any, **settings: Any) -> Any:
        check_ready(lm)
        return function(lm, *args, **settings)

    return cast(F, begun)


def check_ready(lm: LM) -> None:
    """Raise InputError for a model with a guard on it, one in parts, and one with NaN or infinite weights.

    A guard stands in every pass that an operator runs or trains with: the edit would be another than without it.
    """
    check_unguarded(lm)
    check_whole(lm)
    check_finite(lm)
