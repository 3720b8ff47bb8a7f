"""The figure of `erase_methods.py --part sizes`: what edits of one neuron, of all, and of numbers between leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from cells import middle, spans
from drawing import FAINT, INK, PLACES, line, mark, named, ribbon, scale, svg, text
from judging import exact, judged, judged_by

#: What is drawn -> where its look is from, and its words.
LOOKS = {"best": ("found", "the best by grad_x_act"), "random": ("random", "random, as many in each layer")}
WIDE, HIGH, LEFT, ABOVE, GAP, BELOW = 196, 150, 60, 78, 44, 62
Seeds = Sequence[Mapping[str, Any]]
Curve = list[tuple[int, float, float]]  # place on the axis of sizes, mean over seeds, half its interval


def picture(seeds: Seeds) -> str:
    """Return the SVG: a row a kind of edit, a panel a measure over the number of neurons; bands of 95% over seeds."""
    made = [point for seed in seeds for point in seed.values() if "failed" not in point]
    kinds = list(dict.fromkeys(key.split("@")[0] for key in seeds[0]))
    columns = measures(made[0]) if made else {}
    parts, _ = named([(w, PLACES[p][3], PLACES[p][1], False) for p, w in LOOKS.values()], LEFT, 18)
    note = f"{spans('bands', len(seeds))}; strength 1; the last size is every neuron"
    parts.append(text(LEFT, 44, note, size=11, fill=FAINT))
    for i, kind in enumerate(kinds):
        top = ABOVE + i * (HIGH + BELOW)
        for j, (words, (of, low)) in enumerate(columns.items()):
            head = words if j else f"{kind}: {words}"
            panel = _panel(seeds, kind, of, low, head)
            parts.append(f'<g transform="translate({LEFT + j * (WIDE + GAP)} {top})">{panel}</g>')
    width = LEFT + max(len(columns), 2) * (WIDE + GAP)
    height = ABOVE + len(kinds) * (HIGH + BELOW)
    parts.append(text(LEFT + (width - LEFT - GAP) / 2, height - 8, "neurons of the whole model", anchor="middle"))
    return svg(width, height, "What edits of one neuron to all leave, the best neurons beside random ones", parts)


def measures(point: Mapping[str, Any]) -> dict[str, tuple[Callable[[Any], float], float]]:
    """Return head of a panel -> (what it shows of a point, the lower end of its axis; its upper end is 1 or found)."""
    far = judged_by(point)
    kind, where = far.rsplit(" ", 1)
    what = "KL from gold" if kind == "KL" else "log-probability"
    asked = {"unseen": "unseen phrasing", "forget": "forget"}[where]
    return {
        f"{asked}, exact": (partial(exact, corpus=where), 0.0),
        f"{what}, nats": (judged, 0.0 if kind == "KL" else -12.0),
        "retain, exact": (partial(exact, corpus="retain"), 0.0),
    }


def _panel(seeds: Seeds, kind: str, of: Callable[[Any], float], low: float, head: str) -> str:
    sizes = list(dict.fromkeys(int(key.split(" ")[1]) for key in seeds[0]))
    curves = {place: _curve(seeds, kind, place, sizes, of) for place in LOOKS}
    reached = [mean + half for curve in curves.values() for _, mean, half in curve]
    high = 1.0 if "exact" in head else math.ceil(max([low + 1.0, *reached])) if low == 0 else 0.0
    x, y = scale(0, max(len(sizes) - 1, 1), 8, WIDE - 8), scale(low, high, HIGH, 0)
    parts = [text(0, -8, head, size=12, weight="600"), line(0, HIGH, WIDE, HIGH, INK), line(0, 0, 0, HIGH, INK)]
    parts += [text(x(i), HIGH + 15, str(size), size=11, anchor="middle") for i, size in enumerate(sizes)]
    for tick in (low, (low + high) / 2, high):
        parts.append(text(-6, y(tick) + 4, f"{tick:.2g}", size=11, anchor="end"))
    for place in reversed(LOOKS):  # the best on top
        parts += _strokes(curves[place], x, lambda value: y(min(max(value, low), high)), LOOKS[place][0])
    return "".join(parts)


def _curve(seeds: Seeds, kind: str, place: str, sizes: Sequence[int], of: Callable[[Any], float]) -> Curve:
    """The sizes whose edit every seed could make."""
    found = []
    for i, size in enumerate(sizes):
        points = [seed.get(f"{kind}@{place} {size}", {"failed": ""}) for seed in seeds]
        if all("failed" not in point for point in points):
            found.append((i, *middle([of(point) for point in points])))
    return found


def _strokes(curve: Curve, x: Callable[[float], float], y: Callable[[float], float], look: str) -> list[str]:
    _, colour, dash, marker = PLACES[look]
    above = [(x(i), y(mean + half)) for i, mean, half in curve]
    below = [(x(i), y(mean - half)) for i, mean, half in curve]
    parts = [ribbon(above, below, colour)]
    parts += [line(x(a), y(v), x(b), y(w), colour, dash, 2) for (a, v, _), (b, w, _) in pairwise(curve)]
    return parts + [mark(x(i), y(mean), marker, colour, 3.5) for i, mean, _ in curve]
