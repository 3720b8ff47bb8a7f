"""Arguments of the public functions, held against their annotations: a wrong kind is said before any work."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set, ValuesView
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from neuronforget.errors import InputError
from neuronforget.runs.runs import check_folder

Bound = Literal["> 0", ">= 0", ">= 1", "!= 0"]
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

#: What numbers are called in a sentence, one and several.
NUMBERS = {
    int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), bool: ("True or False", "True or False"),
}  # fmt: skip
COMPARED = {">": operator.gt, ">=": operator.ge, "!=": operator.ne}

#: Bounds of numbers that are called the same in every function of the package; `numbers` gives those of one.
EVERYWHERE: dict[str, Bound] = {
    "batch_size": ">= 1", "n": ">= 1", "max_tokens": ">= 1", "max_new_tokens": ">= 1", "seed": ">= 0",
}  # fmt: skip
#: Arguments that name a folder in which work is kept: it may be there, or must be one that can be made.
FOLDERS = ("kept", "resume")


def checks_kinds(function: Callable[P, R]) -> Callable[P, R]:
    """Make `function` raise InputError for an argument of another kind than its annotation names, or out of bounds.

    Looked at are nouns, functions, paths, texts, numbers, mappings and rows of these. Numbers may be of any library (as
    Python's own they come in), but neither NaN nor True; rows may be sets and views of a dictionary; an iterator is
    none, for it can be read once.
    Of a class it is the arguments that one makes it with.
    """
    if isinstance(function, type):
        function.__init__ = _checked(function.__init__, function)  # type: ignore[misc]
        return function
    return _checked(function, function)


def _checked(function: Callable[P, R], asked: Callable[..., Any]) -> Callable[P, R]:
    names = tuple(inspect.signature(function).parameters)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not hints:  # at the first call: what an annotation names may stand below the function
            hints.update(get_type_hints(function))
        _check(asked, hints, {**dict(zip(names, args, strict=False)), **kwargs}, ours=True)
        own = [_plain(value, hints.get(name)) for name, value in zip(names, args, strict=False)]
        named = {name: _plain(value, hints.get(name)) for name, value in kwargs.items()}
        return function(*own, *args[len(own) :], **named)  # type: ignore[arg-type]

    return checked


def numbers(**bounds: Bound) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark the bounds of a function's settings: `check_settings` and `checks_kinds` raise InputError beyond them."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        function.bounds = bounds  # type: ignore[attr-defined]
        return function

    return mark


def check_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Raise InputError where a setting, given or bound by `functools.partial`, is none that `function` takes.

    It says what `checks_kinds` would say of a call, without the call, and of functions that are not so decorated.
    """
    while isinstance(function, functools.partial):
        settings, function = {**function.keywords, **settings}, function.func
    ours = str(getattr(inspect.unwrap(function), "__module__", "")).startswith(f"{__package__}.")
    _check(function, hints_of(function), settings, ours=ours)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's annotations as types; of one's own, with words or names that are not there, none."""
    try:
        return get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError, SyntaxError):  # it says itself what it takes
        return {}


def _check(function: Callable[..., Any], hints: Mapping[str, Any], given: Mapping[str, Any], *, ours: bool) -> None:
    """`ours`: what is called as in `EVERYWHERE` and `FOLDERS` is meant so; a function of one's own may mean another."""
    label = getattr(function, "__name__", type(function).__name__)
    bounds = {**(EVERYWHERE if ours else {}), **getattr(function, "bounds", {})}
    for name, value in given.items():
        if name in hints and not _fits(value, hints[name]):
            raise _refusal(label, name, value, hints[name])
        if name in bounds and _is_number(value, float) and not _within(value, bounds[name]):
            kind = _words(hints.get(name, float))
            raise InputError(f"{label}: {name} must be {kind} {bounds[name]}, found {value}")
        if ours and name in FOLDERS and isinstance(value, str | os.PathLike):
            check_folder(Path(value))


def _within(value: Any, bound: str) -> bool:
    sign, limit = bound.split()
    return math.isfinite(value) and bool(COMPARED[sign](value, float(limit)))


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_of(value, kind) for kind in _kinds(hint))


def _kinds(hint: Any) -> list[Any]:
    """The members of a union, or the one kind that there is."""
    if get_origin(hint) in (Union, UnionType):
        return [kind for member in get_args(hint) for kind in _kinds(member)]
    return [hint]


def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a kind is a row, a dictionary or a choice of; of `typing.List` alone, of anything."""
    return get_origin(kind), get_args(kind) or (Any, Any, ...)


def _is_of(value: Any, kind: Any) -> bool:
    origin, inner = _parts(kind)
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if type(value) is not dict:  # another mapping may read a value from its file when it is asked for
            return isinstance(value, Mapping)
        return all(_fits(own, inner[1]) for own in value.values())
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return _is_row(value, origin, inner)
    if kind is Any:
        return True
    if origin is Literal:
        return any(_is_same(value, one) for one in inner)
    if kind in (int, float, bool):
        return _is_number(value, kind)
    kind = os.PathLike if kind is Path else kind
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # some protocols, and dictionaries of given names, cannot be asked
        return True


def _is_same(value: Any, one: Any) -> bool:
    """Is it that member of a choice? Texts and numbers may be of any library, but True is not 1."""
    if isinstance(one, str):
        return isinstance(value, str) and value == one
    if isinstance(one, int):
        return _is_number(value, bool if isinstance(one, bool) else int) and bool(value == one)
    return type(value) is type(one) and bool(value == one)


def _is_row(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, str):  # the functions read it as one text
        return str in _kinds(inner[0])
    if isinstance(value, Set | ValuesView):
        return all(_fits(member, inner[0]) for member in value)
    if not isinstance(value, Sequence):
        return hasattr(value, "__array__") or (origin is Iterable and isinstance(value, Iterable))
    places = inner if origin is tuple and ... not in inner else [inner[0]] * len(value)
    return type(value) not in (list, tuple) or (len(value) == len(places) and all(map(_fits, value, places)))


def _is_number(value: Any, kind: type) -> bool:
    """Is it a number of that kind, of whichever library? True is one of `bool` alone, NaN is none."""
    if kind is bool or isinstance(value, bool | np.bool_ | str):
        return kind is bool and isinstance(value, bool | np.bool_)
    try:
        return operator.index(value) is not None if kind is int else not math.isnan(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # tensors of several numbers raise each in turn
        return False


def _plain(value: Any, hint: Any) -> Any:
    """A number of another library as Python's own, which can be written down; all else as it is."""
    if isinstance(value, bool | int | float) or not hasattr(value, "item"):
        return value
    kinds = [kind for kind in _kinds(hint) if _is_of(value, kind)]
    return value.item() if kinds and all(kind in NUMBERS for kind in kinds) else value


def _refusal(function: str, name: str, value: Any, hint: Any) -> InputError:
    words = [_name(kind) for kind in _kinds(hint) if kind is not NoneType]
    how = "".join(f" ({MADE[word]} makes one)" for word in words[:1] if word in MADE)
    if name in HOMES and "a function" in words:
        how = f", such as those of {HOMES[name]}"
    return InputError(f"{function}: {name} must be {_words(hint)}{how}; found {_found(value)}")


def _words(hint: Any, *, many: bool = False) -> str:
    """What the kinds of a union are called in a sentence; a whole number is a number, too."""
    kinds = [kind for kind in _kinds(hint) if kind is not NoneType]
    kinds = [kind for kind in kinds if not (kind is int and float in kinds)]
    return " or ".join(dict.fromkeys(_name(kind, many=many) for kind in kinds))


def _name(kind: Any, *, many: bool = False) -> str:
    origin, inner = _parts(kind)
    if origin is Callable:
        return "a function"
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if kind in NUMBERS:
        return NUMBERS[kind][many]
    if origin is None or not isinstance(origin, type):
        return getattr(kind, "__name__", str(kind))
    if issubclass(origin, Mapping):
        return f"a dictionary of {_words(inner[1], many=True)} by name"
    if origin is tuple and ... not in inner:
        return f"({', '.join(map(_words, inner))})"
    return f"a list of {_words(inner[0], many=True)}" if issubclass(origin, Iterable) else origin.__name__


def _found(value: Any) -> str:
    """What was given: its kind and, of a row, that of its first member."""
    kind = type(value).__name__
    if isinstance(value, list | tuple | dict) and value:
        members = value.values() if isinstance(value, dict) else value
        return f"{kind} of {' and '.join(sorted({type(member).__name__ for member in members})[:3])}"
    return f"{value!r}" if isinstance(value, str | int | float | None) and len(repr(value)) < 60 else kind
