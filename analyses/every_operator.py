"""What does each operator, and each guard, do by its defaults? Small testbeds of one kind: not which is best.

python analyses/every_operator.py --out operators --seeds 0 1 2 3 4   # four minutes; without --seeds one of them
python analyses/every_operator.py --out operators --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cells import cell, centre, many, middle, partly, spans, table, told
from drawing import FAINT, INK, line, mark, named, panel, scale, stripe, svg, text, whisker
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf
from neuronforget.colours import OKABE_ITO

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


def measured(source: Source, made: Made) -> dict[str, Any]:
    """Return the references and every edit, exact match and probability, and what could not be made."""
    edits = {name: edit for name, edit in made.items() if isinstance(edit, nf.Edit)}
    results = nf.evaluate(source.lm, edits, source.forget, source.retain, gold=source.gold, strengths=(), damage=None,
                          progress=False)  # fmt: skip
    corpora = {name: words for name, words in CORPORA.items() if name in source.corpora}
    rows = []
    for name in (*source.references, *edits):
        exact = {words: results.value(name, words) for words in corpora.values()}
        likely = {f"{c}: probability": results.value(name, c, "probability") for c in ("forget", "retain")}
        scope = "reference" if name in source.references else scope_of(name, edits[name])
        rows.append({"edit": name, "scope": scope, **exact, **likely})
    return {"rows": rows, "failed": {name: edit for name, edit in made.items() if isinstance(edit, str)}}


def scope_of(name: str, edit: nf.Edit) -> str:
    """Return what an edit acts on: random neurons, no weight (a guard), known neurons, what the operator chose."""
    if "random neurons" in name:
        return "control"
    if edit.info.get("scope") == "guard":
        return "guard"
    return "neurons" if " neurons" in name else "own choice"


PARTS: dict[str, Callable[[Source], Made]] = {"erasures": erasures, "guards": guards}


def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, part -> rows and failures, saying which is finished."""
    for part, make in PARTS.items():
        if part not in done:
            done[part] = measured(source, make(source))
            yield part


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each part."""
    parts = {part: [seed[part] for seed in seeds] for part in seeds[0]}
    return "\n\n".join(f"## {part} ({many(len(seeds))})\n\n{shown(own)}" for part, own in parts.items()) + "\n"


def by_edit(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return edit -> its row in each seed where it could be made."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for rows in seeds:
        for name, row in {row["edit"]: row for row in rows}.items():
            found.setdefault(name, []).append(row)
    return found


def shown(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of a part, of several seeds what is less than in the same model untouched, what failed."""
    columns = [name for name in seeds[0]["rows"][0] if name not in ("edit", "scope")]
    compared = [name for name in columns if name in CORPORA.values()] if len(seeds) > 1 else []
    rows = []
    for name, found in by_edit([seed["rows"] for seed in seeds]).items():
        row = [partly(name, len(found), len(seeds)), *(cell([made[column] for made in found]) for column in columns)]
        starts = [seed["rows"][0] for seed in seeds if any(made["edit"] == name for made in seed["rows"])]
        less = [
            [made[column] - start[column] for made, start in zip(found, starts, strict=True)] for column in compared
        ]
        rows.append([*row, *(told(values) if name != "untouched" else "" for values in less)])
    head = ["edit", *columns, *(f"{column}, less untouched" for column in compared)]
    failed = [f"- {name}: {why}" for seed in seeds for name, why in seed["failed"].items()]
    return "\n\n".join([table(head, rows), *(["Not made:\n\n" + "\n".join(failed)] if failed else [])])


#: Scope -> its words, colour, marker.
SCOPES = {
    "reference": ("untouched and gold", INK, "diamond"), "neurons": ("on neurons", OKABE_ITO[0], "circle"),
    "own choice": ("where it chooses", OKABE_ITO[1], "square"), "guard": ("guard", OKABE_ITO[2], "triangle"),
    "control": ("random neurons", "#6b6b6b", "down"),
}  # fmt: skip
PANELS = {"forget": ("forget", "forget unseen"), "retain": ("retain",)}
LEFT, ABOVE, ROW, WIDE, GAP, ASIDE = 296, 100, 22, 176, 40, 3.5  # forget above its unseen phrasings: bars cover bars


def picture(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG: a row an edit, by scope; forget beside retain, exact match; bars are 95% over seeds."""
    found = by_edit([[row for part in seed.values() for row in part["rows"]] for seed in seeds])
    names = sorted(found, key=lambda name: list(SCOPES).index(found[name][0]["scope"]))
    width, bottom, parts = LEFT + 2 * (WIDE + GAP), ABOVE + ROW * len(names), _legend(len(seeds))
    for i, name in enumerate(names):
        if i and found[name][0]["scope"] != found[names[i - 1]][0]["scope"]:
            parts.append(line(0, ABOVE + ROW * i, width, ABOVE + ROW * i, INK))
        parts += [stripe(ABOVE + ROW * i, width, ROW)] if i % 2 else []
        parts.append(text(LEFT - 12, ABOVE + ROW * (i + 0.5) + 4, name.replace("`", ""), size=12, anchor="end"))
    for i, (words, corpora) in enumerate(PANELS.items()):
        at = scale(0, 1, LEFT + i * (WIDE + GAP), LEFT + i * (WIDE + GAP) + WIDE)
        parts += panel(f"{words}, exact match", at, (0, 0.5, 1), ABOVE, bottom)
        for reference, dash in (("untouched", "1 3"), ("gold", "8 2 2 2")):
            if reference in found:
                mean, _ = middle([row[words] for row in found[reference]])
                parts.append(line(at(mean), ABOVE, at(mean), bottom, INK, dash))
        for j, name in enumerate(names):
            parts += _row(found[name], [c for c in corpora if c in found[name][0]], at, ABOVE + ROW * (j + 0.5))
    return svg(width, bottom + 24, "Forget and retain after every operator and guard, by its defaults", parts)


def _row(
    rows: Sequence[Mapping[str, Any]], corpora: Sequence[str], at: Callable[[float], float], y: float
) -> list[str]:
    _, colour, marker = SCOPES[rows[0]["scope"]]
    parts = []
    for i, corpus in reversed(list(enumerate(corpora))):
        value, low, high = centre([row[corpus] for row in rows])
        there = y + ASIDE * (2 * i - len(corpora) + 1)
        parts += [whisker(at, there, low, high, (0, 1), colour)]
        parts.append(mark(at(value), there, marker, colour, 4, hollow=corpus.endswith("unseen")))
    return parts


def _legend(seeds: int) -> list[str]:
    parts, _ = named([(words, marker, colour, False) for words, colour, marker in SCOPES.values()], 16, 18, 34)
    note = "hollow: phrasings that no edit saw; dotted: untouched; dash-dotted: gold, the twin that never knew"
    bars = spans("bars", seeds) + (", cut at 0 and 1" if seeds > 1 else "")
    return [*parts, text(16, 44, note, size=11, fill=FAINT), text(16, 60, bars, size=11, fill=FAINT)]


def small(seed: int) -> Source:
    """A small testbed, whose true neurons are known."""
    bed = nf.testbed.people(people=20, forget_people=2, seed=seed, shape=SHAPE, progress=False)
    return Source.bare(bed, seed)


def main() -> None:
    """Write the tables to OUT/tables.md, the figure to OUT/operators.svg."""
    options = parsed(asking(__doc__))
    each(options, sources(options, small), "operators.json", run, tables, {"operators.svg": picture})


if __name__ == "__main__":
    main()
