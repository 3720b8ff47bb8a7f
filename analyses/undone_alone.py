"""What is left of requests B and C when A, which came before them, is undone alone?

The people to be forgotten are split into three requests, erased one after the other; then A is undone alone, and
beside that model stands one on which B and C were made without A.

python analyses/undone_alone.py --out undone   # the default testbed, seed 0
python analyses/undone_alone.py --out undone --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cells import table
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf
from neuronforget.ledger import Ledger

Maker = Callable[[nf.LM, nf.Corpus, nf.Corpus], nf.Edit]


def ablate(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
    scores = nf.attribute(lm, forget, retain, progress=False)
    return nf.erase.ablate(lm, nf.select.top(scores, 40))


def rank_one(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
    return nf.erase.rank_one(lm, forget, retain)


def npo(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
    chosen = nf.select.top(nf.attribute(lm, forget, retain, progress=False), 40)
    return nf.erase.finetune(lm, forget, retain, loss=nf.losses.npo, neurons=chosen, progress=False)


def rows_of(source: Source, make: Maker, requests: str = "ABC") -> list[dict[str, Any]]:
    """Exact match on each request's examples and on retain, state by state; the model is left as it was."""
    lm, whose = source.lm, [example.subject or example.prompt for example in source.forget]
    subjects = sorted(set(whose))
    if len(subjects) < len(requests):
        raise nf.InputError(f"{len(requests)} requests need as many subjects to forget, there are {len(subjects)}")
    group = {subject: requests[i * len(requests) // len(subjects)] for i, subject in enumerate(subjects)}
    pairs = list(zip(source.forget, whose, strict=True))
    parts = {
        r: replace(source.forget, examples=tuple(e for e, who in pairs if group[who] == r), name=r) for r in requests
    }
    rows: list[dict[str, Any]] = []

    def measure(state: str) -> None:
        row: dict[str, Any] = {"edit": make.__name__, "state": state}
        for request, part in parts.items():
            results = nf.evaluate(lm, {}, part, source.retain, strengths=(), damage=None, progress=False)
            row |= {request: results.value("untouched", "forget"), "retain": results.value("untouched", "retain")}
        rows.append(row)

    ledger, fresh = Ledger(), Ledger()
    measure("untouched")
    for request, part in parts.items():
        ledger.apply(lm, make(lm, part, source.retain), request=request)
        measure(f"{request} applied")
    try:
        ledger.undo(lm, requests[0])
        measure(f"{requests[0]} undone alone")
    except nf.InputError as refusal:
        rows.append({"edit": make.__name__, "state": f"refused: {refusal}"})
    ledger.undo_all(lm)
    for request in requests[1:]:
        fresh.apply(lm, make(lm, parts[request], source.retain), request=request)
    measure(f"made without {requests[0]}")
    fresh.undo_all(lm)
    return rows


def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, edit -> rows, saying which is finished."""
    for make in (ablate, rank_one, npo):
        if make.__name__ not in done:
            done[make.__name__] = rows_of(source, make)
            yield make.__name__


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each seed: exact match."""
    parts = []
    for seed in seeds:
        rows = [row for rows in seed.values() for row in rows]
        head = list(rows[0])
        lines = [[v if isinstance(v := row.get(name, ""), str) else f"{v:.2f}" for name in head] for row in rows]
        parts.append(table(head, lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure every state, write `states.json` (as the work goes on) and `tables.md`."""
    options = parsed(asking(__doc__, seeds=[0]), drawn=False)
    found = sources(options, lambda seed: Source.bare(nf.testbed.people(seed=seed), seed))
    each(options, found, "states.json", run, tables, {})


if __name__ == "__main__":
    main()
