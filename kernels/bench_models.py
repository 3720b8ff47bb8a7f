"""The part of the benchmark that runs whole models: what recording costs beside the pass that it rides on.

Random weights of the real shapes. Time: recording against the same forward and activation backward without it.
Memory: its peak against a full forward and backward, and with ten times as many batches.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]

#: Name -> settings of a Llama of that shape, and examples and tokens of a batch.
SHAPES: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
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
    from neuronforget.recording import _record_batch
    from neuronforget.taps import open_tap

    tap, total = open_tap(lm, "torch_hooks"), None
    with activations_only(lm):
        for _ in range(count):
            part = _record_batch(tap, lm, batch, "all", False)
            total = part if total is None else total + part


def pass_alone(lm: Any, batch: Any, count: int) -> None:
    """The same forward and activation backward, nothing recorded."""
    from neuronforget.models import activations_only
    from neuronforget.recording import answer_nll
    from neuronforget.taps import open_tap

    tap = open_tap(lm, "torch_hooks")
    with activations_only(lm):
        for _ in range(count):
            out = tap(batch.inputs)
            torch.autograd.grad(answer_nll(out.logits, batch).sum(), out.acts[min(out.acts)])


def full_backward(lm: Any, batch: Any, count: int) -> None:
    """A training step's forward and backward, without an optimiser."""
    from neuronforget.recording import answer_nll

    for _ in range(count):
        answer_nll(lm.model(**batch.inputs, use_cache=False).logits, batch).sum().backward()
        lm.model.zero_grad()


JOBS = {"record": record_batches, "alone": pass_alone, "full": full_backward}


def measure(name: str, device: str) -> dict[str, Any]:
    """Return the row of one model: median milliseconds of a batch, their ratio, and peaks in MB.

    On a GPU a peak holds the weights; on CPU it is what the job adds to the process (Linux alone).
    """
    lm, batch = build(name, device)
    times: dict[str, list[float]] = {"record": [], "alone": []}
    for job in times:
        JOBS[job](lm, batch, 1)
    for _ in range(7 if device == "cuda" else 5):  # in turns, so that a busy neighbour slows both
        for job, spent in times.items():
            _wait(device)
            start = time.perf_counter()
            JOBS[job](lm, batch, 1)
            _wait(device)
            spent.append(time.perf_counter() - start)
    middle = {job: sorted(spent)[len(spent) // 2] for job, spent in times.items()}
    row: dict[str, Any] = {"model": name, "batch": "x".join(map(str, batch.input_ids.shape))}
    row |= {f"{job}_ms": spent * 1e3 for job, spent in middle.items()}
    row["ratio"] = middle["record"] / middle["alone"]
    for key, job, count in (("record", "record", 2), ("record_10x", "record", 20), ("full", "full", 2)):
        row[f"{key}_peak_mb"] = _peak_here(lm, batch, job, count) if device == "cuda" else _peak_apart(name, job, count)
    return row


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_here(lm: Any, batch: Any, job: str, count: int) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    JOBS[job](lm, batch, count)
    return torch.cuda.max_memory_allocated() / 1e6


def _peak_apart(name: str, job: str, count: int) -> float:
    """What a job adds to a fresh process that has loaded the model, at its peak."""
    done = subprocess.run([sys.executable, __file__, name, job, str(count)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _memory(line: str) -> float:
    """A figure of this process in MB. `getrusage` will not do: a child begins with its parent's peak."""
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) for row in status.splitlines() if row.startswith(line)) / 1e3


if __name__ == "__main__":
    model_name, chosen, batches = sys.argv[1:]
    loaded = build(model_name, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _memory("VmRSS")
    JOBS[chosen](*loaded, int(batches))
    print(_memory("VmHWM") - before)
