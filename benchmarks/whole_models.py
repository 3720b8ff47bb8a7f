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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

#: Name -> settings of a Llama of that shape, and examples and tokens of a batch.
SHAPES: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
    "testbed": (
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 2000},
        (64, 12),
    ),
    "30M": (
        {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 8, "vocab_size": 8192},
        (4, 128),
    ),
    "Qwen1.5-1.8B": (
        {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
         "num_key_value_heads": 16, "vocab_size": 151936},
        (8, 512),
    ),
    "Llama-3-8B": (
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256},
        (8, 512),
    ),
}  # fmt: skip


def build(name: str, device: str) -> tuple[Any, Any]:
    """Return the model as an LM, and a batch of random tokens whose second half is the answer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from neuronforget.corpora import Batch
    from neuronforget.models import LM

    settings, (examples, tokens) = SHAPES[name]
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**settings, max_position_embeddings=tokens)).eval()
    finally:
        torch.set_default_dtype(previous)
    ids = torch.randint(0, settings["vocab_size"], (examples, tokens), device=device)
    answer = torch.zeros_like(ids, dtype=torch.bool)
    answer[:, tokens // 2 :] = True
    ends = torch.full((examples,), tokens // 2 - 1, device=device)
    return LM(model), Batch(ids, torch.ones_like(ids), answer, ends, tuple(range(examples)))


def record_batches(lm: Any, batch: Any, count: int) -> None:
    """Record `count` batches as `record` does."""
    from neuronforget.models import activations_only
    from neuronforget.moments import merge
    from neuronforget.recording import record_batch
    from neuronforget.taps import open_tap

    tap = open_tap(lm, "torch_hooks")
    with activations_only(lm):
        merge(record_batch(tap, lm, batch) for _ in range(count))


def pass_alone(lm: Any, batch: Any, count: int) -> None:
    """The same forward and activation backward, nothing recorded."""
    from neuronforget.likelihood import answer_nll
    from neuronforget.models import activations_only
    from neuronforget.taps import open_tap

    tap = open_tap(lm, "torch_hooks")
    with activations_only(lm):
        for _ in range(count):
            out = tap(batch.inputs)
            torch.autograd.grad(answer_nll(out.logits, batch).sum(), out.acts[min(out.acts)])


def full_backward(lm: Any, batch: Any, count: int) -> None:
    """A training step's forward and backward, without an optimiser."""
    from neuronforget.likelihood import answer_nll

    for _ in range(count):
        answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).sum().backward()
        lm.model.zero_grad()


JOBS = {"record": record_batches, "alone": pass_alone, "full": full_backward}
MEMORY_NOTE = (
    "Memory: peaks of `tensors` alive; on CPU also what the job adds to its process, `returning` where malloc hands "
    "freed memory back at once (MALLOC_TRIM_THRESHOLD_=0), else with what malloc keeps, which varies from run to run."
)
#: Processes that time a model on CPU; how long one takes turns (seconds), and how many turns at least.
PROCESSES, SECONDS, TURNS = 7, 4.0, 9
#: What memory is measured of: a job and how many batches it runs.
PEAKS = (("record", 2), ("record", 20), ("full", 2), ("full", 20))


def measure(name: str, device: str) -> dict[str, Any]:
    """Return the row of one model: median milliseconds of a batch with and without recording, and their ratio.

    On CPU it is the process with the middle ratio of `PROCESSES`; `lowest` and `highest` are those of the others.
    """
    if device == "cuda":
        return measure_here(name, device)
    found = [_apart(name, "--time") for _ in range(PROCESSES)]
    found.sort(key=lambda row: row["ratio"])
    return found[PROCESSES // 2] | {"lowest": found[0]["ratio"], "highest": found[-1]["ratio"]}


def measure_here(name: str, device: str) -> dict[str, Any]:
    """Return one process' row of one model."""
    lm, batch = build(name, device)
    times: dict[str, list[float]] = {"record": [], "alone": []}
    for job in times:
        JOBS[job](lm, batch, 2)
    begun = time.perf_counter()
    while time.perf_counter() - begun < SECONDS or len(times["alone"]) < TURNS:
        for job, spent in times.items():  # in turns, so that a busy neighbour slows both
            _wait(device)
            start = time.perf_counter()
            JOBS[job](lm, batch, 1)
            _wait(device)
            spent.append(time.perf_counter() - start)
    middle = {job: median(spent) for job, spent in times.items()}
    row: dict[str, Any] = {"model": name, "batch": "x".join(map(str, batch.input_ids.shape))}
    row |= {f"{job}_ms": spent * 1e3 for job, spent in middle.items()}
    return row | {"ratio": middle["record"] / middle["alone"]}


def memory(name: str, device: str) -> list[dict[str, Any]]:
    """Return a row for each job, its peaks in MB; on a GPU with the weights, on CPU without them (Linux alone)."""
    lm, batch = build(name, device) if device == "cuda" else (None, None)
    rows = []
    for job, count in PEAKS:
        row: dict[str, Any] = {"model": name, "job": job, "batches": count}
        if device == "cuda":
            row["tensors_mb"] = _peak_here(lm, batch, job, count)
        else:
            row["tensors_mb"] = _peak_apart(name, job, count, "tensors")
            row["process_returning_mb"] = _peak_apart(name, job, count, "process", MALLOC_TRIM_THRESHOLD_="0")
            row["process_mb"] = _peak_apart(name, job, count, "process")
        rows.append(row)
    return rows


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_here(lm: Any, batch: Any, job: str, count: int) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    JOBS[job](lm, batch, count)
    return torch.cuda.max_memory_allocated() / 1e6


def _peak_apart(name: str, job: str, count: int, what: str, **environment: str) -> float:
    """What a job adds to a fresh process that has loaded the model, at its peak."""
    return float(_apart(name, "--peak", job, str(count), what, **environment))


def _apart(name: str, *options: str, **environment: str) -> Any:
    """What this script prints last with these options, in a process of its own."""
    command = [sys.executable, __file__, name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


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
