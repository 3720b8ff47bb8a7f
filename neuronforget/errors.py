"""The one exception for bad input: what was asked, what was found, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """The caller's data, path or model cannot be used as asked. The command line prints it as one line."""


def not_finite(where: str) -> InputError:
    """Return the error for a model whose numbers overflow; `where` says which were found so."""
    return InputError(
        f"activations or gradients are NaN or infinite ({where}): "
        "check the model's weights, or load it in a wider dtype"
    )


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
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds no {what} ({type(error).__name__}: {reason})") from None
