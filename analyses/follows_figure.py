"""The figure of `what_follows.py`: forgotten people's own questions, and the questions that take their facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cells import centre
from drawing import FAINT, INK, line, mark, panel, scale, stripe, svg, text, whisker

from neuronforget.colours import OKABE_ITO

#: Column of the tables -> its words, colour, marker, hollow; what a model of one's own is asked has other names.
MEASURES = {
    "forget": ("forget: their own questions", INK, "circle", False),
    "own step": ("own step", OKABE_ITO[0], "square", True), "first step": ("first step", OKABE_ITO[0], "square", True),
    "teacher's step": ("teacher's step", OKABE_ITO[1], "triangle", False),
    "second step": ("second step", OKABE_ITO[1], "triangle", False),
    "given back": ("given back: can be deduced", OKABE_ITO[2], "diamond", False),
}  # fmt: skip
CONTROLS, TWIN = ("untouched", "gold twin", "ablate@random"), "gold twin"
LEFT, ABOVE, ROW, STEP, WIDE, GAP = 132, 84, 58, 12, 258, 40
LEAST = 700  # what the legend takes


def picture(done: Mapping[str, Mapping[str, Any]], kinds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the SVG: a panel a kind of testbed, a row a model, a mark a measure; bars of 95% over seeds are cut."""
    beds = {kind: [done[f"{kind} {seed}"] for seed in seeds] for kind in kinds}
    names = list(dict.fromkeys(name for arms in beds.values() for name in arms[0]))
    shown = [m for m in MEASURES if any(m in arm["untouched"] for arms in beds.values() for arm in arms)]
    width, bottom = max(LEFT + len(kinds) * (WIDE + GAP), LEAST), ABOVE + ROW * len(names)
    parts = [stripe(ABOVE + ROW * i, width, ROW) for i in range(1, len(names), 2)] + _legend(shown)
    for i, name in enumerate(names):
        weight = "700" if name in CONTROLS else "400"
        parts.append(text(LEFT - 14, ABOVE + ROW * (i + 0.5) + 4, name, size=12, anchor="end", weight=weight))
    for i, (kind, arms) in enumerate(beds.items()):
        left = LEFT + i * (WIDE + GAP)
        at = scale(0, 1, left, left + WIDE)
        parts += panel(kind, at, (0, 0.25, 0.5, 0.75, 1), ABOVE, bottom)
        twin = _found(arms, TWIN, shown)
        for j, name in enumerate(names):
            parts += _row(_found(arms, name, shown), twin, shown, at, ABOVE + ROW * (j + 0.5))
    return svg(width, bottom + 24, "What is left of forgotten facts, asked for themselves and by way of others", parts)


def _found(arms: Sequence[Mapping[str, Any]], name: str, shown: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Measure -> mean over seeds and its interval; nothing of what could not be made in some seed."""
    rows = [arm.get(name, {}) for arm in arms]
    return {m: centre([row[m] for row in rows]) for m in shown if all(m in row for row in rows)}


def _row(found: Mapping[str, tuple[float, float, float]], twin: Mapping[str, tuple[float, float, float]],
         shown: Sequence[str], at: Any, middle: float) -> list[str]:  # fmt: skip
    parts = [] if found else [text(at(0.5), middle + 4, "not made", size=11, anchor="middle", fill=FAINT)]
    for i, measure in enumerate(shown):
        y = middle + STEP * (i - (len(shown) - 1) / 2)
        _, colour, marker, hollow = MEASURES[measure]
        if measure in twin:
            parts.append(line(at(twin[measure][0]), y - 5, at(twin[measure][0]), y + 5, INK, width=2.4))
        if measure in found:
            value, low, high = found[measure]
            parts += [whisker(at, y, low, high, (0, 1), colour), mark(at(value), y, marker, colour, hollow=hollow)]
    return parts


def _legend(shown: Sequence[str]) -> list[str]:
    parts, x = [], 20.0
    for words, colour, marker, hollow in (MEASURES[measure] for measure in shown):
        parts += [mark(x, 18, marker, colour, hollow=hollow), text(x + 10, 22, words, size=12)]
        x += 40 + 6.6 * len(words)
    note = "exact match; bars: 95% over seeds, where there are several, cut at 0 and 1; upright: the gold twin's"
    return [*parts, text(20, 44, note, size=11, fill=FAINT)]
