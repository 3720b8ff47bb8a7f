"""Fine-tuning 1% of the neurons against the whole model, same batches: `python benchmarks/training.py`.

Both by `nf.erase.finetune`, on random weights of a real shape. Time: between the optimiser's steps, in turns.
Optimiser state: counted from its tensors. Memory: the peak of the whole call. Writes results/<date>-<device>-training
.json and .md; the exit status is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import torch  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from gauges import counted, gpu_peak, medians, tensor_peak, wait  # noqa: E402
from problems import SHAPES, problem  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

import neuronforget as nf  # noqa: E402

SHARE = 0.01  # of each layer, drawn at random: backward has to go down to the lowest layer
#: Quantity -> what targeted over full is to be at most (memory: to be below).
GOALS = {"ms per step": 0.75, "optimiser state, MB": 0.02, "peak of tensors, MB": 1.0}
STEPS = 4  # of one timed call: all but the first count, which also computes what the loss keeps


@dataclass
class Watch:
    """Seconds between the steps of one training, and the bytes of its optimiser's state after the last."""

    device: str
    ends: list[float] = field(default_factory=list)
    state: int = 0

    @property
    def seconds(self) -> list[float]:
        """Seconds of every step but the first."""
        return [later - earlier for earlier, later in zip(self.ends, self.ends[1:], strict=False)]

    def step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Note the end of a step."""
        wait(self.device)
        self.ends.append(time.perf_counter())
        held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        self.state = sum(value.numel() * value.element_size() for value in held)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block every optimiser's steps are noted."""
        handle = register_optimizer_step_post_hook(self.step)
        try:
            yield
        finally:
            handle.remove()


def trainings(
    lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus, share: float = SHARE
) -> dict[str, Callable[[int], nf.Edit]]:
    """Return both trainings, by name, as functions of the number of steps."""
    layers, width = lm.shape
    values = torch.rand(layers, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = nf.select.per_layer(nf.Scores(values, "random", "large", tuple(s.layer for s in lm.sites)), share)

    def train(steps: int, neurons: nf.Neurons | None) -> nf.Edit:
        return nf.erase.finetune(
            lm, forget, retain, neurons=neurons, steps=steps, batch_size=len(forget), progress=False
        )

    return {"targeted": partial(train, neurons=chosen), "full": partial(train, neurons=None)}


def compared(jobs: dict[str, Callable[[int], nf.Edit]], turns: int, device: str) -> list[dict[str, Any]]:
    """Return a row for each quantity: targeted, full, their ratio, its goal and whether it is met."""
    spent: dict[str, list[float]] = {name: [] for name in jobs}
    state = {}
    for _ in range(turns):  # in turns, so that a busy neighbour slows both
        for name, job in jobs.items():
            watch = Watch(device)
            with watch.on():
                job(STEPS)
            spent[name] += watch.seconds
            state[name] = watch.state / 1e6
    peak = gpu_peak if device == "cuda" else tensor_peak
    found = {
        "ms per step": {name: seconds * 1e3 for name, seconds in medians(spent).items()},
        "optimiser state, MB": state,
        "peak of tensors, MB": {name: peak(partial(job, 2)) for name, job in jobs.items()},
    }
    rows = []
    for quantity, row in found.items():
        ratio, goal = row["targeted"] / row["full"], GOALS[quantity]
        met = ratio < goal if goal == 1 else ratio <= goal
        rows.append({"quantity": quantity, **row, "ratio": ratio, "goal": goal, "met": "yes" if met else "no"})
    return rows


def main() -> int:
    """Measure the models named; return 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="default: 30M; on a GPU Qwen1.5-1.8B")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turns", type=counted, default=5, help=f"calls of each, of {STEPS} steps")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(options.device), "training": []}
    for name in options.models or ["30M" if options.device == "cpu" else "Qwen1.5-1.8B"]:
        settings, (examples, tokens) = SHAPES[name]
        lm, both = problem(settings, 2 * examples, tokens // 2, tokens - tokens // 2, options.device)
        forget, retain = (
            replace(both, examples=both.examples[:examples]),
            replace(both, examples=both.examples[examples:]),
        )
        what = {"model": name, "batch": f"2x{examples}x{tokens}"}
        rows = compared(trainings(lm, forget, retain), options.turns, options.device)
        results["training"] += [{**what, **row} for row in rows]
    notes = (
        f"`finetune` by NPO on {SHARE:.0%} of each layer's neurons (random ones) against every parameter; a batch is "
        f"forget and retain examples of so many tokens. Median of {options.turns * (STEPS - 1)} steps in turns; peaks "
        f"are of the whole call{', weights included' if options.device == 'cuda' else ', beside the weights'}. "
        "`ratio`: targeted over full; `goal`: what it is to be at most, for memory below."
    )
    print(table_of(results["training"]))
    print(write_results("Benchmark of training", results, notes, options.out, "training"))
    return 1 if any(row["met"] == "no" for row in results["training"]) else 0


if __name__ == "__main__":
    sys.exit(main())
