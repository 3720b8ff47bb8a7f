"""Which score finds the neurons that hold a set of facts? Every score against ground truth, over several seeds.

grafted    facts trained into fresh neurons, hidden among the others: the true ones are known.
planted    facts trained into 1% of the value vectors, whose norms give them away; or into 12.5%, with norms kept.
ordinary   no location is known: scores are held against `exact`, the ablation of every neuron alone.

python analyses/where_knowledge_lives.py --out where            # all of it; a killed run goes on where it was
python analyses/where_knowledge_lives.py --out where --seeds 0  # one seed
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t

import neuronforget as nf
from neuronforget.measuring import measure
from neuronforget.metrics import exact_match, nll
from neuronforget.metrics import localisation as found
from neuronforget.metrics.subsets import subset_effects
from neuronforget.recording import write_norms
from neuronforget.runs import environment, whole_file
from neuronforget.scores import Scores, runs_model

#: Half the people of the default testbed, and half its batches, to afford five seeds.
PEOPLE, HALF = 50, partial(nf.testbed.Shape, batch=128)
#: Name -> kind of testbed and its settings. Two people's facts fit into 1% of the value vectors where norms are free,
#: into 12.5% where they are kept.
BEDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grafted": ("grafted", {"forget_people": 5, "shape": HALF()}),
    "planted": ("planted", {"forget_people": 2, "shape": HALF(planted=5)}),
    "planted, norms kept": ("planted", {"forget_people": 2, "shape": HALF(planted=64, keep_norms=True)}),
    "ordinary": ("ordinary", {"forget_people": 5, "shape": HALF()}),
}
SHARE = 0.01  # of each layer: the k of recall@1%, as in the published figure for planted value vectors
SHORTLIST = 0.1
SETS, SET_SHARE = 60, 0.05  # random sets, and the share of all neurons in each


@runs_model
def shortlist_exact(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus | None = None, **settings: Any) -> Scores:
    """Two stages: the top tenth by grad_x_act, each ablated exactly; all others are put at 0."""
    first = nf.attribute(lm, forget, retain, score=nf.scores.grad_x_act, **settings)
    chosen = nf.select.top(first, SHORTLIST)
    return nf.scores.exact(lm, forget, retain, neurons=chosen, **settings)


@runs_model
def write_norm(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus | None = None, **settings: Any) -> Scores:
    """A control that sees no data: the norm of the write weights."""
    return Scores(write_norms(lm), "write norm (no data)", "large", tuple(site.layer for site in lm.sites))


@runs_model
def chance(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus | None = None, **settings: Any) -> Scores:
    """A control that knows nothing: random numbers."""
    values = torch.rand(lm.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Scores(values, "random numbers", "none", tuple(site.layer for site in lm.sites))


SCORES: dict[str, Callable[..., Scores]] = {
    "exact": nf.scores.exact,
    "grad_x_act, then exact": shortlist_exact,
    "exact, one position": partial(nf.scores.exact, position=-1),
    **{
        name: getattr(nf.scores, name)
        for name in (
            "grad_x_act relp integrated direct gradient_drop mean_patch snip fisher value_fisher hard_concrete "
            "slimming activation_gap activation_ratio activation_norm activation_entropy expert wanda"
        ).split()
    },
    "write norm": write_norm,
    "random": chance,
}


def rows_of(bed: nf.testbed.Testbed, scores: Mapping[str, Callable[..., Scores]] = SCORES) -> list[dict[str, Any]]:
    """Return one row for each score: seconds for an example, recall against the true neurons, agreement with exact.

    Retain is as many examples as forget. The yardsticks are of the same two corpora (effects are forget minus retain):
    `exact` of every neuron alone, and the joint ablation of random sets.
    """
    retain = bed.retain.head(len(bed.forget))

    def effect(lm: nf.LM) -> np.ndarray:
        forgotten, kept = (measure(lm, corpus, [nll])["nll"] for corpus in (bed.forget, retain))
        return forgotten - kept

    rows, yardstick = [], nf.attribute(bed.lm, bed.forget, retain, score=nf.scores.exact, progress=False)
    subsets = subset_effects(bed.lm, effect, size=SET_SHARE, n=SETS, progress=False)
    for name, score in scores.items():
        start = time.perf_counter()
        values = nf.attribute(bed.lm, bed.forget, retain, score=score, progress=False)
        spent = time.perf_counter() - start
        row = {"score": name, "seconds per example": spent / (len(bed.forget) + len(retain))}
        row["spearman"] = found.spearman(values, yardstick)[0]
        row["sets"] = subsets.agreement(values)[0]
        row["captured@1%"] = found.captured_effect(values, yardstick, [SHARE])[0]["share"]
        if bed.truth is not None:
            row["recall@1%"] = nf.select.per_layer(values, SHARE).recall(bed.truth)
            if bed.info["kind"] == "grafted":  # what the demo selects, and as many as were grafted
                row["recall@5%"] = nf.select.per_layer(values, 0.05).recall(bed.truth)
            row["recall@k"] = found.recall_curve(values, bed.truth, [len(bed.truth)])[0]["recall"]
            row["auroc"] = found.auroc(values, bed.truth)[0]
        rows.append(row)
    return rows


def facts_of(bed: nf.testbed.Testbed) -> dict[str, Any]:
    """Return what the bed knows: exact match of the model and of its gold twin, and what is known of the neurons."""
    facts: dict[str, Any] = {}
    for model, lm in (("model", bed.lm), ("gold", bed.gold)):
        for corpus in (bed.forget, bed.retain):
            known = measure(lm, corpus, [exact_match])["exact_match"].mean()
            facts[f"{model}, {corpus.name.split('-')[-1]}"] = float(known)
    if bed.truth is not None:
        most = sum(min(math.ceil(SHARE * bed.truth.width), int(n)) for n in bed.truth.mask().sum(1))
        facts |= {"true": len(bed.truth), "dead": len(bed.info["dead"]), "best recall@1%": most / len(bed.truth)}
        facts |= {f"detector {name}": bed.info["detectors"][name][0] for name in ("write norm", "combined")}
    return facts


def mean_interval(values: Sequence[float]) -> str:
    """Return the mean over seeds and its 95% interval by Student's t."""
    return f"{np.mean(values):.2f} ± {half_interval(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def half_interval(values: Sequence[float]) -> float:
    """Return half the width of the 95% interval of a mean, by Student's t; of one value alone NaN."""
    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def tables(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the Markdown tables of all beds: `done` is "kind seed" -> {"rows", "facts"}."""
    parts = []
    for kind in BEDS:
        beds = [bed for key, bed in done.items() if key.rsplit(" ", 1)[0] == kind]
        if not beds:
            continue
        names = [
            n
            for n in ("recall@1%", "recall@5%", "recall@k", "auroc", "spearman", "sets", "captured@1%")
            if n in beds[0]["rows"][0]
        ]
        lines = [f"## {kind} ({len(beds)} seeds)", ""]
        facts = [f"{name} {mean_interval([bed['facts'][name] for bed in beds])}" for name in beds[0]["facts"]]
        lines += ["; ".join(facts) + ".", "", f"| score | ms per example | {' | '.join(names)} |"]
        lines += ["|---" * (len(names) + 2) + "|"]
        for rows in zip(*(bed["rows"] for bed in beds), strict=True):
            cells = [mean_interval([row[name] for row in rows]) for name in names]
            spent = np.median([row["seconds per example"] for row in rows]) * 1e3
            lines.append(f"| {rows[0]['score']} | {spent:.1f} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def keep(path: Path, **what: Any) -> None:
    """Write what was measured so far, with the environment, at once: a killed run leaves a whole file."""
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps({"environment": environment(), **what}))


def main() -> None:
    """Make the beds, score every neuron, write `rows.json` (as the work goes on) and `tables.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", choices=list(BEDS), default=list(BEDS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "rows.json"
    done: dict[str, Any] = json.loads(file.read_text())["beds"] if file.is_file() else {}
    for seed in options.seeds:
        for kind in options.kinds:
            if f"{kind} {seed}" in done:
                continue
            which, settings = BEDS[kind]
            bed = nf.testbed.people(which, seed=seed, people=PEOPLE, **settings)
            done[f"{kind} {seed}"] = {"rows": rows_of(bed), "facts": facts_of(bed)}
            keep(file, beds=done)
            print(f"{kind}, seed {seed}: done", flush=True)
    (options.out / "tables.md").write_text(tables(done))
    print(tables(done))


if __name__ == "__main__":
    main()
