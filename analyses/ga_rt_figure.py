"""The figure of `ga_rt_sweep.py`: what is kept, what is left and the distance from gold, over the weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from cells import middle, spans
from drawing import FAINT, INK, PLACES, legend, line, mark, ribbon, scale, svg, text

#: Row -> corpus, metric and the point that is drawn.
ROWS = {
    "retain answered, as trained": ("retain", "exact_match", "full"),
    "retain prompts refused, as trained": ("refused", "retain", "full"),
    "unseen phrasings answered, tuned": ("unseen", "exact_match", "tuned"),
    "KL from gold on unseen phrasings, tuned (nats)": ("unseen", "kl_gold", "tuned"),
}
#: In place of the last: without other phrasings, and without a gold twin.
ASKED = {"KL from gold on forget, tuned (nats)": ("forget", "kl_gold", "tuned")}
LOSS = {"loss of the forget answers, tuned (nats)": ("forget", "nll", "tuned")}
TERMS = {"retain": "ascent + weight × retain loss", "refusal": "ascent + weight × refusal loss"}
WIDE, HIGH, LEFT, ABOVE, GAP = 300, 110, 60, 84, 40

Curve = list[tuple[int, float, float]]  # place on the axis, mean, half of its interval


def picture(seeds: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> str:
    """Return the SVG: a column a term, a row a figure, a line a place, bands of 95% over seeds."""
    known = "unseen" in seeds[0]["untouched"]["full"]
    asked = ROWS | LOSS if "gold" not in seeds[0] else ROWS if known else ROWS | ASKED
    rows = {name: what for name, what in asked.items() if what[1] in seeds[0]["untouched"]["full"].get(what[0], {})}
    width, height = LEFT + len(TERMS) * (WIDE + GAP), ABOVE + len(rows) * (HIGH + 40) + 4
    note = f"{spans('bands', len(seeds))}; dotted: untouched"
    note += "; dash-dotted: gold twin" if "gold" in seeds[0] else ""
    parts = [legend(LEFT, 20, lines=True), text(LEFT, 42, note, size=11, fill=FAINT)]
    for i, (term, words) in enumerate(TERMS.items()):
        left = LEFT + i * (WIDE + GAP)
        parts.append(text(left, ABOVE - 22, words, weight="600"))
        for j, (name, what) in enumerate(rows.items()):
            place = f"translate({left} {ABOVE + j * (HIGH + 40)})"
            parts.append(f'<g transform="{place}">{_panel(seeds, weights, term, name, what)}</g>')
    parts.append(text(LEFT + (width - LEFT - GAP) / 2, height - 6, "weight of the other term", anchor="middle"))
    return svg(width, height, "What is forgotten and what is kept, over the weight beside gradient ascent", parts)


def curve_of(seeds: Sequence[Any], weights: Sequence[float], term: str, place: str, what: Sequence[str]) -> Curve:
    """Return the points of one line; a weight at which a training failed in some seed is left out."""
    corpus, metric, point = what
    found = []
    for i, weight in enumerate(weights):
        key = f"{term if weight else 'ascent'}|{weight:g}|{place}"
        values = [seed[key][point][corpus][metric] for seed in seeds if point in seed.get(key, {})]
        if len(values) == len(seeds):
            found.append((i, *middle(values)))
    return found


def _panel(seeds: Sequence[Any], weights: Sequence[float], term: str, name: str, what: Sequence[str]) -> str:
    corpus, metric, _ = what
    curves = {place: curve_of(seeds, weights, term, place, what) for place in PLACES}
    levels = {n: float(np.mean([s[n]["full"][corpus][metric] for s in seeds])) for n in ("untouched", "gold")
              if n in seeds[0]}  # fmt: skip
    share = metric == "exact_match" or corpus == "refused"
    top = 1.0 if share else math.ceil(max([*levels.values(), *(m + h for c in curves.values() for _, m, h in c)]))
    x, y = scale(0, max(len(weights) - 1, 1), 12, WIDE - 12), scale(0, top, HIGH, 0)
    parts = [text(0, -6, name, size=11)]
    parts += [line(0, y(level), WIDE, y(level), INK, "1 3" if n == "untouched" else "8 2 2 2")
              for n, level in levels.items()]  # fmt: skip
    for place in ("random", "full", "found"):  # found on top
        _, colour, dash, marker = PLACES[place]
        points = curves[place]
        above = [(x(i), y(min(m + h, top))) for i, m, h in points]
        below = [(x(i), y(max(m - h, 0))) for i, m, h in points]
        parts.append(ribbon(above, below, colour))
        parts += [line(x(a[0]), y(a[1]), x(b[0]), y(b[1]), colour, dash, 2) for a, b in pairwise(points)]
        parts += [mark(x(i), y(m), marker, colour, 3.5) for i, m, _ in points]
    parts += [line(0, HIGH, WIDE, HIGH, INK), line(0, 0, 0, HIGH, INK)]
    words = [f"1/{1 / w:.0f}" if 0 < w < 1 else f"{w:g}" for w in weights]
    parts += [text(x(i), HIGH + 15, w, size=11, anchor="middle") for i, w in enumerate(words)]
    ticks = (0, 0.5, 1) if share else range(0, int(top) + 1, 2 if top > 4 else 1)
    parts += [text(-6, y(tick) + 4, f"{tick:g}", size=11, anchor="end") for tick in ticks]
    return "".join(parts)
