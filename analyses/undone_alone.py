"""What is left of requests B and C when A, which came before them, is undone alone?

The people to be forgotten are split into three requests, erased one after the other; then A is undone alone, and
beside that model stands one on which B and C were made without A. `python analyses/undone_alone.py --out undone`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import tyro

import neuronforget as nf
from neuronforget.ledger import Ledger
from neuronforget.runs import whole_folder

Maker = Callable[[nf.LM, nf.Corpus, nf.Corpus], nf.Edit]


def ablate(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
    scores = nf.attribute(lm, forget, retain, progress=False)
    return nf.erase.ablate(lm, nf.select.top(scores, 40))


def rank_one(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
    return nf.erase.rank_one(lm, forget, retain)


def npo(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
    chosen = nf.select.top(nf.attribute(lm, forget, retain, progress=False), 40)
    return nf.erase.finetune(lm, forget, retain, loss=nf.losses.npo, neurons=chosen, progress=False)


def rows_of(bed: nf.testbed.Testbed, make: Maker, requests: str = "ABC") -> list[dict[str, object]]:
    """Exact match on each request's examples and on retain, state by state; the model is left as it was."""
    lm, subjects = bed.lm, sorted({example.subject for example in bed.forget.examples})
    group = {subject: requests[i * len(requests) // len(subjects)] for i, subject in enumerate(subjects)}
    parts = {
        r: replace(bed.forget, examples=tuple(e for e in bed.forget.examples if group[e.subject] == r), name=r)
        for r in requests
    }
    rows: list[dict[str, object]] = []

    def measure(state: str) -> None:
        row: dict[str, object] = {"edit": make.__name__, "state": state}
        for request, part in parts.items():
            results = nf.evaluate(lm, {}, part, bed.retain, strengths=(), damage=None, progress=False)
            row |= {request: results.value("untouched", "forget"), "retain": results.value("untouched", "retain")}
        rows.append(row)

    ledger, fresh = Ledger(), Ledger()
    measure("untouched")
    for request, part in parts.items():
        ledger.apply(lm, make(lm, part, bed.retain), request=request)
        measure(f"{request} applied")
    try:
        ledger.undo(lm, requests[0])
        measure(f"{requests[0]} undone alone")
    except nf.InputError as refusal:
        rows.append({"edit": make.__name__, "state": f"refused: {refusal}"})
    ledger.undo_all(lm)
    for request in requests[1:]:
        fresh.apply(lm, make(lm, parts[request], bed.retain), request=request)
    measure(f"made without {requests[0]}")
    fresh.undo_all(lm)
    return rows


def main(out: Path) -> None:
    """Write the table of the default testbed, seed 0, to OUT/table.md."""
    bed = nf.testbed.people()
    table = pd.DataFrame([row for make in (ablate, rank_one, npo) for row in rows_of(bed, make)])
    with whole_folder(out) as scratch:
        cells = [table.columns, ["---"] * len(table.columns), *table.round(2).fillna("").astype(str).to_numpy()]
        (scratch / "table.md").write_text("\n".join(f"| {' | '.join(row)} |" for row in cells))
    print(table.round(2).to_string())


if __name__ == "__main__":
    tyro.cli(main)
