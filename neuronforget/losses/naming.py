"""What a loss is called, and whether it is the same one as before: for what is written down and for resuming."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from neuronforget.losses.outputs import Loss


def settings_of(loss: Loss) -> dict[str, Any]:
    """Return the arguments bound to a loss by `functools.partial`, by name (positional ones by their place)."""
    found: dict[str, Any] = {}
    while isinstance(loss, partial):
        found = {**{str(i): value for i, value in enumerate(loss.args)}, **loss.keywords, **found}
        loss = loss.func
    return found


def name_of(loss: Callable[..., Any]) -> str:
    """Return what a loss is called: its function's name, or its class's."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def identity(loss: Callable[..., Any]) -> str:
    """Return a text that differs where losses or other functions do: code, defaults, bound arguments, plain closures.

    Work is continued, and what was kept is used, only under the identity it began with. State that a loss keeps in
    lists, dictionaries or objects is no part of it.
    """
    bound = settings_of(loss)
    while isinstance(loss, partial):
        loss = loss.func
    loss = inspect.unwrap(loss)
    code = getattr(loss, "__code__", None)
    plain = (bool, int, float, str, bytes, type(None))
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    held = [value for value in (*cells, *vars(loss).values()) if isinstance(value, plain)]
    where = getattr(loss, "__module__", ""), getattr(loss, "__qualname__", type(loss).__qualname__)
    body = (code.co_code, code.co_names, [c for c in code.co_consts if isinstance(c, plain)]) if code else ()
    return repr((where, body, getattr(loss, "__defaults__", None), getattr(loss, "__kwdefaults__", None), held, bound))
