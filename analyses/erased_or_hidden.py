"""Does the audit tell erased from hidden? Five kinds of edit and the gold twin itself, on grafted testbeds.

Of a model of one's own the same edits on the found neurons, and the gold twin only where there is one.

python analyses/erased_or_hidden.py --out hidden                    # seed 0, some four minutes on one core
python analyses/erased_or_hidden.py --out hidden --seeds 0 1 2 3 4  # five; a killed run goes on where it was
python analyses/erased_or_hidden.py --out hidden --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import cell, many, table
from drawing import FAINT, INK, line, mark, stripe, svg, text
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf
from neuronforget.colours import OKABE_ITO
from neuronforget.erase.ablate import all_of
from neuronforget.reporting.audit_page import audit_report

SHOWN = 300  # retain examples
CHECKS = (
    "asked, forget", "asked, forget unseen", "choice, forget", "nf4, forget unseen", "relearning, taught again",
    "relearning, siblings", "lens, forget", "patching, states, forget", "patching, neurons, forget",
)  # fmt: skip
DAMAGE = {"KL from gold": "KL from gold", "retain after": "retain"}  # key -> head of its column

REFERENCES = {"gold": "with the gold twin", "no gold": "without one"}
#: Outcome -> its words, marker, colour, size, hollow: what is found is large and dark.
MARKS = {
    "left": ("left", "square", OKABE_ITO[1], 4.2, False), "avoided": ("avoided", "down", OKABE_ITO[0], 4.6, False),
    "unclear": ("unclear", "circle", INK, 3.2, True), "gone": ("gone", "circle", "#8a8a8a", 1.7, False),
    "not known before": ("not known before", "dash", "#8a8a8a", 3.0, False),
}  # fmt: skip
CONTROLS = ("gold", "ablate random neurons")
LEFT, ABOVE, ROW, CELL, STEP, SIDE = 174, 112, 36, 53, 10, 212


def cases(source: Source) -> dict[str, Callable[[], nf.Edit | nf.LM]]:
    """Return how to make what is audited.

    Edits of neurons are of a testbed's planted ones, since the audit is tried here, not the finding; of a model of
    one's own they are of the found ones.
    """
    lm, forget, retain, true = source.lm, source.forget, source.retain, source.planted
    on, own = (source.found, "found") if true is None else (true, "true")
    last = all_of(lm, [lm.sites[-1].layer])

    def npo(neurons: nf.Neurons | None = None) -> nf.Edit:
        return nf.erase.finetune(lm, forget, retain, neurons=neurons, progress=False)

    made: dict[str, Callable[[], nf.Edit | nf.LM]] = {} if (gold := source.gold) is None else {"gold": lambda: gold}
    made |= {} if true is None else {"ablate": lambda: nf.erase.ablate(lm, true)}
    return {
        **made,
        "ablate the found neurons": lambda: nf.erase.ablate(lm, source.found),
        "npo": npo,
        f"npo on the {own} neurons": lambda: npo(on),
        "npo on the last layer": lambda: npo(last),
        "simnpo": lambda: nf.erase.finetune(lm, forget, retain, loss=nf.losses.simnpo, progress=False),
        "guard (eco)": lambda: nf.erase.guards.eco(lm, forget, retain, sigma=3.0),
        "ablate random neurons": lambda: nf.erase.ablate(lm, on.random_like(0)),
    }


def audits(source: Source, done: dict[str, Any], out: Path | None) -> Iterator[str]:
    """Fill `done` (case -> verdict and checks, with the gold twin and without); pages go to OUT."""
    retain = source.retain.head(SHOWN)
    for name, make in cases(source).items():
        if name in done:
            continue
        try:
            edit = make()
        except nf.InputError as error:  # a training that diverges is a finding
            done[name] = {"failed": str(error)}
        else:
            done[name] = _audited(source, edit, retain, out and out / f"{name.replace(' ', '-')}.html")
        yield name


def _audited(source: Source, edit: nf.Edit | nf.LM, retain: nf.Corpus, page: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for reference, gold in {**({} if source.gold is None else {"gold": source.gold}), "no gold": None}.items():
        made = nf.audit(source.lm, edit, source.forget, retain, gold=gold, progress=False)
        about = {"verdict": made.verdict, "damage": made.damage, "neurons": made.neurons}
        found[reference] = {**about, "checks": [asdict(check) for check in made.checks]}
        if page is not None and gold is source.gold:
            page.parent.mkdir(parents=True, exist_ok=True)
            audit_report(made, page, title=f"Erased, or only hidden? {page.stem.replace('-', ' ')}")
    return found


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return verdicts by case, and what the checks found above the reference."""
    failed = {name: case["failed"] for seed in seeds for name, case in seed.items() if "failed" in case}
    lost = ["## Not made", "\n".join(f"- {name}: {why}" for name, why in failed.items())] if failed else []
    if not (names := [name for name in seeds[0] if name not in failed]):
        return "\n\n".join(lost) + "\n"
    verdicts, gaps, moved, references = [], [], [], list(seeds[0][names[0]])
    about = {name: [seed[name][references[0]] for seed in seeds] for name in names}
    checks = shown(about.values())
    damage = {key: head for key, head in DAMAGE.items() if all(key in a["damage"] for a in about[names[0]])}
    for name, found in about.items():
        verdicts.append([name, *(_counted([seed[name][r]["verdict"] for seed in seeds]) for r in references)])
        gaps.append([name, *(_gap([c for seed in found for c in seed["checks"]], key) for key in checks)])
        row = [cell([a["neurons"][k] for a in found]) for k in ("taken away", "newly suppressing")]
        moved.append([name, *row, *(cell([a["damage"][k] for a in found]) for k in damage)])
    less = "the gold twin" if references[0] == "gold" else "its reference (see the pages)"
    return "\n\n".join([
        f"## Verdicts ({many(len(seeds))})", table(["audited", *(REFERENCES[r] for r in references)], verdicts),
        f"## What each check finds, less {less}", table(["audited", *checks], gaps),
        "## What else moved", table(["audited", "taken away", "newly suppressing", *damage.values()], moved), *lost,
    ]) + "\n"  # fmt: skip


def shown(about: Iterable[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return which of `CHECKS` were made."""
    asked = {_key(check) for found in about for seed in found for check in seed["checks"]}
    # without other phrasings forget itself is quantised
    checks = [key if key in asked else key.removesuffix(" unseen") for key in CHECKS]
    return [key for key in dict.fromkeys(checks) if key in asked]


def _key(check: Mapping[str, Any]) -> str:
    return f"{check['probe']}, {check['corpus']}"


def _gap(checks: Sequence[Mapping[str, Any]], key: str) -> str:
    """A check's value less its reference, bold with the number of seeds where it found something left."""
    there = [c for c in checks if _key(c) == key]
    found = sum(c["outcome"] in ("left", "avoided") for c in there)
    text = cell([c["value"] - c["reference"] for c in there]) if there else ""
    return f"**{text}** ({found})" if found else text


def _counted(words: Sequence[str]) -> str:
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    return ", ".join(f"{word} ({n} of {len(words)})" if n < len(words) else word for word, n in counts.items())


def picture(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG: a row an edit, a column a check, in each cell a mark a seed; at the right the verdicts."""
    names = [name for name in seeds[0] if all("failed" not in seed.get(name, {"failed": ""}) for seed in seeds)]
    references = list(seeds[0][names[0]]) if names else []
    about = {name: [seed[name][references[0]] for seed in seeds] for name in names}
    checks, wide = shown(about.values()), max(CELL, STEP * len(seeds) + 6)
    right = LEFT + max(wide * len(checks), 2 * SIDE)  # the legend takes as much
    parts = [stripe(ABOVE + ROW * i, right + SIDE, ROW) for i in range(0, len(names), 2)] + _legend(len(seeds))
    for i, key in enumerate(checks):
        words = key.replace(",", "").split()
        parts += [text(LEFT + wide * (i + 0.5), ABOVE - 10 - 12 * (len(words) - 1 - j), word, size=10, anchor="middle")
                  for j, word in enumerate(words)]  # fmt: skip
        parts.append(line(LEFT + wide * i, ABOVE, LEFT + wide * i, ABOVE + ROW * len(names), "#d0d0d0"))
    parts.append(text(right + 10, ABOVE - 10, "verdict", size=12, weight="600"))
    for i, (name, found) in enumerate(about.items()):
        y = ABOVE + ROW * (i + 0.5)
        weight = "700" if name in CONTROLS else "400"
        parts.append(text(LEFT - 8, y + 4, name, size=12, anchor="end", weight=weight))
        for j, key in enumerate(checks):
            outcomes = [next((c["outcome"] for c in seed["checks"] if _key(c) == key), None) for seed in found]
            parts += _cell(outcomes, LEFT + wide * (j + 0.5), y)
        for j, reference in enumerate(references):
            told = _counted([seed[name][reference]["verdict"].partition(",")[0] for seed in seeds])
            words = told if j == 0 else f"no twin: {told}"
            looks = {"fill": FAINT} if j else {"weight": "600"}
            parts.append(text(right + 10, y - 2 + 14 * j, words.replace(f" of {len(seeds)}", ""), size=11, **looks))
    title = "What each check of the audit finds after each edit, and the verdicts"
    return svg(right + SIDE, ABOVE + ROW * len(names) + 8, title, parts)


def _cell(outcomes: Sequence[str | None], middle: float, y: float) -> list[str]:
    start = middle - STEP * (len(outcomes) - 1) / 2
    return [_mark(start + STEP * i, y, outcome) for i, outcome in enumerate(outcomes) if outcome is not None]


def _mark(x: float, y: float, outcome: str) -> str:
    _, marker, colour, size, hollow = MARKS[outcome]
    if marker == "dash":
        return line(x - size, y, x + size, y, colour, width=1.4)
    return mark(x, y, marker, colour, size, hollow)


def _legend(seeds: int) -> list[str]:
    parts, x = [], 16
    for outcome, (words, *_) in MARKS.items():
        parts += [_mark(x, 18, outcome), text(x + 12, 22, words, size=12)]
        x += 44 + 7 * len(words)
    note = f"a mark a seed, {seeds} in each cell, in their order" if seeds > 1 else "one seed"
    return [*parts, text(16, 44, f'{note}; "gone" as a verdict: as far as asked', size=11, fill=FAINT)]


def main() -> None:
    """Audit every case on every seed, write points (as the work goes on), tables, figure, the first seed's pages."""
    options = parsed(asking(__doc__), drawn=False)

    def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
        return audits(source, done, options.out if source.seed == options.seeds[0] else None)

    each(options, sources(options), "audits.json", run, tables, {"audit.svg": picture})


if __name__ == "__main__":
    main()
