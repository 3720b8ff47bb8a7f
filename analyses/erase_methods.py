"""Do the found neurons erase better? Every operator and loss, on found and random neurons and the whole model.

Grafted testbeds, whose gold twin never knew the facts. Each edit is measured along a dial of strengths, each training
of the whole model at two learning rates. An arm is shown at two points: at matched damage and tuned (of the strengths
within the damage, the one whose answers on the forget corpus are closest to the gold twin's; without a twin, the one
whose answers are least likely). Controls are tuned alike.

python analyses/erase_methods.py --out erase                    # seed 0, 8 minutes on one core
python analyses/erase_methods.py --out erase --seeds 0 1 2 3 4  # five; a killed run goes on where it was
python analyses/erase_methods.py --out erase --part sizes       # rank-one and ablation from one neuron to all: 1 minute
python analyses/erase_methods.py --out erase --part rewrite     # do closed forms write what they are asked: 2 minutes
python analyses/erase_methods.py --out erase --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import rewrite_figure
import size_figure
from erase_figures import dials, dots
from erase_rewrite import rewrite_table, rewrites
from erase_tables import sizes_table, tables
from judging import DAMAGE, Point, judged
from methods import Makes, arms
from relearning import relearning
from running import asking, each, parsed
from sources import MEASURED, Source, bed_of, sources, strangers

import neuronforget as nf
from neuronforget.evaluation import match_damage

STRENGTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
SIZES = (1, 4, 16, 64, 128, 512)  # neurons of the whole model, and all of them


def measured(source: Source, make: Makes, start: Point, relearn: bool) -> dict[str, Any]:
    """Return an arm's dials, its point at matched damage, the tuned one, and how fast that relearns (if asked for)."""
    try:
        return _measured(source, make(), start, relearn)
    except nf.InputError as error:  # one method's failure is a finding
        return {"failed": str(error)}


def _measured(source: Source, edits: Sequence[nf.Edit], start: Point, relearn: bool) -> dict[str, Any]:
    dials = [[source.point(e, strength) for strength in STRENGTHS if e.graded or strength == 1] for e in edits]
    lm, retain = source.lm, source.corpora["retain"]
    matched = []
    for edit in edits:
        most = max(STRENGTHS) if edit.graded else 1.0
        strength = most * match_damage(lm, edit.scaled(most), retain, DAMAGE)
        matched.append(source.point(edit, strength))
    within = start["retain"]["nll"] + DAMAGE
    reached = [(p, e) for dial, m, e in zip(dials, matched, edits, strict=True) for p in (*dial, m)]
    allowed = [(start, None), *((p, e) for p, e in reached if p["retain"]["nll"] <= within)]
    tuned, edit = min(allowed, key=lambda pair: judged(pair[0], "forget"))
    found = {"dials": dials, "matched": min(matched, key=lambda p: judged(p, "forget")), "tuned": tuned}
    if edit is not None and relearn:
        with edit.scaled(tuned["strength"]).on(lm):
            return {**found, "relearning": relearning(lm, source.forget)}
    return found


def references(source: Source) -> dict[str, Any]:
    """Return the untouched model and its gold twin as arms, and what was found."""
    found: dict[str, Any] = {"found": len(source.found)}
    if source.truth is not None:
        found |= {"true": len(source.truth), "recall": source.found.recall(source.truth)}
    known = {
        name: {"tuned": {"strength": 0.0, **source.values(lm)}, "relearning": relearning(lm, source.forget)}
        for name, lm in source.references.items()
    }
    return {**known, "neurons": found}


def run(source: Source, done: dict[str, Any], only: Sequence[str] | None = None) -> Iterator[str]:
    """Fill `done` (arm -> what `measured` returns) arm by arm, saying which is finished."""
    if "untouched" not in done:
        done |= references(source)
        yield "references"
    for name, make in arms(source).items():
        if name not in done and (only is None or name.split("@")[0] in only):
            done[name] = measured(source, make, done["untouched"]["tuned"], not name.endswith("@random"))
            yield name


def sizes(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done` with rank-one and ablation of the best by grad_x_act and of random ones, from one neuron to all."""
    lm, forget, retain = source.lm, source.forget, source.retain
    scores = source.scored(nf.scores.grad_x_act)
    total = lm.shape[0] * lm.shape[1]
    for size in (*(size for size in SIZES if size < total), total):
        best = nf.select.top(scores, size)
        for place, neurons in {"best": best, "random": best.random_like(source.seed)}.items():
            edits = {
                "ablate": partial(nf.erase.ablate, lm, neurons),
                "rank_one": partial(nf.erase.rank_one, lm, forget, retain, neurons=neurons),
            }
            for name, make in edits.items():
                key = f"{name}@{place} {size}"
                if key in done or (place == "random" and size == total):
                    continue
                try:
                    done[key] = source.point(make(), 1.0)
                except nf.InputError as error:
                    done[key] = {"failed": str(error)}
                yield key


#: Part -> what measures one seed, what shows all of them, and in which pictures.
PARTS = {
    "methods": (run, tables, {"erasure-dials.svg": dials, "erasure-methods.svg": dots}),
    "sizes": (sizes, sizes_table, {"erasure-sizes.svg": size_figure.picture}),
    "rewrite": (rewrites, rewrite_table, {"erasure-rewrite.svg": rewrite_figure.picture}),
}


def grafted(seed: int) -> Source:
    """A grafted testbed, measured on strangers too."""
    source = Source.of(bed_of("grafted", seed), seed)
    return replace(source, beside={"strangers": strangers(source, MEASURED // 2)})


def main() -> None:
    """Measure every arm on every seed, write points (as the work goes on), tables and figures."""
    parser = asking(__doc__)
    parser.add_argument("--part", choices=list(PARTS), default="methods")
    options = parsed(parser)
    work, show, pictures = PARTS[options.part]
    found = sources(options, grafted)
    each(options, found, f"{options.part}.json", work, show, pictures, text=f"{options.part}.md")


if __name__ == "__main__":
    main()
