"""Does the audit tell erased from hidden? Five kinds of edit and the gold twin itself, on grafted testbeds.

Of a model of one's own the same edits on the found neurons, and the gold twin only where there is one.

python analyses/erased_or_hidden.py --out hidden            # five seeds, some four minutes each on one core
python analyses/erased_or_hidden.py --out hidden --seeds 0  # one of them; a killed run goes on where it was
python analyses/erased_or_hidden.py --out hidden --model CHECKPOINT --forget forget.jsonl --retain retain.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import cell, table
from running import asking, each, parsed
from sources import Source, sources

import neuronforget as nf
from neuronforget.audit_page import audit_report
from neuronforget.erase.ablate import all_of

SHOWN = 300  # retain examples
CHECKS = (
    "asked, forget", "asked, forget unseen", "choice, forget", "nf4, forget unseen", "relearning, taught again",
    "relearning, siblings", "lens, forget", "patching, states, forget", "patching, neurons, forget",
)  # fmt: skip
DAMAGE = {"KL from gold": "KL from gold", "retain after": "retain"}  # key -> head of its column


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
    verdicts, gaps, moved, words = [], [], [], {"gold": "with the gold twin", "no gold": "without one"}
    references = list(seeds[0][names[0]])
    about = {name: [seed[name][references[0]] for seed in seeds] for name in names}
    asked = {f"{c['probe']}, {c['corpus']}" for found in about.values() for seed in found for c in seed["checks"]}
    # without other phrasings forget itself is quantised
    checks = [key if key in asked else key.removesuffix(" unseen") for key in CHECKS]
    checks = [key for key in dict.fromkeys(checks) if key in asked]
    damage = {key: head for key, head in DAMAGE.items() if all(key in a["damage"] for a in about[names[0]])}
    for name, found in about.items():
        verdicts.append([name, *(_counted([seed[name][r]["verdict"] for seed in seeds]) for r in references)])
        gaps.append([name, *(_gap([c for seed in found for c in seed["checks"]], key) for key in checks)])
        row = [cell([a["neurons"][k] for a in found]) for k in ("taken away", "newly suppressing")]
        moved.append([name, *row, *(cell([a["damage"][k] for a in found]) for k in damage)])
    less = "the gold twin" if references[0] == "gold" else "its reference (see the pages)"
    return "\n\n".join([
        f"## Verdicts ({len(seeds)} seeds)", table(["audited", *(words[r] for r in references)], verdicts),
        f"## What each check finds, less {less}", table(["audited", *checks], gaps),
        "## What else moved", table(["audited", "taken away", "newly suppressing", *damage.values()], moved), *lost,
    ]) + "\n"  # fmt: skip


def _gap(checks: Sequence[Mapping[str, Any]], key: str) -> str:
    """A check's value less its reference, bold with the number of seeds where it found something left."""
    there = [c for c in checks if f"{c['probe']}, {c['corpus']}" == key]
    found = sum(c["outcome"] in ("left", "avoided") for c in there)
    text = cell([c["value"] - c["reference"] for c in there]) if there else ""
    return f"**{text}** ({found})" if found else text


def _counted(words: Sequence[str]) -> str:
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    return ", ".join(f"{word} ({n} of {len(words)})" if n < len(words) else word for word, n in counts.items())


def main() -> None:
    """Audit every case on every seed, write points (as the work goes on), the tables, and the first seed's pages."""
    options = parsed(asking(__doc__, seeds=range(5)), drawn=False)

    def run(source: Source, done: dict[str, Any]) -> Iterator[str]:
        return audits(source, done, options.out if source.seed == options.seeds[0] else None)

    each(options, sources(options), "audits.json", run, tables, {})


if __name__ == "__main__":
    main()
