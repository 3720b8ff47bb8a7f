"""What does each operator, and each guard, do by its defaults? One small testbed, one seed: not which is best.

python analyses/every_operator.py --out operators   # about a minute, the testbed included
python analyses/every_operator.py --out operators --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cells import table
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf

#: Twenty people, two of them to be forgotten, 2 layers of 128 neurons.
SHAPE = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
ON_NEURONS = "ablate dampen ssd aura noise rank_one memit alpha_edit leace concept_vector revs".split()
#: Settings that small models need: few words, a cut that lets something through.
SETTINGS = {"alpha_edit": {"cut": 0.05}, "concept_vector": {"most": 8}, "revs": {"most": 8}}
CORPORA = {"forget": "forget", "unseen": "forget unseen", "retain": "retain"}  # the source's name -> that of `evaluate`


Made = dict[str, nf.Edit | str]  # an edit, or why it could not be made


def erasures(source: Source) -> Made:
    """Return edits of the known neurons by every operator, and of what operators choose themselves."""
    make = partial(nf.erase.make, lm=source.lm, forget=source.forget, retain=source.retain, progress=False)
    neurons, words = _known(source)
    lowest = {"layers": [source.lm.sites[0].layer]}
    edits: Made = {}
    for name in ON_NEURONS:
        own = SETTINGS.get(name, {})
        said = "".join(f", {k}={v:g}" for k, v in own.items())
        edits[f"`{name}` on the {words}{said}"] = _made(make, nf.erase.OPERATORS[name], neurons=neurons, **own)
    for name, settings in (("ssd", {}), ("aura", {}), ("memit", lowest), ("memit", {**lowest, "preserve": 1}),
                           ("alpha_edit", {**lowest, "cut": 0.05}), ("leace", {}), ("first_order_update", {}),
                           ("second_order_update", {})):  # fmt: skip
        said = "".join(f", {k}={v}" for k, v in settings.items())
        edits[f"`{name}`{said or ', where it chooses'}"] = _made(make, nf.erase.OPERATORS[name], **settings)
    return edits


def guards(source: Source) -> Made:
    """Return guards of every kind, resampling of random neurons as its control, and ablation beside it."""
    of, given = nf.erase.guards, (source.lm, source.forget, source.retain)
    (neurons, words), lowest = _known(source), [source.lm.sites[0].layer]
    random = neurons.random_like(source.seed)
    return {
        "`eco`, sigma=1": _made(of.eco, *given, sigma=1.0),
        "`eco`, sigma=3": _made(of.eco, *given, sigma=3.0),
        f"`repe`, block {lowest[0]}, coefficient=1": _made(of.repe, *given, layers=lowest, coefficient=1.0),
        f"`repe`, block {lowest[0]}, coefficient=2": _made(of.repe, *given, layers=lowest, coefficient=2.0),
        "`icu`, shown=1, kept=1": _made(of.icu, *given, shown=1, kept=1),
        "`o3`, with retain": _made(of.o3, *given, progress=False),
        "`o3`, without": _made(of.o3, *given[:2], progress=False),
        f"`resample`, the {words}": _made(of.resample, source.lm, neurons, source.retain),
        "`resample`, random neurons": _made(of.resample, source.lm, random, source.retain),
        f"`ablate`, the {words} (an erasure)": _made(nf.erase.ablate, source.lm, neurons),
    }


def _known(source: Source) -> tuple[nf.Neurons, str]:
    """A testbed's true neurons; of a model of one's own the found ones."""
    return (source.found, "found neurons") if source.truth is None else (source.truth, "true neurons")


def _made(make: Callable[..., nf.Edit], *args: Any, **settings: Any) -> nf.Edit | str:
    try:
        return make(*args, **settings)
    except nf.InputError as error:  # an operator's failure is a finding
        return str(error)


def shown(source: Source, made: Made) -> str:
    """Return the table of the references and every edit, exact match and probability, and what could not be made."""
    edits = {name: edit for name, edit in made.items() if isinstance(edit, nf.Edit)}
    results = nf.evaluate(source.lm, edits, source.forget, source.retain, gold=source.gold, strengths=(), damage=None,
                          progress=False)  # fmt: skip
    corpora = [name for name in CORPORA if name in source.corpora]
    rows = []
    for name in (*source.references, *edits):
        exact = [f"{results.value(name, CORPORA[corpus]):.2f}" for corpus in corpora]
        likely = [f"{results.value(name, corpus, 'probability'):.2f}" for corpus in ("forget", "retain")]
        rows.append([name, *exact, *likely])
    text = table(["edit", *(CORPORA[name] for name in corpora), "forget: probability", "retain: probability"], rows)
    failed = [f"- {name}: {edit}" for name, edit in made.items() if isinstance(edit, str)]
    return "\n\n".join([text, *(["Not made:\n\n" + "\n".join(failed)] if failed else [])])


PARTS: dict[str, Callable[[Source], Made]] = {"erasures": erasures, "guards": guards}


def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, part -> table, saying which is finished."""
    for part, make in PARTS.items():
        if part not in done:
            done[part] = shown(source, make(source))
            yield part


def tables(seeds: Sequence[Mapping[str, str]]) -> str:
    """Return the tables, those of a seed after those of another."""
    return "\n\n".join(f"## {part}\n\n{text}" for seed in seeds for part, text in seed.items()) + "\n"


def small(seed: int) -> Source:
    """A small testbed, whose true neurons are known."""
    bed = nf.testbed.people(people=20, forget_people=2, seed=seed, shape=SHAPE, progress=False)
    return Source.bare(bed, seed)


def main() -> None:
    """Write the tables to OUT/tables.md."""
    options = parsed(asking(__doc__, seeds=[0]))
    each(options, sources(options, small), "operators.json", run, tables, {})


if __name__ == "__main__":
    main()
