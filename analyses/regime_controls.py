"""Do the cells that chosen neurons won hold against harder controls? Neurons matched in write norm, and in activation.

Random neurons may lose only because they are weak ones. For each cell of `regime_map.py` whose chosen neurons are
closer to the gold twin than random ones by an interval that excludes zero, the same edit on neurons that are as many in
each layer and alike in write norm, or in root mean square activation on retain, tuned alike.

python analyses/regime_controls.py --out regimes   # after regime_map.py into the same folder; a killed run goes on
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from erase_study import Study
from erase_tables import cell, table
from regime_map import BEDS, SELECTIONS, arm, study_of
from regime_tables import Arms, closeness, gains, places, selections, verdict
from where_knowledge_lives import keep

import neuronforget as nf
from neuronforget.recording import write_norms

KINDS = ("norm", "activation")
Cell = tuple[str, str, str]  # operator, size, selection


def won(arms: Sequence[Arms]) -> list[Cell]:
    """Return the cells whose chosen neurons are closer to gold than random ones, the interval excluding zero."""
    cells = [(operator, size, name) for operator, size in places(arms[0]) for name in selections(arms[0])]
    return [found for found in cells if verdict(gains(arms, *found)) == "chosen"]


def run(study: Study, cells: Sequence[Cell], start: Any, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, "operator|size|selection|kind" -> arm, saying which is finished."""
    missing = [found for found in cells if any("|".join((*found, kind)) not in done for kind in KINDS)]
    if not missing:
        return
    bed = study.bed
    shown = bed.retain.head(len(bed.forget))
    moments = nf.record(bed.lm, bed.retain, progress=False)
    values = {"norm": write_norms(bed.lm), "activation": moments.rms}
    scores = {name: nf.attribute(bed.lm, bed.forget, shown, score=SELECTIONS[name], progress=False)
              for name in dict.fromkeys(name for *_, name in missing)}  # fmt: skip
    for operator, size, name in missing:
        chosen = nf.select.per_layer(scores[name], float(size))
        for kind in KINDS:
            if (key := f"{operator}|{size}|{name}|{kind}") not in done:
                done[key] = arm(study, operator, chosen.matched(values[kind], study.seed), start, relearn=False)
                yield key


def tables(done: Mapping[str, Arms], controls: Mapping[str, Arms], beds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return each won cell's difference to gold, chosen less random, less norm-matched, less activation-matched."""
    rows, held = [], dict.fromkeys((*KINDS, "both"), 0)
    ablations = 0
    for bed in beds:
        arms = [done[f"{bed} {seed}"] for seed in seeds]
        for found in won(arms):
            row = [bed, found[0], f"{float(found[1]):.2%}", found[2], cell(gains(arms, *found))]
            words = []
            for kind in KINDS:
                values = [
                    closeness(arms[i], *found) - _matched(controls[f"{bed} {seed}"], found, kind)
                    for i, seed in enumerate(seeds)
                ]
                words.append(verdict(values))
                held[kind] += words[-1] == "chosen"
                row.append(f"{cell(values)} {words[-1]}".strip())
            both = words == ["chosen"] * len(KINDS)
            held["both"], ablations = held["both"] + both, ablations + (both and found[0] == "ablate")
            rows.append(row)
    head = [
        "request",
        "operator",
        "of each layer",
        "selection",
        "less random",
        *(f"less {kind}-matched" for kind in KINDS),
    ]
    lines = [f"- chosen closer than {kind}-matched neurons too: {held[kind]} of {len(rows)}" for kind in KINDS]
    many = sum(row[1] == "ablate" for row in rows)
    lines.append(f"- than both: {held['both']}; of ablation's {many}: {ablations}")
    return "\n".join(lines) + "\n\n" + table(head, rows) + "\n"


def _matched(controls: Arms, found: Cell, kind: str) -> float:
    edit = controls["|".join((*found, kind))]
    return float(edit["tuned"]["unseen"]["kl_gold"]) if "tuned" in edit else float("nan")


def main() -> None:
    """Measure the controls, write `controls.json` (as the work goes on) and `controls.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    done = json.loads((options.out / "map.json").read_text())["beds"]
    seeds = sorted({int(name.rsplit(" ", 1)[1]) for name in done})
    path = options.out / "controls.json"
    controls: dict[str, dict[str, Any]] = json.loads(path.read_text())["beds"] if path.is_file() else {}
    for seed in seeds:
        for kind in BEDS:
            cells = won([done[f"{kind} {other}"] for other in seeds])
            into = controls.setdefault(f"{kind} {seed}", {})
            if any("|".join((*found, control)) not in into for found in cells for control in KINDS):
                study, start = study_of(BEDS[kind](seed), seed), done[f"{kind} {seed}"]["untouched"]["tuned"]
                again = study.values(study.bed.lm)["unseen"]["kl_gold"]
                if abs(again - start["unseen"]["kl_gold"]) > 1e-3:
                    raise SystemExit(f"{options.out / 'map.json'} was made on another model of {kind!r}, seed {seed}")
                for name in run(study, cells, start, into):
                    keep(path, beds=controls)
                    print(f"{kind}, seed {seed}: {name}", flush=True)
    text = tables(done, controls, list(BEDS), seeds)
    (options.out / "controls.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
