"""Our calls against their peers, on the same model and examples in one process: `python benchmarks/peers.py`.

Needs captum beside the package: `pip install -r benchmarks/requirements.txt`. Each quantity is first computed by all;
where one differs from ours no ratio is given and the exit status is 1. Then all are timed in turns. Recording's peers
run twice: as their guides do it, and spared the gradients of weights as ours is. Writes results/<date>-<device>.json
and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import rivals  # noqa: E402
from bench_results import PACKAGES, environment, table_of, write_results  # noqa: E402
from gauges import counted, in_turns, medians  # noqa: E402
from problems import SHAPES, problem  # noqa: E402
from torch import Tensor  # noqa: E402

import neuronforget as nf  # noqa: E402
from neuronforget.corpora import Batch  # noqa: E402
from neuronforget.models import activations_only  # noqa: E402

#: Largest difference from ours, relative to a duel's scale.
TOLERANCE = 1e-5
STEPS = 20
#: A model of which the peers integrate and ablate every neuron within minutes.
SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 2048}  # fmt: skip


@dataclass(frozen=True)
class Duel:
    """One quantity on one problem: our call, its peers', how many times faster ours is to be (None: no goal).

    Differences are relative to `scale` (None: the largest value of ours).
    """

    quantity: str
    problem: str
    ours: Callable[[], Tensor]
    peers: Mapping[str, Callable[[], Tensor]]
    goal: float | None = None
    scale: float | None = None


def batches_of(lm: nf.LM, corpus: nf.Corpus, size: int) -> list[Batch]:
    """Return the corpus as the peers get it: tokenised, in batches."""
    return list(lm.batches(corpus, size))


def recording(lm: nf.LM, corpus: nf.Corpus, size: int) -> Duel:
    """Grad x act of all neurons; ours records all other statistics too."""
    given = batches_of(lm, corpus, size)
    ours = partial(_scored, lm, corpus, nf.scores.grad_x_act, batch_size=size)
    calls = {"TransformerLens": rivals.lens_cache, "nnsight": rivals.nnsight_trace, "captum": rivals.captum_layers}

    def run(call: Callable[..., Tensor], frozen: bool) -> Tensor:
        with activations_only(lm) if frozen else nullcontext():
            return call(lm, given)

    peers = {
        f"{name}{', weights frozen' if frozen else ''}": partial(run, call, frozen)
        for name, call in calls.items()
        for frozen in ((False, True) if name != "captum" else (False,))  # captum asks for no weight's gradient
    }
    return Duel("grad_x_act", _size(lm, given), ours, peers)


def integration(lm: nf.LM, corpus: nf.Corpus) -> Duel:
    """Integrated gradients of the first answer token's probability along the last prompt position's activations."""
    given = batches_of(lm, corpus, len(corpus))
    peers = {
        "captum": partial(rivals.captum_integrated, lm, given, STEPS),
        "plain torch, layer by layer": partial(rivals.plain_integrated, lm, given, STEPS),
    }
    return Duel(
        "integrated", _size(lm, given), partial(_scored, lm, corpus, nf.scores.integrated, steps=STEPS), peers, 10
    )


def ablation(lm: nf.LM, corpus: nf.Corpus) -> Duel:
    """The loss change of zeroing each neuron at the last prompt position."""
    given = batches_of(lm, corpus, len(corpus))
    stacked = partial(rivals.stacked_ablation, lm, given)
    ours = partial(_scored, lm, corpus, nf.scores.exact, position=-1)
    peers = {"plain torch, neurons stacked": stacked}
    # A difference of two losses is rounded as the losses are, whatever its own size: 1 nat is the scale.
    return Duel("exact, one position", _size(lm, given), ours, peers, 10, scale=1.0)


def _size(lm: nf.LM, given: list[Batch]) -> str:
    examples, (layers, width) = sum(len(batch.index) for batch in given), lm.shape
    return f"{layers} layers of {width} neurons, {examples} examples of {given[0].input_ids.shape[1]} tokens"


def _scored(lm: nf.LM, corpus: nf.Corpus, score: Any, **settings: Any) -> Tensor:
    return nf.attribute(lm, corpus, score=score, progress=False, **settings).values


def fight(duel: Duel, turns: int) -> list[dict[str, Any]]:
    """Return a row for ours and for each peer: seconds, difference from ours, how many times slower, goal met.

    A call that differs by more than the tolerance is not timed: its figures are None.
    """
    expected = duel.ours().double()
    scale = float(expected.abs().max()) if duel.scale is None else duel.scale
    gaps = {name: float((peer().double() - expected).abs().max()) / scale for name, peer in duel.peers.items()}
    agree = {name: peer for name, peer in duel.peers.items() if gaps[name] <= TOLERANCE}  # NaN agrees with nothing
    middle = medians(in_turns({"ours": duel.ours, **agree}, turns))
    rows = [_row(duel, "ours", 0.0, middle["ours"], None)]
    for name, gap in gaps.items():
        spent = middle.get(name)
        rows.append(_row(duel, name, gap, spent, spent / middle["ours"] if spent is not None else None))
    return rows


def _row(duel: Duel, call: str, gap: float, seconds: float | None, ratio: float | None) -> dict[str, Any]:
    met = None if duel.goal is None or ratio is None else "yes" if ratio >= duel.goal else "no"
    what = {"quantity": duel.quantity, "problem": duel.problem, "call": call}
    goal = duel.goal if call != "ours" else None
    return {**what, "gap": gap, "seconds": seconds, "times_ours": ratio, "goal": goal, "met": met}


def duels() -> list[Duel]:
    """Return what the benchmark compares: recording on the 30M model, the others on small ones."""
    settings, (examples, tokens) = SHAPES["30M"]
    large = problem(settings, 2 * examples, tokens // 2, tokens // 2)
    small = problem(SMALL, 2, 24, 1)
    deeper = problem({**SMALL, "num_hidden_layers": 6}, 4, 32, 1)
    # What ours saves grows with depth and length, so that it is shown at two sizes.
    return [recording(*large, examples), integration(*small), integration(*deeper), ablation(*small)]


def main() -> int:
    """Run everything; return 1 where a peer's result differs from ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=counted, default=3, help="timed calls of each, of which the median is given")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if find_spec("captum") is None:
        print("captum is not installed: pip install -r benchmarks/requirements.txt", file=sys.stderr)
        return 2
    results: dict[str, Any] = {"environment": environment("cpu", (*PACKAGES, "transformer-lens", "nnsight", "captum"))}
    results["peers"] = []
    for duel in duels():
        results["peers"] += fight(duel, options.turns)
        print(table_of(results["peers"][-len(duel.peers) - 1 :]), flush=True)
    differ = [f"{row['quantity']}: {row['call']}" for row in results["peers"] if row["seconds"] is None]
    notes = (
        f"Median seconds of {options.turns} calls in turns; `times_ours` is a peer's time over ours. `gap`: largest "
        f"difference from ours, of the largest value (exact: in nats); above {TOLERANCE:g} nothing is timed. Those: "
        f"{'; '.join(differ) or 'none'}. `goal`: what `times_ours` is to reach; grad_x_act has none."
    )
    print(write_results("Benchmark against peers", results, notes, options.out))
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
