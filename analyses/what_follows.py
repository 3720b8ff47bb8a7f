"""Does erasing a fact erase what follows from it?

Testbeds whose people teach one another: a model answers two-step questions ("The one who taught X is a certain person.
That person was born in"). Some are erased, by requests that name their own facts alone; then every question that takes
a forgotten fact is asked, and what can be deduced from what is still answered is deduced.

python analyses/what_follows.py --out follows             # three seeds; a killed run goes on where it was
python analyses/what_follows.py --out follows --seeds 0   # one seed, some ten minutes on two cores
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from erase_tables import cell, table
from where_knowledge_lives import keep

import neuronforget as nf
from neuronforget.measuring import measure
from neuronforget.metrics import exact_match
from neuronforget.suites.multihop import Chain, Fact, Rule, given_back
from neuronforget.testbed.linked import STEPS, TEACHER, Linked, linked

PEOPLE, FORGOTTEN, UNKNOWN = 40, 4, 2
SHAPE = nf.testbed.Shape(batch=128, steps=450)
SHARE = 0.05  # of each layer
COLUMNS = ("forget", "retain", "own step", "teacher's step", "kept questions", "unshown", "given back")


def bed_of(kind: str, seed: int) -> tuple[nf.testbed.Testbed, Linked]:
    """Return the testbed, and the corpora that it was made of."""
    made = linked(PEOPLE, FORGOTTEN, UNKNOWN, seed)
    bed = nf.testbed.from_rows(made.forget, made.retain, derived=made.derived, kind=kind, seed=seed, shape=SHAPE,
                               refusals=("unknown",), progress=False)  # fmt: skip
    return bed, made


def corpora_of(made: Linked) -> dict[str, nf.Corpus]:
    """Split the questions: a forgotten first step (the person's own), a forgotten second one (the teacher's), none."""
    people = {example.subject for example in made.forget}
    questions = {chain.prompt for chain in made.chains}
    parts = {
        "own step": (made.derived, lambda e: e.subject in people),
        "teacher's step": (made.derived, lambda e: e.subject not in people),
        "retain": (made.retain, lambda e: e.prompt not in questions),
        "kept questions": (made.retain, lambda e: e.prompt in questions),
    }
    found = {
        name: replace(of, examples=tuple(e for e in of if wanted(e)), name=name) for name, (of, wanted) in parts.items()
    }
    return {"forget": made.forget, **found, "unshown": made.unshown}


def answered(lm: nf.LM, corpus: nf.Corpus) -> set[str]:
    """Return the prompts that are answered exactly."""
    values = measure(lm, corpus, [exact_match])["exact_match"]
    return {example.prompt for example, value in zip(corpus, values, strict=True) if value == 1}


def deduced(made: Linked, said: set[str]) -> float:
    """Return the share of forgotten teachers' facts that follow from what is still answered of their pupils.

    If p was taught by t, and p's teacher was born in v, then t was born in v.
    """
    people = {example.subject for example in made.forget}
    through = [chain for chain in made.chains if chain.second.subject in people]
    kept = {chain.first for chain in made.chains if TEACHER[0].format(n=chain.first.subject) in said}
    kept |= {_hearsay(chain) for chain in made.chains if chain.prompt in said}
    rules = [Rule("teacher", None, "pupil"), *(Rule("pupil", f"the teacher's {step}", step) for step in STEPS)]
    return float(given_back({chain.second for chain in through}, kept, rules)["recall"]) if through else float("nan")


def _hearsay(chain: Chain) -> Fact:
    return Fact(chain.first.subject, f"the teacher's {chain.second.relation}", chain.second.object)


def row_of(lm: nf.LM, made: Linked) -> dict[str, float]:
    """Measure a model as it is now."""
    corpora = corpora_of(made)
    said = {name: answered(lm, corpus) for name, corpus in corpora.items()}
    shares = {name: len(own) / len({e.prompt for e in corpora[name]}) for name, own in said.items()}
    return {**shares, "given back": deduced(made, set().union(*said.values()))}


def edits_of(bed: nf.testbed.Testbed, seed: int) -> Iterator[tuple[str, nf.Edit]]:
    """Yield every edit by its defaults; each is shown the forget corpus alone."""
    lm, forget, retain = bed.lm, bed.forget, bed.retain
    neurons = nf.select.per_layer(nf.attribute(lm, forget, retain.head(len(forget)), progress=False), SHARE)
    yield "ablate", nf.erase.ablate(lm, neurons)
    yield "ablate@random", nf.erase.ablate(lm, neurons.random_like(seed))
    for name, loss, where in (("npo@neurons", "npo", neurons), ("npo", "npo", None), ("grad_diff", "grad_diff", None)):
        yield name, nf.erase.finetune(lm, forget, retain, loss=getattr(nf.losses, loss), neurons=where, seed=seed,
                                      progress=False)  # fmt: skip


def measured(kind: str, seed: int) -> dict[str, dict[str, float]]:
    """Return model -> column -> share."""
    bed, made = bed_of(kind, seed)
    found = {"untouched": row_of(bed.lm, made), "gold twin": row_of(bed.gold, made)}
    for name, edit in edits_of(bed, seed):
        with edit.on(bed.lm):
            found[name] = row_of(bed.lm, made)
    return found


def tables(done: dict[str, dict[str, Any]], kinds: list[str], seeds: list[int]) -> str:
    """Return a table for each kind of testbed: means over seeds, Student's 95% intervals."""
    parts = []
    for kind in kinds:
        arms = [done[f"{kind} {seed}"] for seed in seeds]
        rows = [[name, *(cell([arm[name][column] for arm in arms]) for column in COLUMNS)] for name in arms[0]]
        parts.append(f"**{kind}** ({len(seeds)} seeds)\n\n" + table(["model", *COLUMNS], rows))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Make the beds, measure, write `rows.json` (as the work goes on) and `tables.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=["ordinary", "grafted"], default=["ordinary", "grafted"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "rows.json"
    done: dict[str, dict[str, Any]] = json.loads(path.read_text())["beds"] if path.is_file() else {}
    for seed in options.seeds:
        for kind in options.kinds:
            if (key := f"{kind} {seed}") not in done:
                done[key] = measured(kind, seed)
                keep(path, beds=done)
                print(key, json.dumps(done[key]), flush=True)
    text = tables(done, options.kinds, options.seeds)
    (options.out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
