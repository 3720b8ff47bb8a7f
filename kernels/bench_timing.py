"""How the kernels are timed: some calls in a row, the GPU's work apart from what the host needs to ask for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

#: Cycles for which a GPU is kept busy while the host asks for what is timed: about 40 ms.
LEAD = 80_000_000


class Spent(NamedTuple):
    """Seconds of a call: what the device works, and what the host needs to ask for it (on CPU one and the same)."""

    work: float
    launch: float


def seconds(run: Callable[[], Any], device: str, repeats: int = 3) -> Spent:
    """Return the medians of some calls in a row on a GPU, after two; NaN where it does not fit into memory."""
    try:
        _, warm = (_once(run, device) for _ in range(2))  # the first compiles, the second warms up
        count = 1 if device == "cpu" else max(1, int(0.02 / max(*warm, 1e-4)))
        times = [_once(run, device, count) for _ in range(repeats)]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return Spent(math.nan, math.nan)
    return Spent(*(sorted(own)[len(own) // 2] for own in zip(*times, strict=True)))


def _once(run: Callable[[], Any], device: str, count: int = 1) -> Spent:
    begun = time.perf_counter()
    if device == "cpu":
        run()
        return Spent(*[time.perf_counter() - begun] * 2)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(LEAD)  # the host gets ahead: else a short kernel would be timed waiting for its launches
    start.record()
    begun = time.perf_counter()
    for _ in range(count):
        run()
    asked = time.perf_counter() - begun
    end.record()
    torch.cuda.synchronize()
    return Spent(start.elapsed_time(end) / 1e3 / count, asked / count)
