"""The figure of `where_knowledge_lives.py`: what every score finds, and how far it agrees with exact ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cells import centre
from drawing import FAINT, INK, line, mark, named, panel, scale, stripe, svg, text, whisker

from neuronforget.colours import OKABE_ITO

#: Measure -> its words, and whether its marks are hollow.
MEASURES = {"recall@k": ("recall@k: true neurons found", False), "spearman": ("spearman: agrees with exact", True)}
CONTROLS, STAGED = ("write norm", "random"), "grad_x_act, then exact"
#: Kind of score -> words, colour, marker.
LOOKS = {
    "score": ("a score", OKABE_ITO[0], "circle"),
    "staged": ("two stages", OKABE_ITO[1], "triangle"),
    "control": ("control that knows nothing of the facts", "#5a5a5a", "square"),
}
LEFT, ABOVE, ROW, WIDE, GAP, LOW, HIGH = 180, 92, 24, 132, 26, -0.1, 1.1
LEAST = 790  # what the legend takes
Beds = Sequence[Mapping[str, Any]]


def picture(done: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the SVG: a row a score, the best first and controls last; a panel a kind of testbed; 95% over seeds.

    `done` is "kind seed" -> {"rows"}, as for the tables.
    """
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for key, bed in done.items():
        kinds.setdefault(key.rsplit(" ", 1)[0], []).append(bed)
    names = ordered(kinds)
    lowest = min(
        [LOW, *(low for beds in kinds.values() for name in names for _, low, _ in _found(beds, name).values())]
    )
    width, bottom = max(LEFT + len(kinds) * (WIDE + GAP), LEAST), ABOVE + ROW * len(names)
    parts = [stripe(ABOVE + ROW * i, width, ROW) for i in range(1, len(names), 2)]
    parts += _legend()
    for i, name in enumerate(names):
        weight = "400" if look(name) == "score" else "700"
        parts.append(text(LEFT - 12, ABOVE + ROW * (i + 0.5) + 4, name, size=12, anchor="end", weight=weight))
    first = next((i for i, name in enumerate(names) if name in CONTROLS), len(names))
    parts.append(line(0, ABOVE + ROW * first, width, ABOVE + ROW * first, INK))
    for i, (kind, beds) in enumerate(kinds.items()):
        left = LEFT + i * (WIDE + GAP)
        at = scale(lowest, HIGH, left, left + WIDE)
        parts += panel(kind, at, (0, 0.5, 1), ABOVE, bottom)
        for j, name in enumerate(names):
            parts += _row(_found(beds, name), name, at, ABOVE + ROW * j, (lowest, HIGH))
    return svg(width, bottom + 24, "What every score finds of the neurons that hold the facts", parts)


def look(name: str) -> str:
    """Return which kind of score it is."""
    return "control" if name in CONTROLS else "staged" if name == STAGED else "score"


def ordered(kinds: Mapping[str, Beds]) -> list[str]:
    """Return the scores that were made anywhere, by the mean of what they find, controls last."""
    names = dict.fromkeys(row["score"] for beds in kinds.values() for bed in beds for row in bed["rows"])
    means: dict[str, float] = {}
    for measure in reversed(MEASURES):  # recall, where true neurons are known
        found = {name: [f[measure][0] for beds in kinds.values() if measure in (f := _found(beds, name))]
                 for name in names}  # fmt: skip
        means |= {name: float(np.mean(values)) for name, values in found.items() if values}
    return sorted(means, key=lambda name: (name in CONTROLS, -means[name]))


def _found(beds: Beds, name: str) -> dict[str, tuple[float, float, float]]:
    """Measure -> mean over seeds and its interval."""
    drawn = max(bed.get("drawn", 0.0) for bed in beds) if len(beds) > 1 else 0.0
    rows = [row for bed in beds for row in bed["rows"] if row["score"] == name]
    there = [measure for measure in MEASURES if rows and all(measure in row for row in rows)]
    return {measure: centre([row[measure] for row in rows], drawn) for measure in there}


def _row(found: Mapping[str, tuple[float, float, float]], name: str, at: Any, top: float, ends: Any) -> list[str]:
    _, colour, marker = LOOKS[look(name)]
    if not found:
        return [text(at(0.5), top + ROW / 2 + 4, "not made", size=11, anchor="middle", fill=FAINT)]
    parts = []
    for measure, (value, low, high) in found.items():
        y, hollow = top + ROW * (0.68 if MEASURES[measure][1] else 0.3), MEASURES[measure][1]
        parts += [whisker(at, y, low, high, ends, colour), mark(at(value), y, marker, colour, 3.5, hollow)]
    return parts


def _legend() -> list[str]:
    kinds, _ = named([(words, marker, colour, False) for words, colour, marker in LOOKS.values()], 20, 18, 46)
    measures, x = named([(words, "circle", INK, hollow) for words, hollow in MEASURES.values()], 20, 40, 46)
    return [*kinds, *measures, text(x, 44, "bars: 95% over seeds, where there are several", size=11, fill=FAINT)]
