"""What recording costs beside the pass that it rides on: `python benchmarks/whole_models.py 30M --device cpu`.

Random weights of the real shapes. Time: recording against the same forward and activation backward without it, in
turns; on CPU, where the same job is faster in one process than in the next, the middle one of several processes.
Memory: its peak against a full forward and backward, and with ten times as many batches. The last line printed is
JSON; `kernels/bench.py` runs this and writes it down with the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

from gauges import gpu_peak, in_turns, medians, process_peak, tensor_peak  # noqa: E402
from problems import SHAPES, build  # noqa: E402


def record_batches(lm: Any, batch: Any, count: int, *, compiled: bool = False) -> None:
    """Record `count` batches as `record` does."""
    from neuronforget.models import activations_only
    from neuronforget.moments import merge
    from neuronforget.recording import record_batch
    from neuronforget.taps import open_tap

    tap = open_tap(lm, "torch_hooks")
    with activations_only(lm):
        merge(record_batch(tap, lm, batch, compiled=compiled) for _ in range(count))


def pass_alone(lm: Any, batch: Any, count: int) -> None:
    """The same forward and activation backward, nothing recorded."""
    from neuronforget.models import activations_only
    from neuronforget.models.likelihood import answer_nll
    from neuronforget.taps import open_tap

    tap = open_tap(lm, "torch_hooks")
    with activations_only(lm):
        for _ in range(count):
            out = tap(batch.inputs)
            torch.autograd.grad(answer_nll(out.logits, batch).sum(), out.acts[min(out.acts)])


def full_backward(lm: Any, batch: Any, count: int) -> None:
    """A training step's forward and backward, without an optimiser."""
    from neuronforget.models.likelihood import answer_nll

    for _ in range(count):
        answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).sum().backward()
        lm.model.zero_grad()


JOBS = {"record": record_batches, "alone": pass_alone, "full": full_backward}
JOBS["compiled"] = partial(record_batches, compiled=True)
MEMORY_NOTE = (
    "Memory: peaks of `tensors` alive; on CPU also what the job adds to its process, `returning` where malloc hands "
    "freed memory back at once (MALLOC_TRIM_THRESHOLD_=0), else with what malloc keeps, which varies from run to run."
)
#: Processes that time a model on CPU; how long one takes turns (seconds), and how many turns at least.
PROCESSES, SECONDS, TURNS = 7, 4.0, 9
#: What memory is measured of: a job and how many batches it runs.
PEAKS = (("record", 2), ("record", 20), ("full", 2), ("full", 20))


def measure(name: str, device: str) -> dict[str, Any]:
    """Return the row of one model: median milliseconds of a batch with and without recording, and their ratios.

    `compiled` is recording whose reduction `torch.compile` made (on CPU; the Triton kernel serves a GPU). On CPU it
    is the process with the middle ratio of `PROCESSES`; `lowest` and `highest` are those of the others.
    """
    if device == "cuda":
        return measure_here(name, device)
    found = [_apart(name, "--time") for _ in range(PROCESSES)]
    found.sort(key=lambda row: row["ratio"])
    return found[PROCESSES // 2] | {"lowest": found[0]["ratio"], "highest": found[-1]["ratio"]}


def measure_here(name: str, device: str) -> dict[str, Any]:
    """Return one process' row of one model."""
    lm, batch = build(name, device)
    timed = ("record", "alone", *(["compiled"] if device == "cpu" else []))
    jobs = {job: partial(JOBS[job], lm, batch, 1) for job in timed}
    for job in jobs.values():
        job()
        job()
    middle = medians(in_turns(jobs, TURNS, device, SECONDS))
    row: dict[str, Any] = {"model": name, "batch": "x".join(map(str, batch.input_ids.shape))}
    row |= {f"{job}_ms": spent * 1e3 for job, spent in middle.items()}
    ratios = {f"ratio_{job}": middle[job] / middle["alone"] for job in ("compiled",) if job in middle}
    return row | {"ratio": middle["record"] / middle["alone"]} | ratios


def memory(name: str, device: str) -> list[dict[str, Any]]:
    """Return a row for each job, its peaks in MB; on a GPU with the weights, on CPU without them (Linux alone)."""
    lm, batch = build(name, device) if device == "cuda" else (None, None)
    rows = []
    for job, count in PEAKS:
        row: dict[str, Any] = {"model": name, "job": job, "batches": count}
        if device == "cuda":
            row["tensors_mb"] = gpu_peak(partial(JOBS[job], lm, batch, count))
        else:
            row["tensors_mb"] = _peak_apart(name, job, count, "tensors")
            row["process_returning_mb"] = _peak_apart(name, job, count, "process", MALLOC_TRIM_THRESHOLD_="0")
            row["process_mb"] = _peak_apart(name, job, count, "process")
        rows.append(row)
    return rows


def _peak_apart(name: str, job: str, count: int, what: str, **environment: str) -> float:
    """What a job adds to a fresh process that has loaded the model, at its peak."""
    return float(_apart(name, "--peak", job, str(count), what, **environment))


def _apart(name: str, *options: str, **environment: str) -> Any:
    """What this script prints last with these options, in a process of its own."""
    command = [sys.executable, __file__, name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


#: How a peak is measured.
KINDS = {"tensors": tensor_peak, "process": process_peak}


def main() -> None:
    """Measure every model named; or, in this process, the time (--time) or one job's peak (--peak) of the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", choices=list(SHAPES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak", nargs=3, metavar=("JOB", "BATCHES", "WHAT"))
    parser.add_argument("--time", action="store_true")
    options = parser.parse_args()
    if options.time:
        print(json.dumps(measure_here(options.models[0], options.device)))
        return
    if options.peak:
        job, count, what = options.peak
        if job not in JOBS or not count.isdecimal() or what not in KINDS:
            parser.error(
                f"--peak: one of {', '.join(JOBS)}, a number and one of {', '.join(KINDS)}, not {options.peak}"
            )
        loaded = build(options.models[0], "cpu")
        print(KINDS[what](lambda: JOBS[job](*loaded, int(count))))
        return
    found: dict[str, Any] = {"recording": [measure(name, options.device) for name in options.models]}
    found["memory"] = [row for name in options.models for row in memory(name, options.device)]
    print(json.dumps(found | {"notes": MEMORY_NOTE}))


if __name__ == "__main__":
    main()
