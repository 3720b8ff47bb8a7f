"""Which configuration of each kernel is the fastest on this GPU: `python kernels/sweep.py [--seconds 240]`.

Candidates are timed at the Llama-3-8B and Qwen1.5-1.8B shapes on ragged examples, the present one first; one that does
not run says why. The fastest, by the geometric mean over the shapes, is held against the reference before it is named.
Prints what is chosen for `configs.py` and writes results/<date>-<device>-sweep.json and .md after each kernel: what is
known is kept where time runs out.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import torch  # noqa: E402
from bench import PLANS, draw, parity, segments_of  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from bench_timing import seconds  # noqa: E402
from neuronforget_kernels import Layout, configs, fused_attribution, neuron_moments, swiglu_backward  # noqa: E402
from neuronforget_kernels.configs import Config, GemmConfig  # noqa: E402

SHAPES = ("Llama-3-8B", "Qwen1.5-1.8B")
STREAMED = [Config(*c) for c in (
    (512, 2, 4, 4), (512, 4, 3, 4), (512, 4, 4, 4), (512, 1, 4, 4), (512, 2, 6, 4), (256, 2, 4, 2), (256, 4, 4, 2),
    (256, 2, 4, 4), (1024, 2, 3, 8), (1024, 2, 4, 8), (1024, 1, 4, 8), (512, 2, 4, 8),
)]  # fmt: skip
GATED = [Config(*c) for c in (
    (512, 1, 3, 4), (512, 1, 2, 4), (512, 1, 4, 4), (256, 1, 3, 2), (256, 1, 4, 4), (1024, 1, 3, 8), (1024, 1, 4, 8),
    (512, 1, 3, 8),
)]  # fmt: skip
FUSED = [GemmConfig(*c) for c in (
    (128, 128, 64, 3, 4, 7, 2), (128, 256, 64, 3, 8, 7, 4), (128, 256, 64, 4, 8, 7, 4), (128, 256, 64, 3, 8, 7, 2),
    (256, 128, 64, 3, 8, 7, 2), (256, 128, 64, 4, 8, 7, 2), (128, 128, 64, 3, 8, 7, 1), (128, 128, 64, 4, 4, 7, 2),
    (64, 256, 64, 3, 4, 7, 4), (128, 128, 128, 2, 4, 7, 2), (128, 256, 64, 4, 8, 5, 4), (128, 256, 64, 4, 8, 9, 4),
    (128, 256, 64, 4, 8, 3, 4), (128, 256, 32, 4, 8, 7, 4),
)]  # fmt: skip


class Job(NamedTuple):
    """A kernel: its table, how a configuration becomes a row of it, the candidates, and its run at a shape."""

    name: str
    table: dict[str, Any]
    row: Callable[[Any], Any]
    candidates: Sequence[Any]
    run: Callable[[dict[str, Any]], Any]


def jobs(itemsize: int, device: torch.device) -> list[Job]:
    """The kernels, for elements of so many bytes; each device's present configuration comes first."""

    def streaming(config: Config) -> dict[int, Config]:
        return {**configs.row_of(configs.STREAMING, device), itemsize: config}

    def after(present: Any, others: Sequence[Any]) -> list[Any]:
        return [present, *(config for config in others if config != present)]

    def as_it_is(config: Any) -> Any:
        return config

    def fuse(given: dict[str, Any]) -> Any:
        return fused_attribution(given["delta"], given["write"], given["a"], given["layout"], fused=True)

    def stream(given: dict[str, Any]) -> Any:
        return neuron_moments(given["a"], given["g"], given["layout"])

    def gate(given: dict[str, Any]) -> Any:
        return swiglu_backward(given["g"], given["a"], given["up"], given["layout"])

    streamed = after(configs.row_of(configs.STREAMING, device)[itemsize], STREAMED)
    gated = after(configs.row_of(configs.SWIGLU, device), GATED)
    made = [
        Job("K1", configs.STREAMING, streaming, streamed, stream),
        Job("K3", configs.SWIGLU, as_it_is, gated, gate),
    ]
    if not torch.version.hip:  # there the reference stands in for it
        made.append(Job("K2", configs.GEMM, as_it_is, after(configs.row_of(configs.GEMM, device), FUSED), fuse))
    return made


def inputs(device: str, shape: str) -> dict[str, Any]:
    """What the kernels read at one shape."""
    plan = PLANS["cuda"]
    model, width = plan.shapes[shape]
    found: dict[str, Any] = {
        n: draw(device, plan.dtype, plan.rows, width, seed=i) for i, n in enumerate(("a", "g", "up"))
    }
    found |= {"delta": draw(device, plan.dtype, plan.rows, model), "write": draw(device, plan.dtype, width, model)}
    segments = segments_of(plan.rows, plan.length, device, ragged=True)
    return {**found, "layout": Layout.of(segments, int(segments.max()) + 1)}


def timed(
    job: Job, shapes: dict[str, dict[str, Any]], device: torch.device, until: float,
    clock: Callable[[Callable[[], Any]], float],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield a row for each candidate and shape, until the time is over; one that does not run says why."""
    for config in job.candidates:
        for shape, given in shapes.items():
            if time.monotonic() > until:
                return
            row = {"kernel": job.name, "config": tuple(config), "shape": shape, "ms": math.nan, "why": ""}
            try:
                with configs.instead(job.table, device, job.row(config)):
                    row["ms"] = 1e3 * clock(lambda own=given: job.run(own))
            except Exception as error:  # whatever a compiler raises: too much shared memory, an unsupported tile
                row["why"] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            yield row


def ranked(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, float]]:
    """Return (config, geometric mean of its times), the fastest first, of those that were timed at every shape."""
    shapes, by = {row["shape"] for row in rows}, {}
    for row in rows:
        if math.isfinite(row["ms"]):
            by.setdefault(row["config"], {})[row["shape"]] = math.log(row["ms"])
    whole = {config: math.exp(sum(own.values()) / len(own)) for config, own in by.items() if own.keys() == shapes}
    return sorted(whole.items(), key=lambda pair: pair[1])


def chosen(job: Job, rows: Sequence[dict[str, Any]], device: torch.device, wrong: Callable[[], Any]) -> dict[str, Any]:
    """Return the fastest configuration that agrees with the reference, and how it stands to the present one."""
    order, kind = ranked(rows), type(job.candidates[0])
    times = dict(order)
    for config, ms in order:
        with configs.instead(job.table, device, job.row(kind(*config))):
            try:
                why = wrong()
            except Exception as error:  # it ran where it was timed, and does not at the shapes of the check
                why = f"{type(error).__name__}: {error}"
            if why:
                print(f"{job.name} {config} is fast and wrong: {why}")
                continue
        now = times.get(tuple(job.candidates[0]), math.nan)
        return {"kernel": job.name, "config": config, "ms": ms, "present over it": now / ms}
    return {"kernel": job.name, "config": None, "ms": math.nan, "present over it": math.nan}


def main() -> None:
    """Time the candidates of each kernel, and say which to write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240, help="for all three; what is left over is not timed")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if not configs.runs_kernels(torch.device("cuda")) or not torch.cuda.is_available():
        parser.exit(2, "the sweep times Triton kernels: it needs a GPU and triton\n")
    start, plan, device = time.monotonic(), PLANS["cuda"], torch.device("cuda", torch.cuda.current_device())
    if wrong := parity("cuda", plan.dtype):
        parser.exit(1, f"the kernels differ from the reference, nothing is timed: {', '.join(sorted(set(wrong)))}\n")
    shapes = {shape: inputs("cuda", shape) for shape in SHAPES}
    kernels = jobs(plan.dtype.itemsize, device)
    results: dict[str, Any] = {"environment": environment("cuda"), "chosen": [], "times": []}

    def clock(run: Callable[[], Any]) -> float:
        return seconds(run, "cuda").work

    for i, job in enumerate(kernels, start=1):
        rows = []
        for row in timed(
            job, shapes, device, start + options.seconds * i / len(kernels), lambda f: seconds(f, "cuda").work
        ):
            rows.append(row)
            print(f"{job.name} {row['config']} {row['shape']:14} {row['ms']:9.3f} ms {row['why']}", flush=True)
        results["times"] += rows
        results["chosen"].append(chosen(job, rows, device, lambda: parity("cuda", plan.dtype)))
        notes = (
            f"Chosen are rows of `configs.py` for {torch.cuda.get_device_name()!r}: to be written there where they are "
            "faster than the present ones by more than noise."
        )
        path = write_results("Sweep of configurations", results, notes, options.out, "sweep")
    print(table_of(results["chosen"]), path, sep="\n")


if __name__ == "__main__":
    main()
