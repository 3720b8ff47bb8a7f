"""Do the cells that chosen neurons won hold against harder controls? Neurons matched in write norm, and in activation.

Random neurons may lose only because they are weak ones. For each cell of `regime_map.py` whose chosen neurons are
closer to the gold twin than random ones by an interval that excludes zero, the same edit on neurons that are as many in
each layer and alike in write norm, or in root mean square activation on retain, tuned alike.

python analyses/regime_controls.py --out regimes --beds all --seeds 0 1 2 3 4  # after regime_map.py with the same
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cells import cell, table
from controls_figure import picture
from judging import judged, judged_by
from regime_map import SELECTIONS, arm, makers, mapping
from regime_tables import Arms, closeness, gains, places, selections, verdict
from running import claim, in_one_line, keep, kept, parsed
from sources import Source

import neuronforget as nf
from neuronforget.recording import write_norms

KINDS = ("norm", "activation")
Cell = tuple[str, str, str]  # operator, size, selection


def won(arms: Sequence[Arms]) -> list[Cell]:
    """Return the cells whose chosen neurons are closer to gold than random ones, the interval excluding zero."""
    cells = [(operator, size, name) for operator, size in places(arms[0]) for name in selections(arms[0])]
    return [found for found in cells if verdict(gains(arms, *found)) == "chosen"]


def run(source: Source, cells: Sequence[Cell], start: Any, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`, "operator|size|selection|kind" -> arm, saying which is finished."""
    missing = [found for found in cells if any("|".join((*found, kind)) not in done for kind in KINDS)]
    if not missing:
        return
    moments = nf.record(source.lm, source.retain, progress=False)
    values = {"norm": write_norms(source.lm), "activation": moments.rms}
    scores = {name: source.scored(SELECTIONS[name]) for name in dict.fromkeys(name for *_, name in missing)}
    for operator, size, name in missing:
        chosen = nf.select.per_layer(scores[name], float(size))
        for kind in KINDS:
            if (key := f"{operator}|{size}|{name}|{kind}") not in done:
                done[key] = arm(source, operator, chosen.matched(values[kind], source.seed), start, relearn=False)
                yield key


def compared(
    done: Mapping[str, Arms], controls: Mapping[str, Arms], beds: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return each won cell: what it is, and by seed how much closer it is than each control (negative: it is).

    "random" are the map's own random neurons, those of KINDS the matched ones.
    """
    rows = []
    for bed in beds:
        arms = [done[f"{bed} {seed}"] for seed in seeds]
        for found in won(arms):
            row = dict(zip(("request", "operator", "size", "selection"), (bed, *found), strict=True))
            less = {
                kind: [
                    closeness(arms[i], *found) - _matched(controls[f"{bed} {seed}"], found, kind)
                    for i, seed in enumerate(seeds)
                ]
                for kind in KINDS
            }
            rows.append({**row, "random": gains(arms, *found), **less})
    return rows


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return each won cell's difference to gold, chosen less random, less norm-matched, less activation-matched."""
    held = [{kind: verdict(row[kind]) == "chosen" for kind in KINDS} for row in rows]
    both = [row for row, kinds in zip(rows, held, strict=True) if all(kinds.values())]
    ablations = [[row for row in some if row["operator"] == "ablate"] for some in (rows, both)]
    lines = [
        f"- chosen closer than {kind}-matched neurons too: {sum(kinds[kind] for kinds in held)} of {len(rows)}"
        for kind in KINDS
    ]
    lines.append(f"- than both: {len(both)}; of ablation's {len(ablations[0])}: {len(ablations[1])}")
    shown = [
        [row["request"], row["operator"], f"{float(row['size']):.2%}", row["selection"], cell(row["random"])]
        + [f"{cell(row[kind])} {verdict(row[kind])}".strip() for kind in KINDS]
        for row in rows
    ]
    less = [f"less {kind}-matched" for kind in KINDS]
    head = ["request", "operator", "of each layer", "selection", "less random", *less]
    return "\n".join(lines) + "\n\n" + table(head, shown) + "\n"


def _matched(controls: Arms, found: Cell, kind: str) -> float:
    edit = controls["|".join((*found, kind))]
    return judged(edit["tuned"]) if "tuned" in edit else float("nan")


def main() -> None:
    """Measure the controls, write `controls.json` (as the work goes on), `controls.md` and `controls.svg`."""
    options = parsed(mapping(__doc__, range(5)))
    mapped, path = options.out / "map.json", options.out / "controls.json"
    done, known = kept(mapped, "beds"), kept(mapped, "subjects")
    controls, subjects = kept(path, "beds"), kept(path, "subjects")
    if len(options.seeds) < 2:
        raise SystemExit("of one seed nothing is told apart: name as many --seeds as the map has, two or more")
    with in_one_line():
        kinds = makers(options)
        beds = {f"{kind} {seed}": partial(make, seed) for seed in options.seeds for kind, make in kinds.items()}
        if missing := [bed for bed in beds if bed not in done]:
            raise SystemExit(f"{mapped} has not {missing[0]!r}: run regime_map.py with the same options first")
        for bed, make in beds.items():
            source, kind = make(), bed.rsplit(" ", 1)[0]
            claim(mapped, done, known, bed, source.key)
            claim(path, controls, subjects, bed, source.key)
            cells = won([done[f"{kind} {seed}"] for seed in options.seeds])
            for name in run(source, cells, done[bed]["untouched"]["tuned"], controls.setdefault(bed, {})):
                keep(path, subjects=subjects, beds=controls)
                print(f"{bed}: {name}", flush=True)
    rows = compared(done, controls, list(kinds), options.seeds)
    far = judged_by(next(iter(done.values()))["untouched"]["tuned"])
    text = tables(rows)
    (options.out / "controls.md").write_text(text)
    (options.out / "controls.svg").write_text(picture(rows, far, len(options.seeds)))
    print(text)


if __name__ == "__main__":
    main()
