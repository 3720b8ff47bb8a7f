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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from erase_figures import dials, dots
from erase_rewrite import rewrite_table, rewrites
from erase_study import Point, Study, references, relearning
from erase_tables import sizes_table, tables
from where_knowledge_lives import BEDS, PEOPLE, keep

import neuronforget as nf
from neuronforget.erase.catalogue import needs_neurons, takes
from neuronforget.erase.finetune import default_lr
from neuronforget.evaluation import match_damage
from neuronforget.losses import learn

#: With the defaults, but where those do next to nothing (alpha_edit) or there are too many tokens (revs).
OPERATORS: dict[str, Callable[..., nf.Edit]] = {
    **{name: nf.erase.OPERATORS[name] for name in "ablate ablate_mean ssd aura noise rank_one memit leace".split()},
    "alpha_edit": partial(nf.erase.alpha_edit, cut=0.05),
    "revs": partial(nf.erase.revs, most=8),
    "concept_vector": partial(nf.erase.concept_vector, most=8),
    "task_vector": partial(nf.erase.task_vector, progress=False),
    "first_order_update": nf.erase.first_order_update,
    "second_order_update": nf.erase.second_order_update,
}
#: They change no weight: beside the erasures, not among them. `resample` is given the found neurons.
GUARDS = {name: nf.erase.OPERATORS[name] for name in nf.erase.guards.__all__}
GUARDS["icu"] = partial(nf.erase.guards.icu, shown=2, kept=2)  # the model holds 64 tokens
LOSSES = (
    "ga grad_diff kl_min wga satimp npo simnpo dpo altpo rt ga_rt idk_ap me_gd undial ce_u whp elm pdu rmu"
).split()
STRENGTHS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
RATES = (1 / 3, 1.0)  # of the default learning rate: whole-model baselines get two, neurons the default alone
DAMAGE = 0.05  # rise of the retain loss, nats per answer token
SIZES = (1, 4, 16, 64, 128, 512)  # neurons of the whole model, and all of them


def arms(study: Study) -> dict[str, Callable[[], list[nf.Edit]]]:
    """Return how to make each arm's edits, by "method@place": found, random, full (all, or what it chooses), guard."""
    lm, forget, retain = study.bed.lm, study.bed.forget, study.bed.retain
    moments = {
        name: nf.record(lm, corpus, per_example=True, progress=False)
        for name, corpus in (("forget", forget), ("retain", retain))
    }
    places = {"found": study.found, "random": study.found.random_like(study.seed)}
    plan: dict[str, Callable[[], list[nf.Edit]]] = {}
    for name, operator in OPERATORS.items():
        make = partial(nf.erase.make, operator, lm, forget, retain, moments=moments, progress=False)
        if takes(operator, "neurons"):
            plan |= {f"{name}@{place}": _one(partial(make, neurons=where)) for place, where in places.items()}
        if not needs_neurons(operator):
            plan[f"{name}@full"] = _one(make)
    for name, guard in GUARDS.items():
        where = study.found if needs_neurons(guard) else None
        given = {"progress": False} if takes(guard, "progress") else {}
        plan[f"{name}@guard"] = _one(partial(nf.erase.make, guard, lm, forget, retain, neurons=where, **given))
    for name in LOSSES:
        for place, where in {**places, "full": None}.items():
            plan[f"{name}@{place}"] = partial(_trained, study, name, where)
    return plan


def _one(make: Callable[[], nf.Edit]) -> Callable[[], list[nf.Edit]]:
    return lambda: [make()]


def _trained(study: Study, name: str, neurons: nf.Neurons | None) -> list[nf.Edit]:
    """Train a loss at each learning rate."""
    bed, loss = study.bed, getattr(nf.losses, name)
    train = partial(nf.erase.finetune, bed.lm, bed.forget, bed.retain, neurons=neurons, progress=False, seed=study.seed)
    if name == "whp":
        reinforced = nf.erase.finetune(bed.lm, bed.forget, loss=learn, progress=False)
        train = partial(train, reinforced=reinforced)
    rate = default_lr(bed.lm, neurons)
    rates = RATES if neurons is None else (1.0,)
    return [train(loss=loss, preferred=bed.refusals, lr=rate * share) for share in rates]


def measured(study: Study, make: Callable[[], list[nf.Edit]], start: Point, relearn: bool) -> dict[str, Any]:
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
    for name, make in arms(study).items():
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
