"""Which score finds the neurons that hold a set of facts? Every score against ground truth, over several seeds.

grafted    facts trained into fresh neurons, hidden among the others: the true ones are known.
planted    facts trained into 1% of the value vectors, whose norms give them away; or into 12.5%, with norms kept.
ordinary   no location is known: scores are held against `exact`, the ablation of every neuron alone.
own model  the same, of a checkpoint and corpora of one's own; of several seeds each draws half of the examples, and
           the intervals take account of what the halves share.

python analyses/where_knowledge_lives.py --out where                    # seed 0
python analyses/where_knowledge_lives.py --out where --seeds 0 1 2 3 4  # five; a killed run goes on where it was
python analyses/where_knowledge_lives.py --out where --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from cells import cell, many, table
from running import asking, claim, in_one_line, keep, kept, parsed
from sources import BEDS, OWN, Source, bed_of, own_source, shortlist_exact
from where_figure import picture

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match, nll
from neuronforget.metrics import localisation as found
from neuronforget.metrics.subsets import subset_effects
from neuronforget.recording import write_norms
from neuronforget.scores import Scores, runs_model

SHARE = 0.01  # of each layer: the k of recall@1%, as in the published figure for planted value vectors
SETS, SET_SHARE = 60, 0.05  # random sets, and the share of all neurons in each
COLUMNS = ("recall@1%", "recall@5%", "recall@k", "auroc", "spearman", "sets", "captured@1%")


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


def rows_of(source: Source, scores: Mapping[str, Callable[..., Scores]] = SCORES) -> list[dict[str, Any]]:
    """Return one row for each score: seconds for an example, recall against the true neurons, agreement with exact.

    Retain is as many examples as forget. The yardsticks are of the same two corpora (effects are forget minus retain):
    `exact` of every neuron alone, and the joint ablation of random sets. A score that cannot be had has its reason.
    """
    lm, truth = source.lm, source.truth

    def effect(lm: nf.LM) -> np.ndarray:
        forgotten, retained = (measure(lm, corpus, [nll])["nll"] for corpus in (source.forget, source.shown))
        return forgotten - retained

    rows: list[dict[str, Any]] = []
    yardstick = source.scored(nf.scores.exact)
    subsets = subset_effects(lm, effect, size=SET_SHARE, n=SETS, progress=False)
    for name, score in scores.items():
        start = time.perf_counter()
        try:
            values = source.scored(score)
        except nf.InputError as error:
            rows.append({"score": name, "failed": str(error)})
            continue
        spent = time.perf_counter() - start
        row = {"score": name, "seconds per example": spent / (len(source.forget) + len(source.shown))}
        row["spearman"] = found.spearman(values, yardstick)[0]
        row["sets"] = subsets.agreement(values)[0]
        row["captured@1%"] = found.captured_effect(values, yardstick, [SHARE])[0]["share"]
        if truth is not None:
            row["recall@1%"] = nf.select.per_layer(values, SHARE).recall(truth)
            if source.info["kind"] == "grafted":  # what the demo selects, and as many as were grafted
                row["recall@5%"] = nf.select.per_layer(values, 0.05).recall(truth)
            row["recall@k"] = found.recall_curve(values, truth, [len(truth)])[0]["recall"]
            row["auroc"] = found.auroc(values, truth)[0]
        rows.append(row)
    return rows


def facts_of(source: Source) -> dict[str, Any]:
    """Return exact match of the model and of its gold twin, and what a testbed knows of its neurons."""
    facts: dict[str, Any] = {}
    for model, lm in source.references.items():
        for name, corpus in (("forget", source.forget), ("retain", source.retain)):
            known = measure(lm, corpus, [exact_match])["exact_match"].mean()
            facts[f"{'model' if model == 'untouched' else model}, {name}"] = float(known)
    if (truth := source.truth) is not None:
        most = sum(min(math.ceil(SHARE * truth.width), int(n)) for n in truth.mask().sum(1))
        facts |= {"true": len(truth), "dead": len(source.info["dead"]), "best recall@1%": most / len(truth)}
        facts |= {f"detector {name}": source.info["detectors"][name][0] for name in ("write norm", "combined")}
    return facts


def tables(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the Markdown tables of all kinds: `done` is "kind seed" -> {"rows", "facts"}."""
    parts = []
    for kind in dict.fromkeys(key.rsplit(" ", 1)[0] for key in done):
        beds = [bed for key, bed in done.items() if key.rsplit(" ", 1)[0] == kind]
        names = [n for n in COLUMNS if n in beds[0]["rows"][0]]
        shown = partial(cell, drawn=max(bed.get("drawn", 0.0) for bed in beds) if len(beds) > 1 else 0.0)
        facts = "; ".join(f"{name} {shown([bed['facts'][name] for bed in beds])}" for name in beds[0]["facts"])
        lines, failed = [], []
        for rows in zip(*(bed["rows"] for bed in beds), strict=True):
            if reason := next((row["failed"] for row in rows if "failed" in row), None):
                failed.append(f"- {rows[0]['score']}: {reason}")
                continue
            spent = np.median([row["seconds per example"] for row in rows]) * 1e3
            lines.append([rows[0]["score"], f"{spent:.1f}", *(shown([row[name] for row in rows]) for name in names)])
        head = f"## {kind} ({many(len(beds))})\n\n{facts}.\n\n"
        parts.append(head + table(["score", "ms per example", *names], lines))
        parts += ["Not made:\n\n" + "\n".join(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def makers(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Source]]]:
    """Yield "kind seed", and how to make what is scored."""
    own, share = own_source(options), 1 if len(options.seeds) == 1 else 2
    for seed in options.seeds:
        if own is not None:
            parts = {
                name: corpus.sample(min(options.examples, -(-len(corpus) // share)), seed)
                for name, corpus in (("forget", own.forget), ("retain", own.retain))
            }
            drawn = max(len(corpus) / len(getattr(own, name)) for name, corpus in parts.items())
            yield f"{OWN} {seed}", partial(replace, own, seed=seed, info={"drawn": drawn}, **parts)
            continue
        for kind in options.kinds:
            yield f"{kind} {seed}", partial(lambda kind, seed: Source.bare(bed_of(kind, seed), seed), kind, seed)


def main() -> None:
    """Score every neuron of every testbed, write `rows.json` (as the work goes on), tables and `localisation.svg`."""
    parser = asking(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=list(BEDS), default=list(BEDS))
    parser.add_argument("--examples", type=int, default=100, help="of a corpus of one's own, at most")
    options = parsed(parser)
    file = options.out / "rows.json"
    done, subjects, chosen = kept(file, "beds"), kept(file, "subjects"), []
    with in_one_line():
        for name, make in makers(options):
            source = make()
            claim(file, done, subjects, name, source.key)
            chosen.append(name)
            if name not in done:
                done[name] = {"rows": rows_of(source), "facts": facts_of(source)}
                done[name] |= {"drawn": source.info.get("drawn", 0.0)}
                keep(file, subjects=subjects, beds=done)
                print(f"{name}: done", flush=True)
    shown = {name: done[name] for name in chosen}
    text = tables(shown)
    (options.out / "tables.md").write_text(text)
    (options.out / "localisation.svg").write_text(picture(shown))
    print(text)


if __name__ == "__main__":
    main()
