"""The tests' own type checker refuses what it should, also from the second function of one name on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import typechecks
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError, config
from torch import Tensor
from typechecks import _known, check
from typechecks import whole as jaxtyped


def inner(kind: Any, gives: Any) -> Any:
    """A function within a function, made anew by each call, of an argument and a result of these types."""

    def own(x: kind) -> gives:  # type: ignore[valid-type]
        return x

    own.__annotations__ = {"x": kind, "return": gives}
    return jaxtyped(own, typechecker=check)


@pytest.mark.parametrize("times", [1, 2])
def test_wrong_arguments_and_results_are_refused_however_often_a_function_is_made(times: int) -> None:
    assert not config.jaxtyping_disable
    rows = Float[Tensor, "row column"]
    for _ in range(times):
        whole, words, wrong = inner(int, int), inner(str, str), inner(int, str)
        shaped = inner(rows, Float[Tensor, "row"])
        assert whole(1) == 1 and words("a") == "a"
        made = len(_known)
        inner(int, int), inner(str, str)
        assert len(_known) == made > 0  # the first of a form serves for all
        for call in (lambda f=whole: f("a"), lambda f=words: f(1), lambda f=wrong: f(1)):
            with pytest.raises(TypeCheckError):
                call()
        with pytest.raises(TypeCheckError):
            shaped(torch.ones(2, 3))
        with pytest.raises(TypeCheckError):
            shaped(torch.ones(2))


@dataclass
class Row:
    """Values, none of which has axes."""

    values: list[float]


def longer(row: Row, by: float) -> Row:
    """No type of it has axes."""
    return Row([*row.values, by]) if by else cast(Row, None)


def each(row: Row) -> Iterator[float]:
    """A generator, whose argument is refused at the call."""
    yield from row.values


def scaled(x: Float[Tensor, "row"], by: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Every type of it has axes."""
    return x * by


def test_the_same_is_refused_where_no_type_has_axes_and_nothing_when_checks_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Row, "__init__", Row.__init__)  # the hook's decorator puts a checked one there
    row: Any = typechecks.jaxtyped(Row, typechecker=check)
    plain, shaped = (typechecks.jaxtyped(f, typechecker=check) for f in (longer, scaled))
    assert plain(row([1]), 2).values == [1, 2] and plain.__wrapped__ is longer
    for call in (lambda: plain([1.0], 2), lambda: plain(row([1]), "2"), lambda: plain(row([1]), 0), lambda: row("a")):
        with pytest.raises(BeartypeCallHintViolation):
            call()
    assert shaped(torch.ones(2), torch.ones(2)).tolist() == [1, 1]
    with pytest.raises(TypeCheckError):
        shaped(torch.ones(2), torch.ones(1))
    with pytest.raises(TypeCheckError):
        typechecks.jaxtyped(each, typechecker=check)([1.0])
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    assert plain(row([1]), "2").values == [1, "2"] and row("a").values == "a"
    assert shaped(torch.ones(2), torch.ones(1)).tolist() == [1, 1]
