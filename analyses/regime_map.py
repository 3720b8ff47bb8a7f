"""Where do chosen neurons erase better than random ones? A map over beds, operators, sizes and selections.

Ordinary testbeds, where nobody knows the place of the facts. Three kinds of request: whole people; one relation of
some people, which others have too; and the same relation where nobody else has it, so that no retain example shares
its phrasing. Each edit is measured along a dial of strengths and shown where it is tuned: of the strengths that raise
the retain loss by at most .05 nats, the one whose forget answers are closest to the gold twin's. Random neurons, as
many in each layer, are tuned alike. Of a model of one's own without a gold twin, tuned is the strength whose answers
are least likely.

python analyses/regime_map.py --out regimes                               # seed 0, two requests, ten minutes
python analyses/regime_map.py --out regimes --beds all --seeds 0 1 2 3 4  # five; a killed run goes on where it was
python analyses/regime_map.py --out regimes --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from judging import DAMAGE, Point, chosen_point
from regime_figure import picture
from regime_tables import tables
from relearning import relearning
from running import asking, claim, in_one_line, keep, kept, parsed
from sources import HALF, OWN, PEOPLE, Source, own_source, shortlist_exact, strangers

import neuronforget as nf
from neuronforget.testbed.facts import PHRASINGS, generate

Bed = nf.testbed.Testbed
SIZES = (0.0025, 0.02, 0.16)  # of each layer
SHAPE = HALF(steps=200)
STRENGTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
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

#: What is run unless asked: the request with the nearest neighbours, and the one without any.
USUAL = ("whole people", "a relation of their own")


def source_of(bed: Bed, seed: int) -> Source:
    """What is measured: forget, unseen phrasings, retain, and siblings (the same people's other facts) or strangers."""
    return beside_near(Source.bare(bed, seed, measured=MEASURED))


def beside_near(source: Source) -> Source:
    """Measure siblings too; a testbed without them is asked about strangers, of a model of one's own nothing."""
    people = {example.subject for example in source.forget} - {None}
    siblings = tuple(e for e in source.retain if e.subject in people)
    if siblings:
        return replace(source, beside={"near": nf.Corpus(siblings, "near").sample(MEASURED, source.seed)})
    return replace(source, beside={"near": strangers(source, MEASURED // 2)} if source.info else {})


def edit_of(source: Source, operator: str, neurons: nf.Neurons | None) -> nf.Edit:
    """Make one edit, by the defaults."""
    lm, forget, retain = source.lm, source.forget, source.retain
    if operator == "ablate":
        assert neurons is not None
        return nf.erase.ablate(lm, neurons)
    if operator == "rank_one":
        return nf.erase.rank_one(lm, forget, retain, neurons=neurons)
    return nf.erase.finetune(lm, forget, retain, loss=LOSSES[operator], neurons=neurons, seed=source.seed,
                             progress=False)  # fmt: skip


def arm(source: Source, operator: str, neurons: nf.Neurons | None, start: Point, relearn: bool) -> dict[str, Any]:
    """Return an edit's dial, where it is tuned, what it touched and, if asked for, how fast the facts come back."""
    try:
        edit = edit_of(source, operator, neurons)
    except nf.InputError as error:  # a training that diverges is a finding
        return {"failed": str(error)}
    dial = [source.point(edit, strength) for strength in STRENGTHS]
    tuned, about = chosen_point(dial, start), edit.summary()
    found = {"dial": dial, "tuned": tuned, "values": about["values"], "moved": about["norm"]}
    if relearn and tuned["strength"]:
        with edit.scaled(tuned["strength"]).on(source.lm):
            found["relearning"] = relearning(source.lm, source.forget)
    return found


def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, "operator|size|selection" -> arm, saying which is finished; "all" neurons are one size."""
    if "untouched" not in done:
        for name, lm in source.references.items():
            again = relearning(lm, source.forget)
            done[name] = {"tuned": {"strength": 0.0, **source.values(lm)}, "relearning": again}
        yield "references"
    start = done["untouched"]["tuned"]
    scores = {name: source.scored(score) for name, score in SELECTIONS.items()}
    for size in SIZES:
        chosen = {name: nf.select.per_layer(values, size) for name, values in scores.items()}
        chosen |= {f"random {i}": chosen["grad_x_act"].random_like(100 * source.seed + i) for i in range(DRAWS)}
        for operator in OPERATORS:
            for name, neurons in chosen.items():
                if (key := f"{operator}|{size:g}|{name}") not in done:
                    done[key] = arm(source, operator, neurons, start, size == RELEARNED_AT)
                    yield key
    for operator in OPERATORS[1:]:
        if (key := f"{operator}|1|all") not in done:
            done[key] = arm(source, operator, None, start, relearn=True)
            yield key


def makers(options: argparse.Namespace) -> dict[str, Callable[[int], Source]]:
    """Return kind of request -> what makes its source for a seed; a model of one's own is one kind."""
    if (own := own_source(options)) is not None:
        return {OWN: lambda seed: beside_near(replace(own, seed=seed, measured=MEASURED))}
    kinds = list(BEDS) if "all" in options.beds else options.beds
    return {kind: lambda seed, kind=kind: source_of(BEDS[kind](seed), seed) for kind in kinds}


def mapping(about: str | None, seeds: Sequence[int] = (0,)) -> argparse.ArgumentParser:
    """Return a parser of what is mapped."""
    parser = asking(about, seeds)
    parser.add_argument("--beds", nargs="+", choices=[*BEDS, "all"], default=USUAL, help="kinds of request")
    return parser


def main() -> None:
    """Make the beds, measure every arm, write `map.json` (as the work goes on), `tables.md` and `map.svg`."""
    options = parsed(mapping(__doc__))
    path = options.out / "map.json"
    done, subjects = kept(path, "beds"), kept(path, "subjects")
    with in_one_line():
        kinds = makers(options)
        for seed in options.seeds:
            for kind, make in kinds.items():
                source, bed = make(seed), f"{kind} {seed}"
                claim(path, done, subjects, bed, source.key)
                for name in run(source, done.setdefault(bed, {})):
                    keep(path, subjects=subjects, beds=done)
                    print(f"{kind}, seed {seed}: {name}", flush=True)
    text = tables(done, list(kinds), options.seeds, DAMAGE)
    (options.out / "tables.md").write_text(text)
    (options.out / "map.svg").write_text(picture(done, list(kinds), options.seeds))
    print(text)


if __name__ == "__main__":
    main()
