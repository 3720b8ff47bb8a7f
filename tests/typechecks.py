"""The type checker of the tests: beartype, for which an int is a float as PEP 484 has it.

A function within a function is decorated at each call of the outer one, and beartype takes a millisecond for that: most
of the time of a test that scores many texts. But what it is given is a stand-in of jaxtyping's, which has the signature
and no body: stand-ins of one signature do the same, so the first serves for all.

jaxtyping binds the arguments and checks them twice at each call, so that the axes of one call agree. A function
of which no type has axes is left to beartype alone.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial, wraps
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeException

whole = jaxtyping.jaxtyped

_made = beartype(conf=BeartypeConf(is_pep484_tower=True))
_known: dict[Any, Any] = {}


def check(function: Any) -> Any:
    """Return a function that raises where an argument or the result is not of its type."""
    code = function.__code__
    if code.co_filename != "<string>" or function.__defaults__ or function.__kwdefaults__:  # beartype checks defaults
        return _made(function)
    form = (code.co_code, code.co_varnames, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    key = (function.__module__, function.__qualname__, form, code.co_flags, tuple(function.__annotations__.items()))
    try:
        if key not in _known:
            _known[key] = _made(function)
    except TypeError:  # an annotation that has no hash
        return _made(function)
    return _known[key]


def has_axes(kind: Any) -> bool:
    """Is this type, or a part of it, one of an array's axes? A name that is not known here may be."""
    array = inspect.isclass(kind) and issubclass(kind, jaxtyping.AbstractArray)
    return array or isinstance(kind, str) or any(map(has_axes, get_args(kind)))


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """Stand for `jaxtyping.jaxtyped` in its import hook: the same refusals, at less cost where no type has axes."""
    if function is None:
        return partial(jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(function) and isinstance(vars(function).get("__init__"), FunctionType):
        if "__wrapped__" not in vars(function.__init__):  # else its own decorator checks, and refuses in other words
            function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)
        return function
    if not isinstance(function, FunctionType) or "<locals>" in function.__qualname__:  # these go by stand-ins
        return whole(function, typechecker=typechecker)
    if inspect.isgeneratorfunction(function):  # beartype alone refuses an argument at the first value, not at the call
        return whole(function, typechecker=typechecker)
    try:
        kinds = get_type_hints(function, include_extras=True)
        checked = None if any(map(has_axes, kinds.values())) else _made(_of_kinds(function, kinds))
    except (NameError, TypeError, BeartypeException):  # names for the type checker alone, defaults made by a factory
        checked = None
    if checked is None:
        return whole(function, typechecker=typechecker)

    config = jaxtyping.config

    def either(*args: Any, **kwargs: Any) -> Any:
        return (function if config.jaxtyping_disable else checked)(*args, **kwargs)

    # A frame of jaxtyping's, as its own would be: a warning names the line that called neither it nor the package.
    return wraps(function)(FunctionType(either.__code__, vars(jaxtyping), closure=either.__closure__))


def _of_kinds(function: FunctionType, kinds: dict[str, Any]) -> FunctionType:
    code, names, defaults = function.__code__, function.__globals__, function.__defaults__
    twin = FunctionType(code, names, function.__name__, defaults, function.__closure__)
    twin.__kwdefaults__, twin.__annotations__ = function.__kwdefaults__, kinds
    twin.__qualname__, twin.__module__ = function.__qualname__, function.__module__
    return twin
