"""What does each operator, and each guard, do by its defaults? One small testbed, one seed: not which is best.

python analyses/every_operator.py --out operators   # about a minute, the testbed included
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from erase_tables import table

import neuronforget as nf

#: Twenty people, two of them to be forgotten, 2 layers of 128 neurons.
SHAPE = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, steps=180, graft_steps=150, planted=12, batch=96, lr=4e-3)
ON_NEURONS = "ablate dampen ssd aura noise rank_one memit alpha_edit leace concept_vector revs".split()
#: Settings that small models need: few words, a cut that lets something through.
SETTINGS = {"alpha_edit": {"cut": 0.05}, "concept_vector": {"most": 8}, "revs": {"most": 8}}
CORPORA = ("forget", "forget unseen", "retain")


def erasures(bed: nf.testbed.Testbed) -> dict[str, nf.Edit]:
    """Return edits of the true neurons by every operator, and of what operators choose themselves."""
    make = partial(nf.erase.make, lm=bed.lm, forget=bed.forget, retain=bed.retain, progress=False)
    edits = {}
    for name in ON_NEURONS:
        own = SETTINGS.get(name, {})
        said = "".join(f", {k}={v:g}" for k, v in own.items())
        edits[f"`{name}` on the true neurons{said}"] = make(nf.erase.OPERATORS[name], neurons=bed.truth, **own)
    for name, settings in (("ssd", {}), ("aura", {}), ("memit", {"layers": [0]}),
                           ("memit", {"layers": [0], "preserve": 1}), ("alpha_edit", {"layers": [0], "cut": 0.05}),
                           ("leace", {}), ("first_order_update", {}), ("second_order_update", {})):  # fmt: skip
        said = "".join(f", {k}={v}" for k, v in settings.items())
        edits[f"`{name}`{said or ', where it chooses'}"] = make(nf.erase.OPERATORS[name], **settings)
    return edits


def guards(bed: nf.testbed.Testbed) -> dict[str, nf.Edit]:
    """Return guards of every kind, resampling of random neurons as its control, and ablation beside it."""
    of, given, truth = nf.erase.guards, (bed.lm, bed.forget, bed.retain), bed.truth
    assert truth is not None
    return {
        "`eco`, sigma=1": of.eco(*given, sigma=1.0),
        "`eco`, sigma=3": of.eco(*given, sigma=3.0),
        "`repe`, block 0, coefficient=1": of.repe(*given, layers=[0], coefficient=1.0),
        "`repe`, block 0, coefficient=2": of.repe(*given, layers=[0], coefficient=2.0),
        "`icu`, shown=1, kept=1": of.icu(*given, shown=1, kept=1),
        "`o3`, with retain": of.o3(*given, progress=False),
        "`o3`, without": of.o3(bed.lm, bed.forget, progress=False),
        "`resample`, the true neurons": of.resample(bed.lm, truth, bed.retain),
        "`resample`, random neurons": of.resample(bed.lm, truth.random_like(0), bed.retain),
        "`ablate`, the true neurons (an erasure)": nf.erase.ablate(bed.lm, truth),
    }


def shown(bed: nf.testbed.Testbed, edits: Mapping[str, nf.Edit]) -> str:
    """Return the table of the untouched model, the gold twin and every edit: exact match, and probability."""
    results = nf.evaluate(bed.lm, dict(edits), bed.forget, bed.retain, gold=bed.gold, strengths=(), damage=None,
                          progress=False)  # fmt: skip
    rows = []
    for name in ("untouched", "gold", *edits):
        exact = [f"{results.value(name, corpus):.2f}" for corpus in CORPORA]
        likely = [f"{results.value(name, corpus, 'probability'):.2f}" for corpus in ("forget", "retain")]
        rows.append([name, *exact, *likely])
    return table(["edit", *CORPORA, "forget: probability", "retain: probability"], rows)


PARTS: dict[str, Callable[[nf.testbed.Testbed], dict[str, nf.Edit]]] = {"erasures": erasures, "guards": guards}


def main() -> None:
    """Write the tables to OUT/tables.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bed = nf.testbed.people(people=20, forget_people=2, shape=SHAPE)
    text = "\n\n".join(f"## {part}\n\n{shown(bed, make(bed))}" for part, make in PARTS.items()) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
