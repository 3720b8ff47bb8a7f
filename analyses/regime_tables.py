"""Tables and picture of `regime_map.py`: chosen less random neurons, means over seeds, Student's 95% intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from erase_tables import came_back, cell, relearned, table
from erase_tables import verdict as told

Arms = Mapping[str, Any]
CORPORA = ("forget", "unseen", "retain", "near")
WHOLE = "simnpo|1|all"
#: From blue (chosen neurons are closer to the gold twin) to orange (random ones are), nats at the ends.
ENDS, REACH = ((33, 102, 172), (217, 95, 14)), 1.0
SAYS = (
    "KL from the gold twin on unseen phrasings, chosen neurons less random ones, nats (blue: the chosen are closer). "
    "Framed: the interval over seeds excludes zero."
)


def tables(done: Mapping[str, Arms], beds: Sequence[str], seeds: Sequence[int], damage: float = 0.05) -> str:
    """Return all tables in Markdown; `done` is "bed seed" -> "operator|size|selection" -> arm."""
    parts = []
    for bed in beds:
        arms = [done[f"{bed} {seed}"] for seed in seeds if f"{bed} {seed}" in done]
        if arms:
            parts += [
                f"## {bed} ({len(arms)} seeds)",
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
    """Return the KL from the gold twin's answers on unseen phrasings, tuned; NaN where there is no such edit."""
    found = arms.get(f"{operator}|{size}|{name}", {})
    return _kl(found) if "tuned" in found else float("nan")


def by_chance(arms: Arms, operator: str, size: str) -> float:
    """Return the mean of it over the random sets."""
    drawn = [k.split("|")[2] for k in arms if k.startswith(f"{operator}|{size}|random")]
    return float(np.mean([closeness(arms, operator, size, name) for name in drawn]))


def gains(arms: Sequence[Arms], operator: str, size: str, name: str) -> list[float]:
    """Return for each seed how much closer to the gold twin random neurons are (negative: the chosen ones are)."""
    return [closeness(seed, operator, size, name) - by_chance(seed, operator, size) for seed in arms]


def verdict(values: Sequence[float]) -> str:
    """Say which are closer, where the interval over seeds excludes zero."""
    return {"lower": "chosen", "higher": "random"}.get(told(values), "")


def _references(arms: Sequence[Arms]) -> str:
    head = ["model", *(f"{corpus}" for corpus in CORPORA), "KL unseen"]
    rows = []
    for name in ("untouched", "gold"):
        points = [seed[name]["tuned"] for seed in arms]
        row = [cell([point[corpus]["exact_match"] for point in points]) for corpus in CORPORA]
        rows.append([name, *row, cell([point["unseen"]["kl_gold"] for point in points])])
    return table(head, rows)


def _map(arms: Sequence[Arms]) -> str:
    """Chosen less random: KL from gold on unseen phrasings."""
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
        lines.append(f"- {operator}: {count}")
    if all("tuned" in seed.get(WHOLE, {}) for seed in arms):
        lines += [f"- {line}" for line in _closest(arms)]
    keys = [key for key in arms[0] if "|" in key and all("tuned" in seed.get(key, {}) for seed in arms)]
    near = min(float(np.mean([seed[key]["tuned"]["near"]["exact_match"] for seed in arms])) for key in keys)
    lines.append(f"- near facts, tuned edits: lowest mean exact match {near:.2f}")
    for loss in [key for key in dict.fromkeys(key.split("|")[0] for key in keys) if key in ("ga", "simnpo, no retain")]:
        used = [seed[key]["tuned"]["strength"] for key in keys for seed in arms if key.startswith(f"{loss}|")]
        lines.append(f"- {loss}: tuned strengths {min(used):g} to {max(used):g}")
    return "\n".join(lines)


def _closest(arms: Sequence[Arms]) -> Iterator[str]:
    """The edits of chosen neurons that are closest to gold, and each less SimNPO on the whole model, paired."""
    whole = [_kl(seed[WHOLE]) for seed in arms]
    cells = [(o, s, n) for o, s in places(arms[0]) for n in selections(arms[0])]
    found = {cell_: [closeness(seed, *cell_) for seed in arms] for cell_ in cells}
    for operator, size, name in sorted(cells, key=lambda key: float(np.mean(found[key])))[:3]:
        values = found[operator, size, name]
        less = cell([a - b for a, b in zip(values, whole, strict=True)])
        yield f"close to gold: {operator}, {float(size):.2%} by {name}: {cell(values)}; less whole-model simnpo: {less}"


def _kl(arm: Arms) -> float:
    return float(arm["tuned"]["unseen"]["kl_gold"])


def lowest(arm: Arms, start: Arms, damage: float) -> Arms:
    """Return the point along the dial, within the damage, that answers fewest unseen phrasings."""
    within = start["retain"]["nll"] + damage
    points = [start, *(point for point in arm["dial"] if point["retain"]["nll"] <= within)]
    return min(points, key=lambda point: float(point["unseen"]["exact_match"]))


def _levels(arms: Sequence[Arms], damage: float) -> str:
    """What is reached at all: KL tuned, and the lowest accuracy within the damage with its KL, which over-erases."""
    head = ["operator", "of each layer", *(f"{what}, {who}" for what in ("KL", "lowest unseen", "KL there")
                                           for who in ("best chosen", "random"))]  # fmt: skip
    rows = []
    for operator, size in [*places(arms[0]), *((k.split("|")[0], "1") for k in arms[0] if k.endswith("|all"))]:
        row = [operator, f"{float(size):.2%}"]
        drawn = [name for name in _names(arms[0], operator, size) if name.startswith("random")]
        chosen = [name for name in _names(arms[0], operator, size) if name not in drawn]
        found = [[_reached(seed, operator, size, names, damage) for seed in arms] for names in (chosen, drawn)]
        for i, of in enumerate((min, min, None)):
            for values in found:
                row.append(cell([_one(seed, i, of, values is found[1]) for seed in values]) if values[0] else "")
        rows.append(row)
    return table(head, rows)


def _reached(seed: Arms, operator: str, size: str, names: Sequence[str], damage: float) -> list[tuple[float, ...]]:
    """KL tuned, lowest accuracy and the KL there, of each edit that could be made."""
    start, found = seed["untouched"]["tuned"], []
    for name in names:
        if "dial" in (arm := seed[f"{operator}|{size}|{name}"]):
            point = lowest(arm, start, damage)["unseen"]
            found.append((_kl(arm), point["exact_match"], point["kl_gold"]))
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
    rows = []
    for name in ("untouched", "gold"):
        rows.append([name, "", "", cell([s[name]["tuned"]["near"]["exact_match"] for s in arms]), *_again(arms, name)])
    for key in arms[0]:
        if "relearning" in arms[0][key] and "|" in key and all("tuned" in seed.get(key, {}) for seed in arms):
            operator, size, name = key.split("|")
            row = [f"{operator}, {float(size):.2%} {name}", cell([seed[key]["values"] for seed in arms], 0)]
            row += [cell([seed[key]["moved"] for seed in arms])]
            rows.append([*row, cell([s[key]["tuned"]["near"]["exact_match"] for s in arms]), *_again(arms, key)])
    return table(head, rows)


def _again(arms: Sequence[Arms], key: str) -> list[str]:
    if not all("relearning" in seed[key] for seed in arms):
        return ["", ""]
    steps = float(np.median([relearned(seed[key]) for seed in arms]))
    return [f"{steps:g}" if np.isfinite(steps) else "> all", cell([came_back(seed[key]) for seed in arms])]


def picture(done: Mapping[str, Arms], beds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the map as SVG: a square for each bed, operator, size and selection, framed where they are told apart."""
    panels, left, top = [], 210, 90
    kinds = [bed for bed in beds if f"{bed} {seeds[0]}" in done]
    first = done[f"{kinds[0]} {seeds[0]}"]
    rows, columns = places(first), selections(first)
    for i, bed in enumerate(kinds):
        arms = [done[f"{bed} {seed}"] for seed in seeds if f"{bed} {seed}" in done]
        x0 = left + i * (len(columns) * 46 + 24)
        panels.append(f'<text x="{x0}" y="20" font-weight="600">{escape(bed)}</text>')
        for j, name in enumerate(columns):
            panels.append(
                f'<text transform="translate({x0 + j * 46 + 18},{top - 6}) rotate(-24)">{escape(name)}</text>'
            )
        panels += _squares(arms, rows, columns, x0, top)
    labels = [
        f'<text x="{left - 8}" y="{top + 19 + 28 * i}" text-anchor="end">{escape(operator)}, {float(size):.2%}</text>'
        for i, (operator, size) in enumerate(rows)
    ]
    wide, high = left + len(kinds) * (len(columns) * 46 + 24) + 60, top + 28 * len(rows) + 40
    body = "".join([*labels, *panels, f'<text x="8" y="{high - 12}">{escape(SAYS)}</text>'])
    head = f'viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="12"'
    back = f'<title>{escape(SAYS)}</title><rect width="{wide}" height="{high}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{back}{body}</svg>\n'


def _squares(
    arms: Sequence[Arms], rows: Sequence[tuple[str, str]], columns: Sequence[str], x0: int, y0: int
) -> Iterator[str]:
    for i, (operator, size) in enumerate(rows):
        for j, name in enumerate(columns):
            values = gains(arms, operator, size, name)
            mean = float(np.mean(values))
            share, told = min(abs(mean) / REACH, 1.0), bool(verdict(values))
            end = ENDS[mean > 0]
            shade = ",".join(f"{255 - share * (255 - c):.0f}" for c in end)
            fill = "#eee" if np.isnan(mean) else f"rgb({shade})"
            style = f'fill="{fill}"' if told else f'fill="{fill}" fill-opacity="0.35"'
            edge = ' stroke="black" stroke-width="1.5"' if told else ""
            x, y = x0 + 46 * j, y0 + 28 * i
            ink = "white" if told and share > 0.6 else "black"
            yield f'<rect x="{x}" y="{y}" width="44" height="26" {style}{edge}/>'
            yield f'<text x="{x + 22}" y="{y + 17}" text-anchor="middle" fill="{ink}">{mean:+.2f}</text>'
