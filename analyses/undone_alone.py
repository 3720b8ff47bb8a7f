"""What is left of requests B and C when A, which came before them, is undone alone?

The people to be forgotten are split into three requests, erased one after the other; then A is undone alone, and
beside that model stands one on which B and C were made without A.

python analyses/undone_alone.py --out undone --seeds 0 1 2 3 4   # half an hour; without --seeds one testbed, seed 0
python analyses/undone_alone.py --out undone --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from cells import cell, centre, many, partly, spans, table, told
from drawing import FAINT, INK, line, mark, scale, svg, text, whisker
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf
from neuronforget.colours import OKABE_ITO
from neuronforget.ledger import Ledger

#: What was asked -> colour, dash and marker of its line.
LINES = {
    "A": (OKABE_ITO[1], "", "circle"), "B": (OKABE_ITO[0], "6 3", "square"), "C": (OKABE_ITO[2], "2 3", "triangle"),
    "retain": (INK, "8 2 2 2", "diamond"),
}  # fmt: skip
UNDONE, SHOULD = "A undone alone", "made without A"  # a state, and what it should be
OTHERS = "C applied", "untouched", SHOULD  # what it is held against
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
            row |= {request: results.value("untouched", "forget")}
        rows.append(row | {"retain": results.value("untouched", "retain")})

    ledger, fresh = Ledger(), Ledger()
    measure("untouched")
    for request, part in parts.items():
        ledger.apply(lm, make(lm, part, source.retain), request=request)
        measure(f"{request} applied")
    try:
        ledger.undo(lm, requests[0])
        measure(f"{requests[0]} undone alone")
    except nf.InputError as refusal:
        rows.append({"edit": make.__name__, "state": f"{requests[0]} undone alone: refused", "why": str(refusal)})
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


def by_state(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    """Return edit -> state -> its row in each seed that has it; what undoing should give stands last."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for edit, row in ((edit, row) for seed in seeds for edit, rows in seed.items() for row in rows):
        found.setdefault(edit, {}).setdefault(row["state"], []).append(row)
    return {edit: dict(sorted(rows.items(), key=lambda row: row[0] == SHOULD)) for edit, rows in found.items()}


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return exact match state by state, and what undoing A alone gives less other states, paired over seeds."""
    found = by_state(seeds)
    lines = [
        [edit, partly(state, len(rows), len(seeds)),
         *(cell([row[what] for row in rows]) if what in rows[0] else "" for what in LINES)]
        for edit, states in found.items() for state, rows in states.items()
    ]  # fmt: skip
    less = []
    for edit in found:
        states = [{row["state"]: row for row in seed[edit]} for seed in seeds]
        states = [rows for rows in states if UNDONE in rows]
        for other in OTHERS if states else ():
            gaps = [[rows[UNDONE][what] - rows[other][what] for rows in states] for what in LINES]
            less.append([edit, partly(f"less {other}", len(states), len(seeds)), *map(told, gaps)])
    return (
        f"## State by state ({many(len(seeds))})\n\n{table(['edit', 'state', *LINES], lines)}\n\n"
        f"## {UNDONE}, less another state\n\n{table(['edit', UNDONE, *LINES], less)}\n"
    )


LEFT, ABOVE, WIDE, HIGH, GAP, BELOW, ASIDE = 46, 78, 204, 220, 26, 96, 6


def picture(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG: a panel an edit; what is answered of A, B, C and retain, state by state; bars are cut."""
    found = by_state(seeds)
    parts, x = [], LEFT
    for words, (colour, dash, marker) in LINES.items():
        parts += [line(x, 18, x + 30, 18, colour, dash, 2), mark(x + 15, 18, marker, colour), text(x + 36, 22, words)]
        x += 80
    note = "exact match; hollow: made without A, the state that undoing A should give"
    note += f"; {spans('bars', len(seeds))}" + (", cut at 0 and 1" if len(seeds) > 1 else "")
    parts.append(text(LEFT, 44, note, 11, fill=FAINT))
    for i, (edit, states) in enumerate(found.items()):
        parts += _panel(edit, states, LEFT + i * (WIDE + GAP))
    title = "What is left of three requests, state by state, when the first is undone alone"
    return svg(LEFT + len(found) * (WIDE + GAP), ABOVE + HIGH + BELOW, title, parts)


def _panel(edit: str, states: Mapping[str, Sequence[Mapping[str, Any]]], left: float) -> list[str]:
    top, rows = ABOVE, list(states.values())
    at, up = scale(0, len(rows) - 1, left + 18, left + WIDE - 18), scale(0, 1, top + HIGH, top)
    parts = [text(left, top - 14, edit, weight="600")]
    for tick in (0, 0.5, 1):
        parts.append(line(left, up(tick), left + WIDE, up(tick), "#c4c4c4"))
        parts.append(text(left - 6, up(tick) + 4, f"{tick:g}", size=11, anchor="end", fill=FAINT))
    parts.append(line(at(len(rows) - 1.5), top, at(len(rows) - 1.5), top + HIGH, INK, "1 3"))
    for i, state in enumerate(states):
        words = state.replace("undone alone: refused", "undone: refused")
        place = f"translate({at(i) + 4:.1f} {top + HIGH + 16:.1f}) rotate(-40)"
        parts.append(text(0, 0, words, size=11, anchor="end", move=place))
    for i, (what, (colour, dash, marker)) in enumerate(LINES.items()):
        aside = ASIDE * (i - (len(LINES) - 1) / 2)  # marks that would hide one another
        there = [(at(j) + aside, j, centre([row[what] for row in found])) for j, found in enumerate(rows)
                 if what in found[0]]  # fmt: skip
        parts += [line(x, up(y), x2, up(y2), colour, dash, 1.6) for (x, _, (y, *_)), (x2, j, (y2, *_)) in
                  pairwise(there) if j < len(rows) - 1]  # fmt: skip
        parts += [whisker(up, x, low, high, (0, 1), colour, upright=True) for x, _, (_, low, high) in there]
        parts += [mark(x, up(y), marker, colour, hollow=j == len(rows) - 1) for x, j, (y, *_) in there]
    return parts


def main() -> None:
    """Measure every state, write `states.json` (as the work goes on), `tables.md` and `ledger.svg`."""
    options = parsed(asking(__doc__), drawn=False)
    found = sources(options, lambda seed: Source.bare(nf.testbed.people(seed=seed), seed))
    each(options, found, "states.json", run, tables, {"ledger.svg": picture})


if __name__ == "__main__":
    main()
