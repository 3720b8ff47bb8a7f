"""The figure of `activation_shift.py`: what was taken away, what newly suppresses, what moved; found against others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cells import middle
from drawing import FAINT, INK, line, mark, scale, svg, text

from neuronforget.colours import OKABE_ITO

MINE, OTHERS = OKABE_ITO[0], OKABE_ITO[4]
BARS = {"taken": "silenced (logits)", "suppressing": "newly suppressing (logits)"}
LEFT, ABOVE, STEP, WIDE, GAP = 140, 92, 24, 230, 34
#: Hatching of what lies outside the found neurons: told apart in print too.
HATCH = (
    f'<defs><pattern id="others" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    f'<rect width="6" height="6" fill="{OTHERS}" opacity=".35"/><line x1="0" y1="0" x2="0" y2="6" stroke="{OTHERS}" '
    f'stroke-width="3"/></pattern></defs>'
)


def picture(seeds: Sequence[Mapping[str, Any]], point: str = "full") -> str:
    """Return the SVG: a row a method; two panels of bars, one of marks; whiskers are 95% over seeds."""
    rows = {name: [seed[name][point] for seed in seeds] for name in seeds[0]
            if all("moved" in seed.get(name, {}).get(point, {}) for seed in seeds)}  # fmt: skip
    bottom = ABOVE + STEP * len(rows)
    parts = [HATCH, *_legend("gold" in seeds[0])]
    for i, name in enumerate(rows):
        y = ABOVE + STEP * i
        if i % 2:
            parts.append(f'<rect x="0" y="{y}" width="{LEFT + 3 * (WIDE + GAP)}" height="{STEP}" fill="#f4f4f4"/>')
        parts.append(text(LEFT - 8, y + 16, name, anchor="end"))
    for column, (key, words) in enumerate(BARS.items()):
        left = LEFT + column * (WIDE + GAP)
        most = max(middle([p["moved"][key] for p in points])[0] + middle([p["moved"][key] for p in points])[1]
                   for points in rows.values()) if rows else 1.0  # fmt: skip
        at = scale(0, _round(most), left, left + WIDE)
        parts += _axis(left, bottom, words, at, _round(most))
        for i, points in enumerate(rows.values()):
            parts += _bar([p["moved"] for p in points], key, at, ABOVE + STEP * i + 5)
    left = LEFT + 2 * (WIDE + GAP)
    shifts = [p["moved"][f"shift {c}"] for points in rows.values() for p in points for c in ("forget", "retain")]
    most = max(shifts, default=1.0)
    at = scale(0, _round(most), left, left + WIDE)
    parts += _axis(left, bottom, "shift of what is written (RMS)", at, _round(most))
    for i, points in enumerate(rows.values()):
        for corpus, marker, high in (("retain", "square", 16), ("forget", "circle", 8)):
            mean, half = middle([p["moved"][f"shift {corpus}"] for p in points])
            y = ABOVE + STEP * i + high
            parts += [line(at(max(mean - half, 0)), y, min(at(mean + half), left + WIDE), y, INK)]
            parts.append(mark(at(mean), y, marker, INK, 3.5, hollow=corpus == "retain"))
    title = "What each method did to the neurons: silenced, newly suppressing, moved"
    return svg(LEFT + 3 * (WIDE + GAP), bottom + 26, title, parts)


def _legend(gold: bool) -> list[str]:
    parts, x = [], LEFT
    for words, fill in (("in the found neurons", MINE), ("in all others", "url(#others)")):
        parts += [f'<rect x="{x}" y="12" width="22" height="12" fill="{fill}"/>', text(x + 28, 22, words, size=12)]
        x += 180
    for words, marker in (("on forget", "circle"), ("on retain", "square")):
        parts += [mark(x + 10, 18, marker, INK, 3.5, hollow=marker == "square"), text(x + 20, 22, words, size=12)]
        x += 100
    note = "logits: per answer token, summed over neurons; whiskers: 95% over seeds"
    note += "; gold: the model that never knew" if gold else ""
    return [*parts, text(LEFT, 44, note, size=11, fill=FAINT)]


def _axis(left: float, bottom: float, words: str, at: Any, most: float) -> list[str]:
    parts = [text(left, ABOVE - 24, words, size=12, weight="600"), line(left, ABOVE - 4, left, bottom, INK)]
    for tick in (0, most / 2, most):
        parts += [text(at(tick), ABOVE - 8, f"{tick:g}", size=11, anchor="middle", fill=FAINT)]
        parts += [line(at(tick), ABOVE - 4, at(tick), bottom, "#cccccc")]
    return parts


def _bar(rows: Sequence[Mapping[str, float]], key: str, at: Any, y: float) -> list[str]:
    mine = float(np.mean([row[key] * row[f"{key}, in found"] for row in rows]))
    mean, half = middle([row[key] for row in rows])
    parts = [
        f'<rect x="{at(a):.1f}" y="{y}" width="{at(b) - at(a):.1f}" height="14" fill="{fill}"/>'
        for a, b, fill in ((0, mine, MINE), (mine, mean, "url(#others)"))
    ]
    return [*parts, line(at(max(mean - half, 0)), y + 7, at(mean + half), y + 7, INK, width=1.4)]


def _round(most: float) -> float:
    """The end of an axis: the next of 1, 2, 3, 4, 6, 8, 10 times a power of ten."""
    unit = 10 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return next(float(f"{unit * n:g}") for n in (1, 2, 3, 4, 6, 8, 10) if unit * n >= most)
