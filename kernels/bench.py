"""Speed, bytes, FLOPs and memory of the kernels and of recording: `python kernels/bench.py [--device cpu]`.

First a parity gate against the reference; where it is red, nothing is timed. Then each kernel against the copy
and matrix-product ceilings measured in the same run, against eager PyTorch and `torch.compile`; then recording
against the same forward and activation backward without it. Writes results/<date>-<device>.json and .md; until the
whole models are measured too, the kernels' part is in files called -kernels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
WHOLE_MODELS = HERE.parent / "benchmarks" / "whole_models.py"
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from bench_timing import seconds  # noqa: E402
from neuronforget_kernels import Layout, fused_attribution, neuron_moments, swiglu_backward  # noqa: E402
from neuronforget_kernels.compiled import terms  # noqa: E402
from neuronforget_kernels.reference import neuron_moments as reference  # noqa: E402
from torch import Tensor  # noqa: E402


class Plan(NamedTuple):
    """What is run on a kind of device: rows, MLP shapes (d_model, d_mlp), element type, rows of an example."""

    rows: int
    shapes: dict[str, tuple[int, int]]
    dtype: torch.dtype
    length: int
    compile_for: tuple[str, ...]
    models: tuple[str, ...]


PLANS = {
    "cuda": Plan(
        65536,
        {"Llama-3-8B": (4096, 14336), "Qwen1.5-1.8B": (2048, 5504), "GPT-2": (768, 3072)},
        torch.bfloat16,
        512,
        ("Llama-3-8B", "Qwen1.5-1.8B", "GPT-2"),
        ("Qwen1.5-1.8B", "Llama-3-8B"),
    ),
    "cpu": Plan(4096, {"30M": (512, 2048), "narrow": (128, 512)}, torch.float32, 128, ("30M",), ("testbed", "30M")),
}


def plain(a: Tensor, g: Tensor, segments: Tensor, examples: int) -> list[Tensor]:
    """The statistics as one would write them, in fp32: what eager PyTorch and `torch.compile` are timed on."""
    added = terms(a, g, torch.zeros(a.shape[1], device=a.device))
    by_example = [torch.zeros((examples, a.shape[1]), device=a.device).index_add(0, segments, x) for x in added[:4]]
    return [*by_example, *(x.sum(0) for x in added[4:]), a.float().amax(0), a.float().amin(0)]


def draw(device: str, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, device=device, dtype=dtype, generator=generator)


def segments_of(rows: int, length: int, device: str, ragged: bool) -> Tensor:
    """Examples of `length` rows each, or of lengths between 1 and twice that."""
    if not ragged:
        return torch.arange(rows, device=device) // length
    lengths = torch.randint(1, 2 * length, (2 * rows // length + 9,), generator=torch.Generator().manual_seed(0))
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)[:rows].to(device)


def parity(device: str, dtype: torch.dtype) -> list[str]:
    """Return what differs from the reference; empty when all is well."""
    wrong = []
    rows, model, width = 1300, 128, 520
    a, g, up = (draw(device, dtype, rows, width, seed=seed) for seed in range(3))
    delta, write = draw(device, dtype, rows, model, seed=3), draw(device, dtype, width, model, seed=4)
    for ragged in (False, True):
        segments = segments_of(rows, 100, device, ragged)
        segments[::97] = -1
        examples = int(segments.max()) + 1
        layout = Layout.of(segments, examples)
        exact = delta.float() @ write.float().T
        cases = {
            "K1": (neuron_moments(a, g, layout), reference(a, g, segments, examples), 1e-5),
            "K2": (
                fused_attribution(delta, write, a, layout, fused=True),
                reference(a, exact, segments, examples),
                2e-2,
            ),
        }
        if device == "cpu":
            found = neuron_moments(a, g, layout, compiled=True)
            cases["K1 compiled"] = (found, cases["K1"][1], 1e-5)
        z, u = (x.double().requires_grad_() for x in (a, up))
        product = torch.nn.functional.silu(z) * u
        d_gate, d_up, piece = swiglu_backward(g, a, up, layout)
        cases["K3"] = (piece, reference(product.detach().float(), g, segments, examples), 1e-5)
        grads = torch.autograd.grad(product, (z, u), g.double())
        for got, want in zip((d_gate, d_up), grads, strict=True):
            if float((got.double() - want).abs().max()) > (1e-5 if dtype == torch.float32 else 4e-2):
                wrong.append("K3: a gradient")
        for kernel, (found, expected, rel) in cases.items():
            for got, want in zip(found[:2], expected[:2], strict=True):
                for name, values in got.items():
                    gap = (values.double() - want[name].double()).abs().max()
                    if not float(gap) <= rel * float(want[name].double().abs().max()):
                        wrong.append(f"{kernel}: {name} (ragged: {ragged})")
    return wrong


def ceilings(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Return bytes a second of a copy (read + write) and FLOPs a second of a matrix product."""
    size, side = (1 << 30, 8192) if device == "cuda" else (1 << 25, 1536)
    source = torch.ones(size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    x = draw(device, dtype, side, side)
    return {
        "copy": 2 * source.nbytes / seconds(lambda: target.copy_(source), device).work,
        "gemm": 2 * side**3 / seconds(lambda: x @ x, device).work,
    }


class Drawn(NamedTuple):
    """What the kernels are given: activations, gradients and second gate [row, neuron], and the two of K2's product."""

    a: Tensor
    g: Tensor
    up: Tensor
    delta: Tensor
    write: Tensor


def jobs(drawn: Drawn, segments: Tensor) -> list[tuple[str, Callable[[], Any], int, int]]:
    """Return every kernel and its rivals: name, call, bytes that it has to move, FLOPs of a matrix product."""
    a, g, up, delta, write = drawn
    examples = int(segments.max()) + 1
    layout = Layout.of(segments, examples)
    table, k3 = 5 * examples * a.shape[1] * 4, 5 * a.nbytes
    k1, k2 = a.nbytes + g.nbytes + table, delta.nbytes + write.nbytes + a.nbytes
    written, product = 2 * examples * a.shape[1] * 4, 2 * len(a) * write.numel()
    compiled = torch.compile(plain, dynamic=False)
    return [
        ("K1 neuron_moments", lambda: neuron_moments(a, g, layout), k1, 0),
        ("K1 eager", lambda: plain(a, g, segments, examples), k1, 0),
        ("K1 torch.compile", lambda: compiled(a, g, segments, examples), k1, 0),
        ("K1 compiled", lambda: neuron_moments(a, g, layout, compiled=True), k1, 0),
        ("K1 reference", lambda: reference(a, g, segments, examples), k1, 0),
        ("K2 fused_attribution", lambda: fused_attribution(delta, write, a, layout, fused=True), k2 + written, product),
        ("K2 GEMM + K1", lambda: neuron_moments(a, delta @ write.T, layout), k2 + written, product),
        ("K2 GEMM alone", lambda: delta @ write.T, k2, product),
        ("K3 swiglu_backward", lambda: swiglu_backward(g, a, up, layout), k3 + table, 0),
        ("K3 eager backward alone", lambda: _eager_backward(g, a, up), k3, 0),
    ]


def kernel_rows(device: str, plan: Plan, top: dict[str, float]) -> list[dict[str, Any]]:
    """Time every kernel and its rivals at every size; each row has bytes, FLOPs and the share of a ceiling."""
    rows: list[dict[str, Any]] = []
    for name, (model, width) in plan.shapes.items():
        a, g, up = (draw(device, plan.dtype, plan.rows, width, seed=seed) for seed in range(3))
        delta, write = draw(device, plan.dtype, plan.rows, model), draw(device, plan.dtype, width, model)
        drawn = Drawn(a, g, up, delta, write)
        for ragged in (False, True):
            torch.compiler.reset()  # else PyTorch's limit of kinds leaves the last ones uncompiled
            segments = segments_of(plan.rows, plan.length, device, ragged)
            skipped = {"K1 torch.compile": name not in plan.compile_for, "K1 compiled": device != "cpu"}
            skipped |= {"K1 reference": ragged or device != "cpu"}
            for what, run, size, flops in jobs(drawn, segments):
                if skipped.get(what):
                    continue
                spent = seconds(run, device)
                share = flops / spent.work / top["gemm"] if flops else size / spent.work / top["copy"]
                row = {"shape": name, "ragged": ragged, "what": what, "ms": spent.work * 1e3}
                row |= {"launch_ms": spent.launch * 1e3} if device == "cuda" else {}
                row |= {"bytes": size, "flops": flops, "percent_of_ceiling": 100 * share}
                rows.append(row | {"ceiling": "gemm" if flops else "copy"})
                print(f"{name:14} {'ragged' if ragged else 'even':6} {what:24} {row['ms']:10.3f} ms {share:7.1%}")
    return rows


def _eager_backward(g: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    return g * up * (sigmoid + silu * (1 - sigmoid)), g * silu


def whole_models(names: Sequence[str], device: str) -> dict[str, Any]:
    """Return what `benchmarks/whole_models.py` measures, in a process of its own: the kernels need no package."""
    if device == "cuda":
        torch.cuda.empty_cache()
    command = [sys.executable, str(WHOLE_MODELS), *names, "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Run everything; return 1 where a kernel differs from the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(PLANS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options, start = parser.parse_args(), time.monotonic()
    plan = PLANS[options.device]
    if wrong := parity(options.device, plan.dtype):
        print("the kernels differ from the reference, nothing is timed:", *sorted(set(wrong)), sep="\n  ")
        return 1
    top = ceilings(options.device, plan.dtype)
    results = {"environment": environment(options.device), "ceilings": top}
    results["kernels"] = kernel_rows(options.device, plan, top)
    notes = f"Ceilings: copy {top['copy'] / 1e9:.4g} GB/s, product {top['gemm'] / 1e12:.4g} TFLOP/s. Parity: green. "
    notes += "ms: the device's work; launch_ms: what the host needs to ask for it. " if options.device == "cuda" else ""
    part = f"{notes}Whole models: not measured (yet)."
    kept = write_results("Benchmark of the kernels", results, part, options.out, "kernels")
    whole = whole_models(plan.models, options.device)
    results |= {"recording": whole["recording"], "memory": whole["memory"]}
    results["environment"]["minutes"] = round((time.monotonic() - start) / 60, 1)
    path = write_results("Benchmark of the kernels", results, notes + whole["notes"], options.out)
    for suffix in (".md", ".json"):
        kept.with_suffix(suffix).unlink()
    print(table_of(results["recording"]), table_of(results["memory"]), path, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
