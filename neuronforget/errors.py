"""The one exception for bad input: what was asked, what was found, what to do; and warnings at the caller's line."""

from __future__ import annotations

import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Modules whose frames are not the caller's.
WITHIN = ("neuronforget", "contextlib", "functools", "jaxtyping")


class InputError(ValueError):
    """The caller's data, path or model cannot be used as asked. The command line prints it as one line."""


def not_finite(where: str) -> InputError:
    """Return the error for a model whose numbers overflow; `where` says which were found so."""
    return InputError(
        f"activations or gradients are NaN or infinite ({where}): "
        "check the model's weights, or load it in a wider dtype"
    )


def reason(error: Exception) -> str:
    """Return another library's message as one line, cut between two words if it is long."""
    return textwrap.shorten(str(error), 200, placeholder=" ...")


def warn(words: str) -> None:
    """Warn at the line that called this package, however deep within it one is."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in WITHIN:
        level, frame = level + 1, frame.f_back
    warnings.warn(words, stacklevel=level)


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Read a file within the block: a missing or damaged one raises InputError, whatever its parser raises."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}")
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} holds no {what} ({type(error).__name__}: {reason(error)})") from None
