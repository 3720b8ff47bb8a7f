"""Tables and picture of `regime_map.py`: chosen less random neurons, means over seeds, Student's 95% intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from cells import cell, many, table
from cells import verdict as told
from judging import exact, judged, judged_by
from relearning import came_back, relearned

Arms = Mapping[str, Any]
CORPORA = ("forget", "unseen", "retain", "near")
WHOLE = "simnpo|1|all"


def tables(done: Mapping[str, Arms], beds: Sequence[str], seeds: Sequence[int], damage: float = 0.05) -> str:
    """Return all tables in Markdown; `done` is "bed seed" -> "operator|size|selection" -> arm."""
    parts = []
    for bed in beds:
        arms = [done[f"{bed} {seed}"] for seed in seeds if f"{bed} {seed}" in done]
        if arms:
            parts += [
                f"## {bed} ({many(len(arms))})",
                _references(arms),
                _summary(arms),
                _map(arms),
                _levels(arms, damage),
                _spread(arms),
            ]
    return "\n\n".join(parts) + "\n"


def selections(arms: Arms) -> list[str]:
    """Return what neurons were chosen by, controls left out."""
    names = [key.split("|")[2] for key in arms if key.count("|") == 2]
    return [name for name in dict.fromkeys(names) if name != "all" and not name.startswith("random")]


def places(arms: Arms) -> list[tuple[str, str]]:
    """Return each operator and size that has chosen neurons."""
    return list(
        dict.fromkeys((k.split("|")[0], k.split("|")[1]) for k in arms if k.count("|") == 2 and "|all" not in k)
    )


def closeness(arms: Arms, operator: str, size: str, name: str) -> float:
    """Return what is left of the answers (`judged`), tuned; NaN where there is no such edit."""
    found = arms.get(f"{operator}|{size}|{name}", {})
    return judged(found["tuned"]) if "tuned" in found else float("nan")


def by_chance(arms: Arms, operator: str, size: str) -> float:
    """Return the mean of it over the random sets."""
    drawn = [k.split("|")[2] for k in arms if k.startswith(f"{operator}|{size}|random")]
    return float(np.mean([closeness(arms, operator, size, name) for name in drawn]))


def gains(arms: Sequence[Arms], operator: str, size: str, name: str) -> list[float]:
    """Return for each seed how much further random neurons come (negative: the chosen ones do)."""
    return [closeness(seed, operator, size, name) - by_chance(seed, operator, size) for seed in arms]


def verdict(values: Sequence[float]) -> str:
    """Say which are closer, where the interval over seeds excludes zero."""
    return {"lower": "chosen", "higher": "random"}.get(told(values), "")


def _references(arms: Sequence[Arms]) -> str:
    first = arms[0]["untouched"]["tuned"]
    corpora = [corpus for corpus in CORPORA if corpus in first]
    rows = []
    for name in _known(arms):
        points = [seed[name]["tuned"] for seed in arms]
        row = [cell([point[corpus]["exact_match"] for point in points]) for corpus in corpora]
        rows.append([name, *row, cell([judged(point) for point in points])])
    return table(["model", *corpora, judged_by(first)], rows)


def _known(arms: Sequence[Arms]) -> list[str]:
    return [name for name in ("untouched", "gold") if name in arms[0]]


def _map(arms: Sequence[Arms]) -> str:
    """Chosen less random: what is left of the answers."""
    rows = []
    for operator, size in places(arms[0]):
        row = [operator, f"{float(size):.2%}"]
        for name in selections(arms[0]):
            values = gains(arms, operator, size, name)
            text = cell(values)
            row.append(f"**{text}** {word}" if (word := verdict(values)) else text)
        rows.append(row)
    return table(["operator", "of each layer", *selections(arms[0])], rows)


def _summary(arms: Sequence[Arms]) -> str:
    """Cells told apart, by operator; the closest edits, beside SimNPO on the whole model; what was not to move."""
    lines = []
    for operator in dict.fromkeys(operator for operator, _ in places(arms[0])):
        sizes = [size for name, size in places(arms[0]) if name == operator]
        words = [verdict(gains(arms, operator, size, name)) for size in sizes for name in selections(arms[0])]
        count = f"chosen closer in {words.count('chosen')}, random in {words.count('random')} of {len(words)}"
        lines.append(f"- {operator}: {count} (by chance: 2.5% each)")
    if all("tuned" in seed.get(WHOLE, {}) for seed in arms):
        lines += [f"- {line}" for line in _closest(arms)]
    keys = [key for key in arms[0] if "|" in key and all("tuned" in seed.get(key, {}) for seed in arms)]
    if "near" in arms[0]["untouched"]["tuned"]:
        near = min(float(np.mean([seed[key]["tuned"]["near"]["exact_match"] for seed in arms])) for key in keys)
        lines.append(f"- near facts, tuned edits: lowest mean exact match {near:.2f}")
    for loss in [key for key in dict.fromkeys(key.split("|")[0] for key in keys) if key in ("ga", "simnpo, no retain")]:
        used = [seed[key]["tuned"]["strength"] for key in keys for seed in arms if key.startswith(f"{loss}|")]
        lines.append(f"- {loss}: tuned strengths {min(used):g} to {max(used):g}")
    return "\n".join(lines)


def _closest(arms: Sequence[Arms]) -> Iterator[str]:
    """The edits of chosen neurons that come furthest, and each less SimNPO on the whole model, paired."""
    whole = [judged(seed[WHOLE]["tuned"]) for seed in arms]
    words = "close to gold" if "gold" in arms[0] else "furthest"
    cells = [(o, s, n) for o, s in places(arms[0]) for n in selections(arms[0])]
    found = {cell_: [closeness(seed, *cell_) for seed in arms] for cell_ in cells}
    for operator, size, name in sorted(cells, key=lambda key: float(np.mean(found[key])))[:3]:
        values = found[operator, size, name]
        less = cell([a - b for a, b in zip(values, whole, strict=True)])
        yield f"{words}: {operator}, {float(size):.2%} by {name}: {cell(values)}; less whole-model simnpo: {less}"


def lowest(arm: Arms, start: Arms, damage: float) -> Arms:
    """Return the point along the dial, within the damage, that answers fewest unseen phrasings.

    Without a gold twin, of those that answer as few the one that leaves least of the answers.
    """
    within = start["retain"]["nll"] + damage
    points = [start, *(point for point in arm["dial"] if point["retain"]["nll"] <= within)]
    return min(points, key=lambda p: (exact(p), *(() if "kl_gold" in p["forget"] else (judged(p),))))


def _levels(arms: Sequence[Arms], damage: float) -> str:
    """What is reached at all: tuned, and the lowest accuracy within the damage, with what is left at both."""
    kind, where = judged_by(arms[0]["untouched"]["tuned"]).rsplit(" ", 1)
    head = ["operator", "of each layer", *(f"{what}, {who}" for what in (kind, f"lowest {where}", f"{kind} there")
                                           for who in ("best chosen", "random"))]  # fmt: skip
    rows = []
    for operator, size in [*places(arms[0]), *((k.split("|")[0], "1") for k in arms[0] if k.endswith("|all"))]:
        row = [operator, f"{float(size):.2%}"]
        drawn = [name for name in _names(arms[0], operator, size) if name.startswith("random")]
        chosen = [name for name in _names(arms[0], operator, size) if name not in drawn]
        found = [[_reached(seed, operator, size, names, damage) for seed in arms] for names in (chosen, drawn)]
        for i, of in enumerate((min, min, None)):
            for values in found:
                row.append(cell([_one(seed, i, of, values is found[1]) for seed in values]) if all(values) else "")
        rows.append(row)
    return table(head, rows)


def _reached(seed: Arms, operator: str, size: str, names: Sequence[str], damage: float) -> list[tuple[float, ...]]:
    """What is left when tuned, lowest accuracy and what is left there, of each edit that could be made."""
    start, found = seed["untouched"]["tuned"], []
    for name in names:
        if "dial" in (arm := seed[f"{operator}|{size}|{name}"]):
            point = lowest(arm, start, damage)
            found.append((judged(arm["tuned"]), exact(point), judged(point)))
    return found


def _one(values: Sequence[tuple[float, ...]], column: int, best: Any, random: bool) -> float:
    """The mean over random sets; of the chosen ones the best (its KL: of the one that answers least)."""
    if random:
        return float(np.mean([row[column] for row in values]))
    return float(best(row[column] for row in values) if best else min(values, key=lambda row: row[1])[column])


def _names(arms: Arms, operator: str, size: str) -> list[str]:
    return [key.split("|")[2] for key in arms if key.startswith(f"{operator}|{size}|")]


def _spread(arms: Sequence[Arms]) -> str:
    """What else moved: values and norm of the whole edit, near facts, and relearning where it was measured."""
    head = ["edit", "values", "norm", "near", "steps to relearn", "others back"]
    rows = [[name, "", "", _near(arms, name), *_again(arms, name)] for name in _known(arms)]
    for key in arms[0]:
        if "relearning" in arms[0][key] and "|" in key and all("tuned" in seed.get(key, {}) for seed in arms):
            operator, size, name = key.split("|")
            row = [f"{operator}, {float(size):.2%} {name}", cell([seed[key]["values"] for seed in arms], 0)]
            row += [cell([seed[key]["moved"] for seed in arms])]
            rows.append([*row, _near(arms, key), *_again(arms, key)])
    return table(head, rows)


def _near(arms: Sequence[Arms], key: str) -> str:
    points = [seed[key]["tuned"] for seed in arms]
    return cell([point["near"]["exact_match"] for point in points]) if "near" in points[0] else ""


def _again(arms: Sequence[Arms], key: str) -> list[str]:
    if not all("relearning" in seed[key] for seed in arms):
        return ["", ""]
    steps = float(np.median([relearned(seed[key]) for seed in arms]))
    back = [came_back(seed[key]) for seed in arms]
    return [f"{steps:g}" if np.isfinite(steps) else "> all", "" if np.isnan(back).any() else cell(back)]
