"""What a result needs to be reproduced: versions, device, seeds, and where cached work lives."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from neuronforget.errors import InputError

LIBRARIES = ("neuronforget", "torch", "transformers", "transformer-lens", "nnsight", "accelerate")


def environment() -> dict[str, str]:
    """Return versions of Python and the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    return versions | {name: found for name in LIBRARIES if (found := _version(name)) is not None}


@cache  # a millisecond for each, at every call
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """Return the folder for testbeds and resumable work; NEURONFORGET_CACHE moves it."""
    return Path(os.environ.get("NEURONFORGET_CACHE", "~/.cache/neuronforget")).expanduser()


def content_key(**settings: Any) -> str:
    """Return a 16-digit hash of the settings: equal work has an equal key."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch (for library code that draws from the global generators)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def whole_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a scratch folder that becomes `folder` only if the block ends well: all of it or nothing.

    What is replaced is deleted only when the new folder is in its place. Raises InputError if `folder` cannot be
    written, or exists, is not empty and is not to be replaced.
    """
    folder = Path(folder).resolve()
    check_new(folder, replace=replace)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with writing(folder):
            yield scratch
            for path in (scratch, *scratch.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            check_new(folder, replace=replace)  # another run may have written it meanwhile
            _put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put_in_place(scratch: Path, folder: Path) -> None:
    """Rename `scratch` to `folder`; what was there stands aside meanwhile, and comes back if that is cut short."""
    aside = scratch.with_name(f"{scratch.name}-replaced")
    try:
        if folder.exists():
            folder.rename(aside)
        scratch.rename(folder)
    finally:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a scratch file that replaces `path` only if the block ends well."""
    path = Path(path)
    check_writable(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        with writing(path):
            yield scratch
            scratch.chmod(0o644)
            scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk, or a folder that stopped being writable, is said in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def check_new(folder: str | Path, *, replace: bool = False) -> None:
    """Raise InputError unless `folder` can be created: it may be there if it is empty or is to be replaced."""
    folder = Path(folder)
    _check_no_file(folder)
    check_writable(folder)
    if folder.exists() and not replace and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is not empty: choose another folder")


def check_folder(folder: str | Path) -> None:
    """Raise InputError unless files can be put into `folder`, which is there or can be made; makes nothing."""
    _check_no_file(folder)
    check_writable(Path(folder) / "file")


def _check_no_file(folder: str | Path) -> None:
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder} is a file: name a folder, which may be new")


def check_writable(path: str | Path) -> None:
    """Raise InputError unless `path` can be created; makes nothing, not even the folders above it."""
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
