"""Tables of `erase_methods.py`: means over seeds, Student's 95% intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from cells import cell, folded, many, table, told, verdict
from judging import Point, exact, judged, judged_by
from relearning import came_back, relearned

Arm = Mapping[str, Any]
Seed = Mapping[str, Arm]
Value = Callable[[Point], float]
PLACES = {"found": "On the found neurons", "full": "On the whole model (closed forms: on what they choose)",
          "random": "Controls: on random neurons, as many in each layer"}  # fmt: skip
GUARD = {"guard": "Guards, which change no weight"}
CLAIM = "ablate@found"
RELEARNING = ("steps to relearn", "siblings back")


def columns_of(point: Point) -> dict[str, Value]:
    """Return what is shown of points like this one: exact match, and what `judged` says, by corpus."""
    asked = {name: partial(exact, corpus=name) for name in ("forget", "unseen", "retain") if name in point}
    far = ["unseen", *(name for name in ("retain", "strangers") if name in point)]
    return asked | {judged_by(point, name): partial(judged, corpus=name) for name in far}


def tables(seeds: Sequence[Seed]) -> str:
    """Return all tables in Markdown, the long ones folded."""
    parts = [_references(seeds), _claims(seeds), _where(seeds)]
    parts += [folded(_tuned(seeds, place), f"{words}, tuned") for place, words in (PLACES | GUARD).items()]
    return "\n\n".join([*parts, folded(_matched(seeds), "At matched damage"), _failures(seeds)]) + "\n"


def far_by(seeds: Sequence[Seed]) -> str:
    """Return what it is called how far an arm has come."""
    return judged_by(seeds[0]["untouched"]["tuned"])


def full(arm: Arm) -> Arm:
    """Return an arm's point at strength 1 (of its last edit)."""
    return next(point for point in arm["dials"][-1] if point["strength"] == 1)


def arms_at(seeds: Sequence[Seed], place: str) -> list[str]:
    """Arms of a place that every seed could make."""
    return [n for n in seeds[0] if n.endswith(f"@{place}") and all("tuned" in seed.get(n, {}) for seed in seeds)]


def points_of(seeds: Sequence[Seed], name: str, point: str = "tuned") -> list[Arm]:
    return [full(seed[name]) if point == "full" else seed[name][point] for seed in seeds]


def _cells(points: Sequence[Point], columns: Mapping[str, Value]) -> list[str]:
    return [cell([of(p) for p in points], 3 if name == "KL retain" else 2) for name, of in columns.items()]


def _relearning(seeds: Sequence[Seed], name: str) -> list[str]:
    """Median step and what came back, of the tuned arm; nothing where it was not asked in every seed."""
    if not all("relearning" in seed[name] for seed in seeds):
        return ["", ""]
    siblings = [came_back(seed[name]) for seed in seeds]
    middle, last = float(np.median([relearned(seed[name]) for seed in seeds])), seeds[0][name]["relearning"]["step"][-1]
    back = "" if any(math.isnan(value) for value in siblings) else cell(siblings)
    return [f"{middle:g}" if math.isfinite(middle) else f"> {last}", back]


def _references(seeds: Sequence[Seed]) -> str:
    about = "; ".join(f"{key} {cell([seed['neurons'][key] for seed in seeds])}" for key in seeds[0]["neurons"])
    columns, known = columns_of(seeds[0]["untouched"]["tuned"]), [n for n in ("untouched", "gold") if n in seeds[0]]
    rows = [[name, *_cells(points_of(seeds, name), columns), *_relearning(seeds, name)] for name in known]
    if CLAIM in arms_at(seeds, "found"):
        again = _relearning(seeds, CLAIM) if points_of(seeds, CLAIM) == points_of(seeds, CLAIM, "full") else ["", ""]
        rows += [[f"{CLAIM}, strength 1", *_cells(points_of(seeds, CLAIM, "full"), columns), *again]]
    return f"## References\n\n{many(len(seeds))}: {about}.\n\n" + table(["model", *columns, *RELEARNING], rows)


def ours_at(seeds: Sequence[Seed]) -> str:
    """Return where the found neurons' ablation is compared: whole beside a gold twin, from which too much leads away.

    Without a twin more damage always leaves less of the answers: there it is tuned as all others are.
    """
    return "full" if "gold" in seeds[0] else "tuned"


def gaps(seeds: Sequence[Seed], name: str, of: Value = judged) -> list[float]:
    """Return, for each seed, the found neurons ablated (see `ours_at`) less another arm, tuned."""
    ours, others = points_of(seeds, CLAIM, ours_at(seeds)), points_of(seeds, name)
    return [of(a) - of(b) for a, b in zip(ours, others, strict=True)]


def _claims(seeds: Sequence[Seed]) -> str:
    at, far = "strength 1" if ours_at(seeds) == "full" else "tuned", far_by(seeds)
    lines, where = [f"## {CLAIM}, {at}, less the others", ""], far.split()[-1]
    if CLAIM not in arms_at(seeds, "found"):
        return "\n".join([*lines, "It could not be made in every seed."])
    for column, other in ((where, "gold"), ("retain", "untouched"), ("retain", "gold")):
        if other in seeds[0]:
            lines.append(f"- {column}, less {other}: {cell(gaps(seeds, other, partial(exact, corpus=column)))}")
    values = [judged(point) for point in points_of(seeds, CLAIM, ours_at(seeds))]
    if "recall" in seeds[0]["neurons"]:
        each = zip(values, (seed["neurons"]["recall"] for seed in seeds), strict=True)
        lines.append(f"- {far}, by seed (recall): " + ", ".join(f"{kl:.2f} ({recall:.2f})" for kl, recall in each))
    for place, what in (("random", "controls on random neurons"), ("full", "whole-model baselines")):
        found = {name: verdict(gaps(seeds, name)) for name in arms_at(seeds, place)}
        rest = [f"{name}: {word}" for name, word in found.items() if word != "lower"]
        lower = len(found) - len(rest)
        lines.append(f"- {far}: lower than {lower} of {len(found)} tuned {what} ({'; '.join(rest) or 'no other'})")
    return "\n".join(lines)


def _where(seeds: Sequence[Seed]) -> str:
    """What is left by the tuned arms, by place, and what the place does: bold where the interval tells."""
    rows = []
    for method in dict.fromkeys(name.split("@")[0] for name in arms_at(seeds, "found")):
        kl = {
            place: np.array([judged(p) for p in points_of(seeds, f"{method}@{place}")])
            for place in PLACES
            if f"{method}@{place}" in arms_at(seeds, place)
        }
        row = [method, *(cell(kl[place].tolist()) if place in kl else "" for place in PLACES)]
        for other in ("random", "full"):
            less = (kl["found"] - kl[other]).tolist() if other in kl else []
            row.append(told(less) if less else "")
        rows.append((kl["found"].mean(), row))
    head = ["method", *PLACES, "found less random", "found less full"]
    return f"## Does it matter where? {far_by(seeds)}, tuned\n\n" + table(head, [row for _, row in sorted(rows)])


def _tuned(seeds: Sequence[Seed], place: str) -> str:
    rows, names, kept = [], arms_at(seeds, place), []
    columns = {n: of for n, of in columns_of(seeds[0]["untouched"]["tuned"]).items() if not n.endswith("retain")}
    for name in names:
        points = points_of(seeds, name)
        strengths = [point["strength"] for point in points]
        rises = [p["retain"]["nll"] - seed["untouched"]["tuned"]["retain"]["nll"]
                 for p, seed in zip(points, seeds, strict=True)]  # fmt: skip
        less = cell(gaps(seeds, name)) if CLAIM in arms_at(seeds, "found") else ""
        again = _relearning(seeds, name) if place != "random" else []
        dial = " to ".join(dict.fromkeys(f"{s:.2g}" for s in (min(strengths), max(strengths))))
        kept.append(float(np.mean([p["retain"]["exact_match"] for p in points])))
        row = [name.split("@")[0], dial, *_cells(points, columns), cell(rises, 3), *again, less]
        rows.append((float(np.mean([judged(p) for p in points])), row))
    relearning = RELEARNING if place != "random" else ()
    head = ["method", "strength", *columns, "rise", *relearning, f"ours less its {far_by(seeds).rpartition(' ')[0]}"]
    worst = f"Lowest exact match on retain: {min(kept):.3f}.\n\n" if kept else ""
    return worst + table(head, [row for _, row in sorted(rows, key=lambda r: r[0])])


def _matched(seeds: Sequence[Seed]) -> str:
    where = far_by(seeds).split()[-1]
    shown = {n: of for n, of in columns_of(seeds[0]["untouched"]["tuned"]).items() if n.split()[-1] == where}
    columns = {f"{name}, {place}": (of, place) for name, of in shown.items() for place in PLACES}
    methods = list(dict.fromkeys(name.split("@")[0] for place in PLACES for name in arms_at(seeds, place)))
    rows = []
    for method in methods:
        row = [method]
        for of, place in columns.values():
            made = f"{method}@{place}" in arms_at(seeds, place)
            points = points_of(seeds, f"{method}@{place}", "matched") if made else []
            row.append(cell([of(point) for point in points]) if made else "")
        rows.append(row)
    return table(["method", *columns], rows)


def _failures(seeds: Sequence[Seed]) -> str:
    failed = {name: arm["failed"] for seed in seeds for name, arm in seed.items() if "failed" in arm}
    lines = [f"- {name}: {why}" for name, why in failed.items()] or ["- none"]
    return "\n".join(["## Not made", "", *lines])


def sizes_table(seeds: Sequence[Seed]) -> str:
    """Return tables of ablation and of rank-one over sizes of the set: the best neurons beside random ones."""
    kinds = dict.fromkeys(key.split("@")[0] for key in seeds[0])
    made = [point for seed in seeds for point in seed.values() if "failed" not in point]
    if not made:
        return "## From one neuron to all\n\nNo edit could be made.\n"
    first, far = made[0], judged_by(made[0])
    columns = {n: of for n, of in columns_of(first).items() if n in (far.split()[-1], "retain", far)}
    sets = [(place, column) for place in ("best", "random") for column in columns]
    parts = [f"## From one neuron to all\n\n{many(len(seeds))}."]
    for kind in kinds:
        rows = []
        for size in dict.fromkeys(int(key.split(" ")[1]) for key in seeds[0]):
            arms = {place: [seed.get(f"{kind}@{place} {size}", {"failed": ""}) for seed in seeds] for place, _ in sets}
            made = {place: all("failed" not in point for point in points) for place, points in arms.items()}
            rows.append([str(size), *(cell([columns[c](a) for a in arms[p]]) if made[p] else "" for p, c in sets)])
        parts.append(f"`{kind}`:\n\n" + table(["neurons", *(f"{c}, {p}" for p, c in sets)], rows))
    return "\n\n".join(parts) + "\n"
