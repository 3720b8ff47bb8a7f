"""Tables of `erase_methods.py`: means over seeds, Student's 95% intervals, paired differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from where_knowledge_lives import half_interval

Arm = Mapping[str, Any]
Seed = Mapping[str, Arm]
#: Column -> corpus and metric.
COLUMNS = {
    "forget": ("forget", "exact_match"),
    "unseen": ("forget unseen", "exact_match"),
    "retain": ("retain", "exact_match"),
    "KL unseen": ("forget unseen", "kl_gold"),
    "KL retain": ("retain", "kl_gold"),
    "KL strangers": ("strangers", "kl_gold"),
}
PLACES = {"found": "On the found neurons", "full": "On the whole model (closed forms: on what they choose)",
          "random": "Controls: on random neurons, as many in each layer"}  # fmt: skip
GUARD = {"guard": "Guards, which change no weight"}
CLAIM = "ablate@found"
TUNED = ("forget", "unseen", "KL unseen", "KL strangers")  # columns of the tuned arms: retain hardly moves there
RELEARNED = 0.9
RELEARNING = ("steps to relearn", "siblings back")


def tables(seeds: Sequence[Seed]) -> str:
    """Return all tables in Markdown, the long ones folded."""
    parts = [_references(seeds), _claims(seeds), _where(seeds)]
    parts += [folded(_tuned(seeds, place), f"{words}, tuned") for place, words in (PLACES | GUARD).items()]
    return "\n\n".join([*parts, folded(_matched(seeds), "At matched damage"), _failures(seeds)]) + "\n"


def folded(text: str, summary: str) -> str:
    """Return Markdown that a reader opens."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def full(arm: Arm) -> Arm:
    """Return an arm's point at strength 1 (of its last edit)."""
    return next(point for point in arm["dials"][-1] if point["strength"] == 1)


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean over seeds and its interval."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {half_interval(values):.{digits}f}" if len(values) > 1 else mean


def relearned(arm: Arm) -> float:
    """Return the first step at which the taught half was answered to RELEARNED; infinity where it never was."""
    steps = zip(arm["relearning"]["step"], arm["relearning"]["taught"], strict=True)
    return float(next((step for step, value in steps if value >= RELEARNED), math.inf))


def came_back(arm: Arm) -> float:
    """Return the highest accuracy on the other half, of which nothing was taught, once teaching had begun."""
    return max(arm["relearning"]["siblings"][1:])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def arms_at(seeds: Sequence[Seed], place: str) -> list[str]:
    """Arms of a place that every seed could make."""
    return [n for n in seeds[0] if n.endswith(f"@{place}") and all("tuned" in seed.get(n, {}) for seed in seeds)]


def points_of(seeds: Sequence[Seed], name: str, point: str = "tuned") -> list[Arm]:
    return [full(seed[name]) if point == "full" else seed[name][point] for seed in seeds]


def _cells(points: Sequence[Arm], columns: Iterable[str] = COLUMNS) -> list[str]:
    found = []
    for column in columns:
        corpus, metric = COLUMNS[column]
        found.append(cell([point[corpus][metric] for point in points], 3 if column == "KL retain" else 2))
    return found


def _relearning(seeds: Sequence[Seed], name: str) -> list[str]:
    """Median step and what came back, of the tuned arm; nothing where it was not asked in every seed."""
    if not all("relearning" in seed[name] for seed in seeds):
        return ["", ""]
    middle, last = float(np.median([relearned(seed[name]) for seed in seeds])), seeds[0][name]["relearning"]["step"][-1]
    return [f"{middle:g}" if math.isfinite(middle) else f"> {last}", cell([came_back(seed[name]) for seed in seeds])]


def _references(seeds: Sequence[Seed]) -> str:
    found = {key: cell([seed["neurons"][key] for seed in seeds]) for key in ("found", "true", "recall")}
    about = "; ".join(f"{key} {value}" for key, value in found.items())
    rows = [[name, *_cells(points_of(seeds, name)), *_relearning(seeds, name)] for name in ("untouched", "gold")]
    again = _relearning(seeds, CLAIM) if points_of(seeds, CLAIM) == points_of(seeds, CLAIM, "full") else ["", ""]
    rows += [[f"{CLAIM}, strength 1", *_cells(points_of(seeds, CLAIM, "full")), *again]]
    return f"## References\n\n{len(seeds)} seeds: {about}.\n\n" + table(["model", *COLUMNS, *RELEARNING], rows)


def gaps(seeds: Sequence[Seed], name: str, column: str, point: str = "tuned") -> list[float]:
    """Return, for each seed, the found neurons ablated whole less another arm."""
    corpus, metric = COLUMNS[column]
    ours, others = points_of(seeds, CLAIM, "full"), points_of(seeds, name, point)
    return [a[corpus][metric] - b[corpus][metric] for a, b in zip(ours, others, strict=True)]


def _claims(seeds: Sequence[Seed]) -> str:
    lines = [f"## {CLAIM}, strength 1, less the others", ""]
    for column, other in (("unseen", "gold"), ("retain", "untouched"), ("retain", "gold")):
        lines.append(f"- {column}, less {other}: {cell(gaps(seeds, other, column))}")
    values = [point["forget unseen"]["kl_gold"] for point in points_of(seeds, CLAIM, "full")]
    each = zip(values, (seed["neurons"]["recall"] for seed in seeds), strict=True)
    lines.append("- KL unseen, by seed (recall): " + ", ".join(f"{kl:.2f} ({recall:.2f})" for kl, recall in each))
    for place, what in (("random", "controls on random neurons"), ("full", "whole-model baselines")):
        found = {name: verdict(gaps(seeds, name, "KL unseen")) for name in arms_at(seeds, place)}
        rest = [f"{name}: {word}" for name, word in found.items() if word != "lower"]
        lower = len(found) - len(rest)
        lines.append(f"- KL unseen: lower than {lower} of {len(found)} tuned {what} ({'; '.join(rest) or 'no other'})")
    return "\n".join(lines)


def verdict(values: Sequence[float]) -> str:
    """Say whether the interval over seeds excludes zero."""
    mean, half = float(np.mean(values)), half_interval(values)
    return "lower" if mean + half < 0 else "higher" if mean - half > 0 else "not told apart"


def _where(seeds: Sequence[Seed]) -> str:
    """KL on unseen phrasings of the tuned arms by place, and what the place does: bold where the interval tells."""
    rows = []
    for method in dict.fromkeys(name.split("@")[0] for name in arms_at(seeds, "found")):
        kl = {
            place: np.array([p["forget unseen"]["kl_gold"] for p in points_of(seeds, f"{method}@{place}")])
            for place in PLACES
            if f"{method}@{place}" in arms_at(seeds, place)
        }
        row = [method, *(cell(kl[place].tolist()) if place in kl else "" for place in PLACES)]
        for other in ("random", "full"):
            less = (kl["found"] - kl[other]).tolist() if other in kl else []
            told = less and verdict(less) != "not told apart"
            row.append(f"**{cell(less)}**" if told else cell(less) if less else "")
        rows.append((kl["found"].mean(), row))
    head = ["method", *PLACES, "found less random", "found less full"]
    return "## Does it matter where? KL unseen, tuned\n\n" + table(head, [row for _, row in sorted(rows)])


def _tuned(seeds: Sequence[Seed], place: str) -> str:
    rows, names, kept = [], arms_at(seeds, place), []
    for name in names:
        points = points_of(seeds, name)
        strengths = [point["strength"] for point in points]
        rises = [p["retain"]["nll"] - seed["untouched"]["tuned"]["retain"]["nll"]
                 for p, seed in zip(points, seeds, strict=True)]  # fmt: skip
        less = cell(gaps(seeds, name, "KL unseen"))
        again = _relearning(seeds, name) if place != "random" else []
        dial = " to ".join(dict.fromkeys(f"{s:.2g}" for s in (min(strengths), max(strengths))))
        kept.append(float(np.mean([p["retain"]["exact_match"] for p in points])))
        row = [name.split("@")[0], dial, *_cells(points, TUNED), cell(rises, 3), *again, less]
        rows.append((float(np.mean([p["forget unseen"]["kl_gold"] for p in points])), row))
    relearning = RELEARNING if place != "random" else ()
    head = ["method", "strength", *TUNED, "rise", *relearning, "ours less its KL"]
    worst = f"Lowest exact match on retain: {min(kept):.3f}.\n\n" if kept else ""
    return worst + table(head, [row for _, row in sorted(rows, key=lambda r: r[0])])


def _matched(seeds: Sequence[Seed]) -> str:
    columns = {f"{column}, {place}": (column, place) for column in ("unseen", "KL unseen") for place in PLACES}
    methods = list(dict.fromkeys(name.split("@")[0] for place in PLACES for name in arms_at(seeds, place)))
    rows = []
    for method in methods:
        row = [method]
        for column, place in columns.values():
            if f"{method}@{place}" not in arms_at(seeds, place):
                row.append("")
                continue
            corpus, metric = COLUMNS[column]
            row.append(cell([p[corpus][metric] for p in points_of(seeds, f"{method}@{place}", "matched")]))
        rows.append(row)
    return table(["method", *columns], rows)


def _failures(seeds: Sequence[Seed]) -> str:
    failed = {name: arm["failed"] for seed in seeds for name, arm in seed.items() if "failed" in arm}
    lines = [f"- {name}: {why}" for name, why in failed.items()] or ["- none"]
    return "\n".join(["## Not made", "", *lines])


def sizes_table(seeds: Sequence[Seed]) -> str:
    """Return tables of ablation and of rank-one over sizes of the set: the best neurons beside random ones."""
    kinds = dict.fromkeys(key.split("@")[0] for key in seeds[0])
    sets = [(place, column) for place in ("best", "random") for column in ("unseen", "retain", "KL unseen")]
    parts = [f"## From one neuron to all\n\n{len(seeds)} seeds."]
    for kind in kinds:
        rows = []
        for size in dict.fromkeys(int(key.split(" ")[1]) for key in seeds[0]):
            arms = {place: [seed.get(f"{kind}@{place} {size}", {"failed": ""}) for seed in seeds] for place, _ in sets}
            made = {place: all("failed" not in point for point in points) for place, points in arms.items()}
            rows.append([str(size), *(_cells(arms[p], [c])[0] if made[p] else "" for p, c in sets)])
        parts.append(f"`{kind}`:\n\n" + table(["neurons", *(f"{c}, {p}" for p, c in sets)], rows))
    return "\n\n".join(parts) + "\n"
