"""Arguments of the public functions, held against their annotations: a wrong kind is said before any work."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from neuronforget.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

#: How one comes by a noun.
MADE = {
    "Module": "transformers' from_pretrained",
    "LM": "nf.load(path) or nf.LM(model, tokenizer)",
    "Corpus": "nf.corpora.jsonl(path) or nf.Corpus.from_rows(rows)",
    "Moments": "nf.record(lm, corpus)",
    "Scores": "nf.attribute(lm, forget, retain)",
    "Neurons": "nf.select.top(scores, k) or nf.Neurons(pairs, layers, width)",
    "Edit": "a function of nf.erase",
    "Results": "nf.evaluate(lm, edits, forget, retain)",
    "Audit": "nf.audit(lm, edit, forget, retain)",
}

#: Where there are functions of a kind, by the argument that takes one.
HOMES = {"score": "nf.scores", "loss": "nf.losses", "metric": "nf.metrics"}


def checks_kinds(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` raise InputError for an argument of another kind than its annotation names.

    Looked at are nouns, functions, paths, texts, mappings and rows of these. Numbers may be of any library, rows also
    sets and views of a dictionary; an iterator is none, for it can be read once.
    """
    names = tuple(inspect.signature(function).parameters)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hints:  # at the first call: what an annotation names may stand below the function
            hints.update(get_type_hints(function))
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            if name in hints and not _fits(value, hints[name]):
                raise _refusal(function.__name__, name, value, hints[name])
        return function(*args, **kwargs)

    return checked


def numbers(**bounds: Literal["> 0", ">= 0"]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function raise InputError for settings beyond `bounds`; `check_numbers` says so without calling it."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
            check_numbers(bounded, kwargs)
            return function(*args, **kwargs)

        bounded.bounds = bounds  # type: ignore[attr-defined]
        return bounded

    return mark


def check_numbers(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Raise InputError where a setting, given or bound by `functools.partial`, is beyond what `numbers` marks."""
    inner = function
    while isinstance(inner, functools.partial):
        settings, inner = {**inner.keywords, **settings}, inner.func
    for name, bound in getattr(inner, "bounds", {}).items():
        value = settings.get(name, inspect.signature(inner).parameters[name].default)
        if not (value > 0 if bound == "> 0" else value >= 0):
            raise InputError(f"{inner.__name__}: {name} must be a number {bound}, found {value}")


def is_whole(value: object) -> bool:
    """Is it a whole number by its kind, of whichever library?"""
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_of(value, kind) for kind in _kinds(hint))


def _kinds(hint: Any) -> list[Any]:
    """The members of a union, or the one kind that there is."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for member in get_args(hint) for kind in _kinds(member)]
    return [hint]


def _is_of(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if type(value) is not dict:  # another mapping may read a value from its file when it is asked for
            return isinstance(value, Mapping)
        return all(_fits(own, inner[1]) for own in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _is_row(value, origin, inner)
    if kind is Any:
        return True
    if kind in (int, float, bool):
        return not isinstance(value, str)
    kind = os.PathLike if kind is Path else kind
    return not isinstance(kind, type) or isinstance(value, kind)


def _is_row(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, str):  # the functions read it as one text
        return str in _kinds(inner[0])
    if isinstance(value, Set | ValuesView):
        return all(_fits(member, inner[0]) for member in value)
    if not isinstance(value, Sequence):
        return hasattr(value, "__array__")
    places = inner if origin is tuple and ... not in inner else [inner[0]] * len(value)
    return type(value) not in (list, tuple) or all(map(_fits, value, places))


def _refusal(function: str, name: str, value: Any, hint: Any) -> InputError:
    words = [_name(kind) for kind in _kinds(hint) if kind is not NoneType]
    how = "".join(f" ({MADE[word]} makes one)" for word in words[:1] if word in MADE)
    if name in HOMES and "a function" in words:
        how = f", such as those of {HOMES[name]}"
    kinds = " or ".join(dict.fromkeys(words))
    return InputError(f"{function}: {name} must be {kinds}{how}; found {_found(value)}")


def _name(kind: Any) -> str:
    """What a kind is called in a sentence."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Callable:
        return "a function"
    if origin in (Union, UnionType):
        return " or ".join(map(_name, _kinds(kind)))
    if origin is None or not isinstance(origin, type):
        return getattr(kind, "__name__", str(kind))
    if issubclass(origin, Mapping):
        return f"a dictionary of {_name(inner[1])} by name"
    return f"a list of {_name(inner[0])}" if issubclass(origin, Sequence) else origin.__name__


def _found(value: Any) -> str:
    """What was given: its kind and, of a row, that of its first member."""
    kind = type(value).__name__
    if isinstance(value, list | tuple | dict) and value:
        members = value.values() if isinstance(value, dict) else value
        return f"{kind} of {' and '.join(sorted({type(member).__name__ for member in members})[:3])}"
    return f"{value!r}" if isinstance(value, str) and len(value) < 60 else kind
