"""How the benchmarks measure: seconds of calls in turns, peaks of memory."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def in_turns(
    calls: Mapping[str, Callable[[], Any]], turns: int, device: str = "cpu", seconds: float = 0.0
) -> dict[str, list[float]]:
    """Return the seconds of each call, made in turns so that a busy neighbour slows all of them.

    There are at least so many turns, and as many as begin within so many seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    done = 0
    while done < turns or time.perf_counter() - begun < seconds:
        done += 1
        for name, call in calls.items():
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            times[name].append(time.perf_counter() - start)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the middle value of each."""
    return {name: sorted(spent)[len(spent) // 2] for name, spent in times.items()}


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def counted(text: str) -> int:
    """Return a number of turns, one or more: of none there is no median."""
    if (turns := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"one turn or more, not {turns}")
    return turns


def gpu_peak(run: Callable[[], Any]) -> float:
    """Return the peak of bytes in tensors on the GPU while `run` runs, those from before with them, in MB."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 1e6


def tensor_peak(run: Callable[[], Any]) -> float:
    """Return the peak of bytes in tensors that `run` makes on CPU, in MB, as torch's profiler counts them."""
    kind = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kind, profile_memory=True, acc_events=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]") / 1e6


def process_peak(run: Callable[[], Any]) -> float:
    """Return by how many MB `run` raises the process' peak memory. A child's `getrusage` begins at its parent's."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(line: str) -> float:
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(line)) / 1e3
