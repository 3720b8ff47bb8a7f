"""The figure of `informs_erasure.py`: what the advantage of chosen over random neurons depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from cells import middle, spans, verdict
from drawing import FAINT, INK, line, mark, scale, svg, text

from neuronforget.colours import OKABE_ITO


def coefficients_drawn(coefficients: Mapping[str, Sequence[float]], seeds: int, kind: str) -> str:
    """Return a regression's coefficients with their intervals as SVG: filled where the interval excludes zero."""
    found = {name: values for name, values in coefficients.items() if name != "R^2"}
    halves = {name: middle(v)[1] for name, v in found.items()}
    reach = max(abs(float(np.mean(v))) + halves[name] for name, v in found.items()) or 1.0
    left, top, step, wide = 220, 66, 24, 460
    at, bottom = scale(-reach, reach, left, left + wide), top + step * len(found)
    ends = "are closer to the gold twin" if kind == "KL" else "leave the answers less likely"
    words = f"advantage of chosen over random neurons (nats); mean right of zero: the chosen {ends}"
    note = f"all but the mean: deviations from it; {spans('whiskers', seeds)}; hollow: the interval includes zero"
    parts = [text(14, 20, words, size=12), text(14, 38, note, size=11, fill=FAINT)]
    parts.append(line(at(0), top - 4, at(0), bottom, INK, "1 3"))
    for i, (name, values) in enumerate(found.items()):
        mean, y = float(np.mean(values)), top + step * (i + 0.5)
        parts.append(text(left - 10, y + 4, name, anchor="end"))
        parts.append(line(at(mean - halves[name]), y, at(mean + halves[name]), y, OKABE_ITO[0], width=2))
        parts.append(mark(at(mean), y, "circle", OKABE_ITO[0], 4, hollow=verdict(values) not in ("higher", "lower")))
    for tick in _ticks(reach):
        parts.append(line(at(tick), bottom, at(tick), bottom + 4, INK))
        parts.append(text(at(tick), bottom + 16, f"{tick:+g}" if tick else "0", size=11, anchor="middle"))
    return svg(left + wide + 30, bottom + 28, "What the advantage of chosen neurons depends on", parts)


def _ticks(reach: float) -> list[float]:
    """Return round numbers from -reach to reach: zero, and two to four on either side of it."""
    power = 10.0 ** np.floor(np.log10(reach))
    step = next((power * share for share in (2, 1) if reach >= 2 * power * share), power / 2)
    most = int(reach / step + 1e-9)
    return [round(step * i, 12) for i in range(-most, most + 1)]
