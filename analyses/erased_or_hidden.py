"""Does the audit tell erased from hidden? Five kinds of edit and the gold twin itself, on grafted testbeds.

python analyses/erased_or_hidden.py --out hidden            # five seeds, some three minutes each on one core
python analyses/erased_or_hidden.py --out hidden --seeds 0  # one of them; a killed run goes on where it was
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from erase_study import SHARE
from erase_tables import cell, table
from where_knowledge_lives import BEDS, PEOPLE, keep, shortlist_exact

import neuronforget as nf
from neuronforget.audit_page import audit_report
from neuronforget.erase.ablate import all_of

SHOWN = 300  # retain examples
CHECKS = (
    "asked, forget", "asked, forget unseen", "choice, forget", "nf4, forget unseen", "relearning, taught again",
    "relearning, siblings", "lens, forget", "patching, states, forget", "patching, neurons, forget",
)  # fmt: skip


def cases(bed: nf.testbed.Testbed) -> dict[str, Callable[[], nf.Edit | nf.LM]]:
    """Return how to make what is audited, mostly on the planted neurons: the audit is tried here, not the finding."""
    lm, forget, retain, truth = bed.lm, bed.forget, bed.retain, bed.planted
    assert truth is not None
    last = all_of(lm, [lm.sites[-1].layer])

    def found() -> nf.Neurons:
        scores = nf.attribute(lm, forget, retain.head(len(forget)), score=shortlist_exact, progress=False)
        return nf.select.per_layer(scores, SHARE)

    def npo(neurons: nf.Neurons | None = None) -> nf.Edit:
        return nf.erase.finetune(lm, forget, retain, neurons=neurons, progress=False)

    return {
        "gold": lambda: bed.gold,
        "ablate": lambda: nf.erase.ablate(lm, truth),
        "ablate the found neurons": lambda: nf.erase.ablate(lm, found()),
        "npo": npo,
        "npo on the true neurons": lambda: npo(truth),
        "npo on the last layer": lambda: npo(last),
        "simnpo": lambda: nf.erase.finetune(lm, forget, retain, loss=nf.losses.simnpo, progress=False),
        "guard (eco)": lambda: nf.erase.guards.eco(lm, forget, retain, sigma=3.0),
        "ablate random neurons": lambda: nf.erase.ablate(lm, truth.random_like(0)),
    }


def audits(bed: nf.testbed.Testbed, done: dict[str, Any], out: Path | None) -> Iterator[str]:
    """Fill `done` (case -> verdict and checks, with the gold twin and without); the first seed's pages go to OUT."""
    retain = bed.retain.head(SHOWN)
    for name, make in cases(bed).items():
        if name in done:
            continue
        edit, found = make(), {}
        for reference, gold in (("gold", bed.gold), ("no gold", None)):
            made = nf.audit(bed.lm, edit, bed.forget, retain, gold=gold, progress=False)
            about = {"verdict": made.verdict, "damage": made.damage, "neurons": made.neurons}
            found[reference] = {**about, "checks": [asdict(check) for check in made.checks]}
            if out is not None and gold is not None:
                audit_report(made, out / f"{name.replace(' ', '-')}.html", title=f"Erased, or only hidden? {name}")
        done[name] = found
        yield name


def tables(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return verdicts by case, and what the checks found above the reference."""
    verdicts, gaps, moved = [], [], []
    for name in seeds[0]:
        verdicts.append([name, *(_counted([seed[name][r]["verdict"] for seed in seeds]) for r in ("gold", "no gold"))])
        about = [seed[name]["gold"] for seed in seeds]
        row = [name]
        for key in CHECKS:
            there = [c for seed in about for c in seed["checks"] if f"{c['probe']}, {c['corpus']}" == key]
            found = sum(c["outcome"] in ("left", "avoided") for c in there)
            text = cell([c["value"] - c["reference"] for c in there])
            row.append(f"**{text}** ({found})" if found else text)
        gaps.append(row)
        row = [cell([a["neurons"][k] for a in about]) for k in ("taken away", "newly suppressing")]
        moved.append([name, *row, *(cell([a["damage"][k] for a in about]) for k in ("KL from gold", "retain after"))])
    return "\n\n".join([
        f"## Verdicts ({len(seeds)} seeds)", table(["audited", "with the gold twin", "without one"], verdicts),
        "## What each check finds, less the gold twin", table(["audited", *CHECKS], gaps),
        "## What else moved", table(["audited", "taken away", "newly suppressing", "KL from gold", "retain"], moved),
    ]) + "\n"  # fmt: skip


def _counted(words: Sequence[str]) -> str:
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    return ", ".join(f"{word} ({n} of {len(words)})" if n < len(words) else word for word, n in counts.items())


def main() -> None:
    """Audit every case on every seed, write points (as the work goes on), the tables, and the first seed's pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "audits.json"
    seeds: dict[str, Any] = json.loads(path.read_text())["seeds"] if path.is_file() else {}
    kind, settings = BEDS["grafted"]
    for seed in options.seeds:
        bed = nf.testbed.people(kind, seed=seed, people=PEOPLE, **settings)
        for name in audits(bed, seeds.setdefault(str(seed), {}), options.out if seed == options.seeds[0] else None):
            keep(path, seeds=seeds)
            print(f"seed {seed}: {name}", flush=True)
    text = tables([seeds[str(seed)] for seed in options.seeds])
    (options.out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
