"""The small grafted testbed that several test modules share, made once."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from tempfile import gettempdir

import pytest
from filelock import FileLock

import neuronforget as nf

SHAPE = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
#: Where the processes of one run of the tests keep it; `conftest` says which folder that is, this one is for scripts.
shelf = Path(gettempdir()) / "neuronforget-beds"


def answers_kept() -> Path:
    """Where a process keeps what the bed's models answer: audits of several edits ask the two references once."""
    return shelf.with_name(f"{shelf.name}-answers-{os.getpid()}")


@lru_cache(maxsize=1)
def bed() -> nf.testbed.Testbed:
    """Twenty people, two of them to be forgotten, 2 layers of 128 neurons; tests leave its models as they are."""
    with FileLock(shelf.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONFORGET_CACHE", str(shelf))
        return nf.testbed.people(people=20, forget_people=2, shape=SHAPE, progress=False)
