"""Do the found neurons erase better? Every operator and loss, on found and random neurons and the whole model.

Grafted testbeds, whose gold twin never knew the facts. Each edit is measured along a dial of strengths, each training
of the whole model at two learning rates. An arm is shown at two points: at matched damage and tuned (of the strengths
within the damage, the one whose answers on the forget corpus are closest to the gold twin's). Controls are tuned alike.

python analyses/erase_methods.py --out erase                  # five seeds, 8 minutes each on one core
python analyses/erase_methods.py --out erase --seeds 0        # one of them; a killed run goes on where it was
python analyses/erase_methods.py --out erase --part sizes     # rank-one and ablation from one neuron to all: 1 min each
python analyses/erase_methods.py --out erase --part rewrite   # do closed forms write what they are asked to: 2 min each
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from erase_figures import dials, dots
from erase_rewrite import rewrite_table, rewrites
from erase_study import Point, Study, references, relearning
from erase_tables import sizes_table, tables
from methods import Makes, arms
from sources import DAMAGE, Source
from where_knowledge_lives import BEDS, PEOPLE, keep

import neuronforget as nf
from neuronforget.evaluation import match_damage

STRENGTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
SIZES = (1, 4, 16, 64, 128, 512)  # neurons of the whole model, and all of them


def measured(study: Study, make: Makes, start: Point, relearn: bool) -> dict[str, Any]:
    """Return an arm's dials, its point at matched damage, the tuned one, and how fast that relearns (if asked for)."""
    try:
        edits = make()
        dials = [[study.point(e, strength) for strength in STRENGTHS if e.graded or strength == 1] for e in edits]
    except nf.InputError as error:  # one method's failure is a finding
        return {"failed": str(error)}
    lm, retain = study.bed.lm, study.corpora["retain"]
    matched = []
    for edit in edits:
        most = max(STRENGTHS) if edit.graded else 1.0
        strength = most * match_damage(lm, edit.scaled(most), retain, DAMAGE)
        matched.append(study.point(edit, strength))
    within = start["retain"]["nll"] + DAMAGE
    reached = [(p, e) for dial, m, e in zip(dials, matched, edits, strict=True) for p in (*dial, m)]
    allowed = [(start, None), *((p, e) for p, e in reached if p["retain"]["nll"] <= within)]
    tuned, edit = min(allowed, key=lambda pair: pair[0]["forget"]["kl_gold"])
    found = {"dials": dials, "matched": min(matched, key=lambda p: p["forget"]["kl_gold"]), "tuned": tuned}
    if edit is not None and relearn:
        with edit.scaled(tuned["strength"]).on(lm):
            return {**found, "relearning": relearning(lm, study.bed.forget)}
    return found


def run(study: Study, done: dict[str, Any], only: Sequence[str] | None = None) -> Iterator[str]:
    """Fill `done` (arm -> what `measured` returns) arm by arm, saying which is finished."""
    if "gold" not in done:
        done |= references(study)
        yield "references"
    bed = study.bed
    source = Source(bed.lm, bed.forget, bed.retain, study.found, study.seed, bed.gold, refusals=bed.refusals)
    for name, make in arms(source).items():
        if name not in done and (only is None or name.split("@")[0] in only):
            done[name] = measured(study, make, done["untouched"]["tuned"], not name.endswith("@random"))
            yield name


def sizes(study: Study, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done` with rank-one and ablation of the best by grad_x_act and of random ones, from one neuron to all."""
    lm, forget, retain = study.bed.lm, study.bed.forget, study.bed.retain
    scores = nf.attribute(lm, forget, retain.head(len(forget)), progress=False)
    total = lm.shape[0] * lm.shape[1]
    for size in (*(size for size in SIZES if size < total), total):
        best = nf.select.top(scores, size)
        for place, neurons in {"best": best, "random": best.random_like(study.seed)}.items():
            edits = {
                "ablate": partial(nf.erase.ablate, lm, neurons),
                "rank_one": partial(nf.erase.rank_one, lm, forget, retain, neurons=neurons),
            }
            for name, make in edits.items():
                key = f"{name}@{place} {size}"
                if key in done or (place == "random" and size == total):
                    continue
                try:
                    done[key] = study.point(make(), 1.0)
                except nf.InputError as error:
                    done[key] = {"failed": str(error)}
                yield key


#: Part -> what measures one seed, and what shows all of them.
PARTS = {"methods": (run, tables), "sizes": (sizes, sizes_table), "rewrite": (rewrites, rewrite_table)}


def main() -> None:
    """Make the beds, measure every arm, write points (as the work goes on), tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--part", choices=list(PARTS), default="methods")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.part}.json"
    seeds: dict[str, Any] = json.loads(path.read_text())["seeds"] if path.is_file() else {}
    kind, settings = BEDS["grafted"]
    work, show = PARTS[options.part]
    for seed in options.seeds:
        study = Study.of(nf.testbed.people(kind, seed=seed, people=PEOPLE, **settings), seed)
        for name in work(study, seeds.setdefault(str(seed), {})):
            keep(path, seeds=seeds)
            print(f"seed {seed}: {name}", flush=True)
    chosen = [seeds[str(seed)] for seed in options.seeds]
    text = show(chosen)
    (options.out / f"{options.part}.md").write_text(text)
    if options.part == "methods":
        (options.out / "erasure-dials.svg").write_text(dials(chosen))
        (options.out / "erasure-methods.svg").write_text(dots(chosen))
    print(text)


if __name__ == "__main__":
    main()
