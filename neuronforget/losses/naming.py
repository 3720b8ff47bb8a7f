"""What a loss is called, and whether it is the same one as before: for what is written down and for resuming."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from neuronforget.losses.outputs import Loss
from neuronforget.losses.parts import inner


def settings_of(loss: Loss) -> dict[str, Any]:
    """Return the arguments bound to a loss by `functools.partial`, by name (positional ones by their place)."""
    found: dict[str, Any] = {}
    while isinstance(loss, partial):
        found = {**{str(i): value for i, value in enumerate(loss.args)}, **loss.keywords, **found}
        loss = loss.func
    return found


def name_of(loss: Callable[..., Any]) -> str:
    """Return what a loss is called: its function's name, or its class's."""
    function = inner(loss)
    return getattr(function, "__name__", type(function).__name__)


def identity(loss: Callable[..., Any]) -> str:
    """Return a text that differs where functions do: code, defaults, bound arguments, closures, helpers.

    Helpers are functions of the same package, or of neuronforget, and constants (plain values in capitals) that the
    code names. Work is continued, and what was kept is used, only under the identity it began with. State in lists,
    dictionaries or objects that a closure or a module holds is no part of it.
    """
    return repr(_identity(loss, set()))


def _identity(function: Callable[..., Any], seen: set[int]) -> Any:
    bound = settings_of(function)
    function = inspect.unwrap(inner(function))
    where = getattr(function, "__module__", "") or "", getattr(function, "__qualname__", type(function).__qualname__)
    if id(function) in seen:
        return where
    seen.add(id(function))
    code = getattr(function, "__code__", None)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    known = getattr(function, "__globals__", {})
    named = {name: known[name] for name in sorted(_names(code)) if name in known} if code else {}
    helpers = [(name, _held(value, seen)) for name, value in named.items() if _counts(name, value, where[0])]
    held = [_held(value, seen) for value in (*cells, *vars(function).values())]
    defaults = getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None)
    return where, _body(code) if code else (), _settings(defaults, seen), held, helpers, _settings(bound, seen)


def _counts(name: str, value: Any, module: str) -> bool:
    """Is a global a constant, or a function of the same package or of this one, whose code may change?"""
    if not callable(value):
        return name.isupper()  # others are state: a process' rank, a counter
    return (getattr(value, "__module__", None) or "").split(".")[0] in (module.split(".")[0], "neuronforget")


def _held(value: Any, seen: set[int]) -> Any:
    """A plain value, a function, or several of either; nothing of what may hold state."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return value
    if isinstance(value, tuple):
        return [_held(item, seen) for item in value]
    return _identity(value, seen) if isinstance(value, FunctionType | partial) else None


def _settings(value: Any, seen: set[int]) -> Any:
    """Arguments count whatever they are."""
    if isinstance(value, tuple | list):
        return [_settings(item, seen) for item in value]
    if isinstance(value, dict):
        return {key: _settings(item, seen) for key, item in value.items()}
    return _identity(value, seen) if isinstance(value, FunctionType | partial) else value


def _body(code: CodeType) -> Any:
    return code.co_code, code.co_names, [_constant(value) for value in code.co_consts]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _body(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else value


def _names(code: CodeType) -> set[str]:
    """Every name that a function's code looks up, that of functions in it too."""
    inner = (_names(value) for value in code.co_consts if isinstance(value, CodeType))
    return set(code.co_names).union(*inner)
