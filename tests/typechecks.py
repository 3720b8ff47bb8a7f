"""The type checker of the tests: beartype, for which an int is a float as PEP 484 has it.

A function within a function is decorated at each call of the outer one, and beartype takes a millisecond for that: most
of the time of a test that scores many texts. But what it is given is a stand-in of jaxtyping's, which has the signature
and no body: stand-ins of one signature do the same, so the first serves for all.
"""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype

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
