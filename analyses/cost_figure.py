"""The figure of `attribution_cost.py`: cost over that of a training step's pass, by model and by corpus."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from drawing import FAINT, INK, line, mark, scale, svg, text

from neuronforget.colours import OKABE_ITO

DASHES, MARKERS = ("", "6 3", "2 3"), ("circle", "square", "triangle")
AXES = {"model": ("neurons", "neurons in the model"), "corpus": ("examples", "examples in the corpus")}
WIDE, HIGH, LEFT, ABOVE, GAP = 300, 260, 60, 60, 40


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the SVG: log axes, a panel for each thing that varied, a line a score, whiskers from lowest to highest."""
    kinds = [kind for kind in AXES if any(row["varied"] == kind for row in rows)]
    names = list(dict.fromkeys(row["score"] for row in rows))
    low = min(0, *(math.floor(math.log10(row["lowest"])) for row in rows))
    top = max(1, *(math.ceil(math.log10(row["highest"])) for row in rows))
    y = scale(low, top, ABOVE + HIGH, ABOVE)
    right = LEFT + len(kinds) * (WIDE + GAP)
    parts = [text(LEFT, 22, "time over that of a forward and full backward pass on the same batches", weight="600")]
    for i, kind in enumerate(kinds):
        parts += _panel([row for row in rows if row["varied"] == kind], names, LEFT + i * (WIDE + GAP), y, (low, top))
        parts.append(text(LEFT + i * (WIDE + GAP) + WIDE / 2, ABOVE + HIGH + 36, AXES[kind][1], anchor="middle"))
    for i, name in enumerate(names):
        colour, dash, marker = look(i)
        height = ABOVE + 10 + 22 * i
        parts += [line(right, height, right + 28, height, colour, dash, 2), mark(right + 14, height, marker, colour)]
        parts.append(text(right + 36, height + 4, name, size=12))
    return svg(right + 170, ABOVE + HIGH + 48, "Cost of attribution by model and corpus", parts)


def look(i: int) -> tuple[str, str, str]:
    """Return colour, dash and marker of the i-th line."""
    return OKABE_ITO[i % len(OKABE_ITO)], DASHES[i % 3], MARKERS[(i // 3 + i) % 3]


def _panel(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], left: float, y: Any, ends: tuple[int, int]
) -> list[str]:
    along = AXES[rows[0]["varied"]][0]
    sizes = sorted({row[along] for row in rows})
    x = scale(math.log(sizes[0]), max(math.log(sizes[-1]), math.log(sizes[0]) + 1e-9), left + 14, left + WIDE - 14)
    parts = []
    for power in range(ends[0], ends[1] + 1):
        parts += [
            line(left, y(power), left + WIDE, y(power), INK if power == 0 else "#cccccc", "1 3" if power == 0 else "")
        ]
        parts.append(text(left - 6, y(power) + 4, f"{10.0**power:g}", size=11, anchor="end", fill=FAINT))
    parts += [text(x(math.log(size)), y(ends[0]) + 16, f"{size}", size=11, anchor="middle") for size in sizes]
    for i, name in enumerate(names):
        colour, dash, marker = look(i)
        mine = sorted((row for row in rows if row["score"] == name), key=lambda row: row[along])
        dots = [(x(math.log(row[along])), y(math.log10(row["ratio"]))) for row in mine]
        parts += [line(*a, *b, colour, dash, 2) for a, b in pairwise(dots)]
        parts += [line(dx, y(math.log10(row["lowest"])), dx, y(math.log10(row["highest"])), colour)
                  for (dx, _), row in zip(dots, mine, strict=True)]  # fmt: skip
        parts += [mark(*dot, marker, colour, 3.5) for dot in dots]
    return parts
