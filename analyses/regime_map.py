"""Where do chosen neurons erase better than random ones? A map over beds, operators, sizes and selections.

Ordinary testbeds, where nobody knows the place of the facts. Three kinds of request: whole people; one relation of
some people, which others have too; and the same relation where nobody else has it, so that no retain example shares
its phrasing. Each edit is measured along a dial of strengths and shown where it is tuned: of the strengths that raise
the retain loss by at most .05 nats, the one whose forget answers are closest to the gold twin's. Random neurons, as
many in each layer, are tuned alike.

python analyses/regime_map.py --out regimes             # a killed run goes on where it was
python analyses/regime_map.py --out regimes --seeds 0   # one seed, a quarter of an hour
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from erase_study import Point, Remembered, Study, relearning, strangers
from regime_tables import picture, tables
from where_knowledge_lives import HALF, PEOPLE, keep, shortlist_exact

import neuronforget as nf
from neuronforget.comparison import sampled
from neuronforget.testbed.facts import PHRASINGS, generate

Bed = nf.testbed.Testbed
SIZES = (0.0025, 0.02, 0.16)  # of each layer
SHAPE = HALF(steps=200)
STRENGTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
DAMAGE = 0.05  # rise of the retain loss, nats per answer token
DRAWS = 2  # random sets for each size
MEASURED = 100  # retain examples, and as many siblings or strangers at most
RELEARNED_AT = 0.02  # the size at which it is measured how fast the facts come back
SELECTIONS: dict[str, Any] = {
    "grad_x_act": nf.scores.grad_x_act,
    "grad_x_act, then exact": shortlist_exact,
    "fisher": nf.scores.fisher,
    "hard_concrete": nf.scores.hard_concrete,
}
LOSSES: dict[str, Any] = {
    "simnpo": nf.losses.simnpo,
    "simnpo, no retain": partial(nf.losses.simnpo, alpha=0.0),
    "ga": nf.losses.ga,
}
OPERATORS = ("ablate", "rank_one", *LOSSES)


def whole_people(seed: int) -> Bed:
    """Everything about five people, as one phrases it about everybody."""
    return nf.testbed.people("ordinary", seed=seed, people=PEOPLE, forget_people=5, shape=SHAPE, progress=False)


def one_relation(seed: int, *, shared: bool) -> Bed:
    """One relation of ten people; others have it too only if `shared`."""
    forget, retain = generate(PEOPLE, 10, 3, seed)
    starts = [text.split("{n}") for text in PHRASINGS[list(PHRASINGS)[seed % len(PHRASINGS)]]]

    def asked(example: nf.corpora.Example) -> bool:
        return any(example.prompt.startswith(a) and example.prompt.endswith(b) for a, b in starts)

    wanted = tuple(e for e in forget if asked(e))
    others = (*(e for e in forget if not asked(e)), *(e for e in retain if shared or not asked(e)))
    corpora = nf.Corpus(wanted, "relation-forget"), nf.Corpus(others, "relation-retain")
    return nf.testbed.from_rows(*corpora, kind="ordinary", seed=seed, shape=SHAPE, progress=False)


BEDS: dict[str, Callable[[int], Bed]] = {
    "whole people": whole_people,
    "a relation others share": partial(one_relation, shared=True),
    "a relation of their own": partial(one_relation, shared=False),
}


def study_of(bed: Bed, seed: int) -> Study:
    """What is measured: forget, unseen phrasings, retain, and siblings (the same people's other facts) or strangers."""
    people = {example.subject for example in bed.forget}
    siblings = tuple(e for e in bed.retain if e.subject in people)
    near = sampled(nf.Corpus(siblings, "near"), MEASURED, seed) if siblings else strangers(bed, MEASURED // 2, seed)
    unseen = bed.forget.paraphrased()
    assert unseen is not None
    corpora = {"forget": bed.forget, "unseen": unseen, "retain": sampled(bed.retain, MEASURED, seed), "near": near}
    gold = nf.LM(Remembered(bed.gold.model), bed.gold.tokenizer)
    return Study(
        bed, gold, corpora, nf.Neurons(frozenset(), tuple(site.layer for site in bed.lm.sites), bed.lm.shape[1]), seed
    )


def edit_of(study: Study, operator: str, neurons: nf.Neurons | None) -> nf.Edit:
    """Make one edit, by the defaults."""
    bed = study.bed
    if operator == "ablate":
        assert neurons is not None
        return nf.erase.ablate(bed.lm, neurons)
    if operator == "rank_one":
        return nf.erase.rank_one(bed.lm, bed.forget, bed.retain, neurons=neurons)
    return nf.erase.finetune(bed.lm, bed.forget, bed.retain, loss=LOSSES[operator], neurons=neurons, seed=study.seed,
                             progress=False)  # fmt: skip


def arm(study: Study, operator: str, neurons: nf.Neurons | None, start: Point, relearn: bool) -> dict[str, Any]:
    """Return an edit's dial, where it is tuned, what it touched and, if asked for, how fast the facts come back."""
    try:
        edit = edit_of(study, operator, neurons)
    except nf.InputError as error:  # a training that diverges is a finding
        return {"failed": str(error)}
    dial = [study.point(edit, strength) for strength in STRENGTHS]
    allowed = [start, *(p for p in dial if p["retain"]["nll"] <= start["retain"]["nll"] + DAMAGE)]
    tuned = min(allowed, key=lambda point: point["forget"]["kl_gold"])
    about = edit.summary()
    found = {"dial": dial, "tuned": tuned, "values": about["values"], "moved": about["norm"]}
    if relearn and tuned is not start:
        with edit.scaled(tuned["strength"]).on(study.bed.lm):
            found["relearning"] = relearning(study.bed.lm, study.bed.forget)
    return found


def run(study: Study, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, "operator|size|selection" -> arm, saying which is finished; "all" neurons are one size."""
    bed = study.bed
    if "gold" not in done:
        for name, lm in (("untouched", bed.lm), ("gold", bed.gold)):
            done[name] = {"tuned": {"strength": 0.0, **study.values(lm)}, "relearning": relearning(lm, bed.forget)}
        yield "references"
    start, shown = done["untouched"]["tuned"], bed.retain.head(len(bed.forget))
    scores = {n: nf.attribute(bed.lm, bed.forget, shown, score=s, progress=False) for n, s in SELECTIONS.items()}
    for size in SIZES:
        chosen = {name: nf.select.per_layer(values, size) for name, values in scores.items()}
        chosen |= {f"random {i}": chosen["grad_x_act"].random_like(100 * study.seed + i) for i in range(DRAWS)}
        for operator in OPERATORS:
            for name, neurons in chosen.items():
                if (key := f"{operator}|{size:g}|{name}") not in done:
                    done[key] = arm(study, operator, neurons, start, size == RELEARNED_AT)
                    yield key
    for operator in OPERATORS[1:]:
        if (key := f"{operator}|1|all") not in done:
            done[key] = arm(study, operator, None, start, relearn=True)
            yield key


def main() -> None:
    """Make the beds, measure every arm, write `map.json` (as the work goes on), `tables.md` and `map.svg`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--beds", nargs="+", choices=list(BEDS), default=list(BEDS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "map.json"
    done: dict[str, dict[str, Any]] = json.loads(path.read_text())["beds"] if path.is_file() else {}
    for seed in options.seeds:
        for kind in options.beds:
            study = study_of(BEDS[kind](seed), seed)
            for name in run(study, done.setdefault(f"{kind} {seed}", {})):
                keep(path, beds=done)
                print(f"{kind}, seed {seed}: {name}", flush=True)
    text = tables(done, options.beds, options.seeds, DAMAGE)
    (options.out / "tables.md").write_text(text)
    (options.out / "map.svg").write_text(picture(done, options.beds, options.seeds))
    print(text)


if __name__ == "__main__":
    main()
