"""The Triton kernels without a GPU: interpreted against the reference, and compiled for GPUs that are not here.

Triton decides whether to interpret when a kernel is defined, and the tests' type checks must not wrap kernels:
each set runs in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def can_interpret() -> bool:
    """Whether loops with bounds known at run time can be interpreted: Triton before 3.7 cannot with numpy 2.4."""
    from importlib.metadata import version

    def release(package: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version(package).split(".")[:2])

    return release("triton") >= (3, 7) or release("numpy") < (2, 4)


def run(cases: str, **environment: str) -> None:
    """Run every test of `cases` in its own process, and fail with what it printed."""
    paths = os.pathsep.join([str(HERE.parent), str(HERE.parent / "kernels"), str(HERE)])
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-p", "no:cacheprovider", str(HERE / cases)]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**kept, "PYTHONPATH": paths, **environment}, cwd=HERE.parent
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it is for Linux alone)")
def test_interpreted_kernels_equal_the_reference() -> None:
    if not can_interpret():
        pytest.skip("this Triton cannot interpret loops with this numpy")
    run("interpreted_kernels.py", TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it is for Linux alone)")
def test_compiled_kernels_keep_to_registers_and_use_the_hardware() -> None:
    run("compiled_kernels.py")
