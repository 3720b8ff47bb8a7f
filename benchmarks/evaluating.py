"""What the likelihood metrics keep of a plain forward pass's throughput: `python benchmarks/evaluating.py`.

`nf.evaluation.measure` with all metrics, beside the model alone on the same batches, in turns. Writes results/
<date>-<device>-evaluating.json and .md; the exit status is 1 where the goal is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import torch  # noqa: E402
from bench_results import environment, table_of, write_results  # noqa: E402
from gauges import counted, in_turns, medians  # noqa: E402
from problems import SHAPES, problem  # noqa: E402

import neuronforget as nf  # noqa: E402
from neuronforget.evaluation.measuring import measure  # noqa: E402
from neuronforget.models import frozen  # noqa: E402

GOAL = 0.9  # metrics over forward passes
BATCHES = 8


def forward(lm: nf.LM, corpus: nf.Corpus, batch_size: int) -> None:
    """Run the model alone, on the batches that `measure` makes."""
    with frozen(lm), torch.no_grad():
        for batch in lm.batches(corpus, batch_size):
            lm.model(**batch.inputs, use_cache=False)


def jobs(lm: nf.LM, corpus: nf.Corpus, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    return {
        "forward": partial(forward, lm, corpus, batch_size),
        "metrics": partial(measure, lm, corpus, batch_size=batch_size),
        "one metric": partial(measure, lm, corpus, [nf.metrics.nll], batch_size=batch_size),
    }


def main() -> int:
    """Measure the models named; return 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="default: testbed and 30M; on a GPU all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--turns", type=counted, default=9)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(options.device), "evaluating": []}
    for name in options.models or (["testbed", "30M"] if options.device == "cpu" else list(SHAPES)):
        settings, (examples, tokens) = SHAPES[name]
        lm, corpus = problem(settings, BATCHES * examples, tokens // 2, tokens - tokens // 2, options.device)
        made = jobs(lm, corpus, examples)
        for job in made.values():
            job()  # the first pass of each counts for none
        spent = medians(in_turns(made, options.turns, options.device))
        for job in ("metrics", "one metric"):
            ratio = spent["forward"] / spent[job]
            results["evaluating"].append(
                {"model": name, "batches": f"{BATCHES}x{examples}x{tokens}", "what": job, "s": spent[job]}
                | {"s of forward": spent["forward"], "throughput kept": ratio, "goal": GOAL}
                | {"met": "yes" if ratio >= GOAL else "no"}
            )
    notes = (
        "`measure` with its five metrics, and with the loss alone, against plain forward passes on the same batches, "
        f"half of each example's tokens being answer. Median of {options.turns} turns; both include making the batches."
    )
    print(table_of(results["evaluating"]))
    print(write_results("Benchmark of evaluating", results, notes, options.out, "evaluating"))
    return 1 if any(row["met"] == "no" for row in results["evaluating"]) else 0


if __name__ == "__main__":
    sys.exit(main())
