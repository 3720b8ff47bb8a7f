"""Two figures of `erase_methods.py`, as SVG without script: distance from gold over strengths, and every method's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from cells import middle, spans
from drawing import FAINT, INK, PLACES, legend, line, mark, ribbon, scale, svg, text
from erase_tables import CLAIM, Seed, arms_at, far_by, ours_at, points_of
from judging import DAMAGE, judged

from neuronforget.colours import OKABE_ITO

DRAWN = "ablate ssd leace memit simnpo satimp npo task_vector".split()
LIKELY = (-12, -9, -6, -3, 0)  # of that of log-probabilities: exp(-12) is a guess among 160,000 tokens
TICKS = (0, 2, 4, 6, 8)  # of the axis of KL; what lies beyond an axis is drawn at its end
WIDE, HIGH, LEFT, ABOVE, GAP, COLUMNS = 206, 170, 62, 80, 22, 4

Dot = tuple[float, float, float, bool]  # place on the dial, mean KL, half its interval, within the allowed damage


def dials(seeds: Sequence[Seed]) -> str:
    """Draw what is left of the answers (`judged`) along the dial of strengths, a panel a method, a line a place.

    Filled marks raise the retain loss by at most DAMAGE (mean over seeds), hollow ones and faint lines by more.
    """
    names = [name for name in DRAWN if any(f"{name}@{place}" in arms_at(seeds, place) for place in PLACES)]
    rows = math.ceil(len(names) / COLUMNS)
    width, height = LEFT + COLUMNS * (WIDE + GAP), ABOVE + rows * (HIGH + 46) + 14
    gold = "gold twin: 0; " if "gold" in seeds[0] else ""
    note = f"{spans('bands', len(seeds))}; dotted: untouched; {gold}hollow: retain loss up by over {DAMAGE}"
    parts = [legend(LEFT, 20, lines=True), text(LEFT, 44, note, size=11, fill=FAINT)]
    for i, name in enumerate(names):
        left, top = LEFT + (i % COLUMNS) * (WIDE + GAP), ABOVE + i // COLUMNS * (HIGH + 46)
        parts.append(f'<g transform="translate({left} {top})">{_panel(seeds, name, first=i % COLUMNS == 0)}</g>')
    parts.append(text(LEFT + (COLUMNS * (WIDE + GAP) - GAP) / 2, height - 8, "strength of the edit", anchor="middle"))
    parts.append(text(0, 0, words_of(seeds), anchor="middle",
                       move=f"translate(22 {ABOVE + (rows * (HIGH + 46) - 46) / 2}) rotate(-90)"))  # fmt: skip
    return svg(width, height, f"{words_of(seeds)} over the strength of the edit, by method and place", parts)


def dots(seeds: Sequence[Seed]) -> str:
    """Draw what every method leaves of the answers, tuned, with its interval over seeds, by place."""
    values = {name: [judged(p) for p in points_of(seeds, name)] for place in PLACES for name in arms_at(seeds, place)}
    methods = sorted({name.split("@")[0] for name in values}, key=lambda m: np.mean(values.get(f"{m}@found", [99])))
    left, top, step, wide = 152, 62, 20, 620
    known, ticks = float(np.mean([judged(p) for p in points_of(seeds, "untouched")])), ticks_of(seeds)
    at = _held(scale(ticks[0], ticks[-1], left, left + wide), ticks)
    bottom = top + step * len(methods)
    parts = [legend(left, 20, lines=False)]
    ours = points_of(seeds, CLAIM, ours_at(seeds)) if CLAIM in values else []
    how = "whole" if ours_at(seeds) == "full" else "as far as all"
    if ours:
        mean, half = middle([judged(p) for p in ours])
        parts += _band(
            at(mean - half), at(mean + half), top, bottom, f"found neurons ablated {how}, 95%", left + wide / 2
        )
    parts.append(line(at(known), top, at(known), bottom, INK, "1 3"))
    parts.append(text(at(known), top - 6, "untouched", size=11, anchor="middle"))
    for row, method in enumerate(methods):
        y = top + step * (row + 0.5)
        if row % 2:
            parts.insert(
                0, f'<rect x="0" y="{y - step / 2}" width="{left + wide + 20}" height="{step}" fill="#f4f4f4"/>'
            )
        parts.append(text(left - 8, y + 4, method, anchor="end"))
        for shift, (place, (_, colour, _, marker)) in zip((-5, 0, 5), PLACES.items(), strict=True):
            if f"{method}@{place}" in values:
                mean, half = middle(values[f"{method}@{place}"])
                parts.append(line(at(mean - half), y + shift, at(mean + half), y + shift, colour, width=1.4))
                parts.append(mark(at(mean), y + shift, marker, colour))
    parts += [text(at(tick), bottom + 16, str(tick), anchor="middle") for tick in ticks]
    parts.append(line(left, bottom, left + wide, bottom, INK))
    words = words_of(seeds) + ("; the gold twin is at 0" if "gold" in seeds[0] else "")
    parts.append(text(left + wide / 2, bottom + 36, words, anchor="middle"))
    return svg(left + wide + 20, bottom + 48, f"{words_of(seeds)}, every method tuned, by place", parts)


def words_of(seeds: Sequence[Seed]) -> str:
    """Return what is drawn, in words."""
    kind, where = far_by(seeds).rsplit(" ", 1)
    asked = "unseen phrasing" if where == "unseen" else "the forget corpus"
    return f"{'KL from the gold twin' if kind == 'KL' else 'log-probability of the answers'}, {asked} (nats)"


def _band(low: float, high: float, top: float, bottom: float, words: str, middle: float) -> list[str]:
    """A band from `low` to `high`, and its words on a line of their own, towards the `middle`."""
    place = f'x="{low:.1f}" y="{top}" width="{max(1.0, high - low):.1f}" height="{bottom - top}"'
    return [
        f'<rect {place} fill="{OKABE_ITO[0]}" opacity=".12"/>',
        text(low, top - 20, words, size=11, anchor="start" if low < middle else "end", fill=OKABE_ITO[0]),
    ]


def ticks_of(seeds: Sequence[Seed]) -> Sequence[int]:
    """Return the ticks of the axis, from end to end."""
    return TICKS if "gold" in seeds[0] else LIKELY


def _held(at: Callable[[float], float], ticks: Sequence[int]) -> Callable[[float], float]:
    """A scale that does not leave its axis."""
    return lambda value: at(min(max(value, ticks[0]), ticks[-1]))


def _panel(seeds: Sequence[Seed], name: str, first: bool) -> str:
    known = float(np.mean([judged(p) for p in points_of(seeds, "untouched")]))
    places = [place for place in reversed(PLACES) if f"{name}@{place}" in arms_at(seeds, place)]  # found on top
    curves = {place: _curve(seeds, f"{name}@{place}") for place in places}
    ticks = ticks_of(seeds)
    y = _held(scale(ticks[0], ticks[-1], HIGH, 0), ticks)
    parts = [line(0, y(known), WIDE, y(known), INK, "1 3"), text(0, -8, name, weight="600")]
    drawn = [_ribbon(curve, y, PLACES[place][1]) for place, curve in curves.items()]
    drawn += [_strokes(curve, y, place) for place, curve in curves.items()]
    parts.append(f'<svg width="{WIDE}" height="{HIGH}" overflow="hidden">{"".join(drawn)}</svg>')
    parts += [line(0, HIGH, WIDE, HIGH, INK), line(0, 0, 0, HIGH, INK)]
    strengths = [point["strength"] for point in seeds[0][f"{name}@{places[0]}"]["dials"][-1]]
    words = ["0", *(f"1/{1 / s:.0f}" if s < 1 else f"{s:g}" for s in strengths)]
    parts += [text(_along(i, len(words)), HIGH + 15, w, size=11, anchor="middle") for i, w in enumerate(words)]
    parts += [text(-6, y(tick) + 4, str(tick), size=11, anchor="end") for tick in ticks if first]
    return "".join(parts)


def _along(step: int, count: int) -> float:
    return scale(0, count - 1, 6, WIDE - 8)(step)


def _curve(seeds: Sequence[Seed], name: str) -> list[Dot]:
    """From the untouched model along the dial of the last edit (the default learning rate)."""
    start = [seed["untouched"]["tuned"] for seed in seeds]
    dial = [list(points) for points in zip(*(seed[name]["dials"][-1] for seed in seeds), strict=True)]
    found = []
    for i, points in enumerate([start, *dial]):
        rise = np.mean([p["retain"]["nll"] - s["retain"]["nll"] for p, s in zip(points, start, strict=True)])
        distance = middle([judged(p) for p in points])
        found.append((_along(i, len(dial) + 1), *distance, bool(rise <= DAMAGE)))
    return found


def _ribbon(curve: Sequence[Dot], y: Callable[[float], float], colour: str) -> str:
    above = [(x, y(mean + half)) for x, mean, half, _ in curve]
    below = [(x, y(mean - half)) for x, mean, half, _ in curve]
    return ribbon(above, below, colour)


def _strokes(curve: Sequence[Dot], y: Callable[[float], float], place: str) -> str:
    _, colour, dash, marker = PLACES[place]
    parts = []
    for (x, mean, _, _), (x2, mean2, _, kept) in pairwise(curve):
        parts.append(line(x, y(mean), x2, y(mean2), colour, dash, 2, 1 if kept else 0.4))
    return "".join(parts + [mark(x, y(mean), marker, colour, 3.5, hollow=not kept) for x, mean, _, kept in curve])
