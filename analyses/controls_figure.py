"""The figure of `regime_controls.py`: what each won cell is closer by than random neurons, and than matched ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cells import centre, spans
from drawing import FAINT, INK, line, mark, named, panel, scale, stripe, svg, text, whisker
from regime_tables import verdict

from neuronforget.colours import OKABE_ITO

#: Control -> its words, marker and colour.
LOOKS = {
    "random": ("random neurons", "triangle", "#6b6b6b"),
    "norm": ("alike in write norm", "square", OKABE_ITO[1]),
    "activation": ("alike in activation", "circle", OKABE_ITO[0]),
}
LEFT, ABOVE, ROW, STEP, WIDE, HEAD = 344, 84, 26, 7, 440, 24
LEAST = 0.5  # of the axis on either side of zero, nats
Won = Sequence[Mapping[str, Any]]


def picture(rows: Won, far: str, seeds: int) -> str:
    """Return the SVG: a row a won cell under its request, a mark a control; left of zero the chosen neurons are closer.

    `rows` are those of `regime_controls.compared`, `far` what is judged by. Hollow: the interval includes zero.
    """
    requests: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        requests.setdefault(row["request"], []).append(row)
    bottom = ABOVE + sum(HEAD + ROW * len(found) for found in requests.values())
    low, high = _reach(rows)
    at = scale(low, high, LEFT, LEFT + WIDE)
    ticks = [tick for tick in (-4, -3, -2, -1, 0, 1, 2, 3, 4) if low <= tick <= high]
    parts = [*_legend(seeds), *panel(f"{far}, chosen neurons less their controls, nats", at, ticks, ABOVE, bottom)]
    y = float(ABOVE)
    for request, found in requests.items():
        parts.append(text(14, y + 17, request, weight="600"))
        y += HEAD
        for i, row in enumerate(found):
            parts = [stripe(y, LEFT + WIDE + 20, ROW), *parts] if i % 2 == 0 else parts
            parts += _row(row, at, y + ROW / 2, (low, high))
            y += ROW
    parts.append(line(at(0), ABOVE, at(0), bottom, INK, width=1.6))
    return svg(
        LEFT + WIDE + 20, bottom + 28, "Chosen neurons beside random and matched ones, where they had won", parts
    )


def _reach(rows: Won) -> tuple[float, float]:
    """The ends of the axis: all means, and whiskers as far as they are no longer than the furthest mean."""
    means = [float(np.mean(row[kind])) for row in rows for kind in LOOKS]
    finite = [mean for mean in means if np.isfinite(mean)]
    return 1.3 * min([-LEAST, *finite]), 1.3 * max([LEAST, *finite])


def _row(row: Mapping[str, Any], at: Any, middle: float, ends: tuple[float, float]) -> list[str]:
    words = f"{row['operator']}, {float(row['size']):.2%} by {row['selection']}"
    parts = [text(LEFT - 12, middle + 4, words, size=12, anchor="end")]
    for i, (kind, (_, marker, colour)) in enumerate(LOOKS.items()):
        y, (mean, low, high) = middle + STEP * (i - 1), centre(row[kind])
        if np.isfinite(mean):
            parts.append(whisker(at, y, low, high, ends, colour))
            parts.append(mark(at(mean), y, marker, colour, 3, hollow=not verdict(row[kind])))
    return parts


def _legend(seeds: int) -> list[str]:
    parts, _ = named([(f"less {words}", marker, colour, False) for words, marker, colour in LOOKS.values()], 20, 18)
    note = f"{spans('bars', seeds)}, cut at the ends; hollow: the interval includes zero; left of zero: chosen closer"
    return [*parts, text(20, 44, note, size=11, fill=FAINT)]
