"""The tests' own type checker refuses what it should, also from the second function of one name on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, config, jaxtyped
from torch import Tensor
from typechecks import _known, check


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
