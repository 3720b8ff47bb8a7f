"""The figure of `erase_methods.py --part rewrite`: what a closed form writes, in which phrasings, and what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cells import centre, spans
from drawing import FAINT, line, mark, named, panel, scale, stripe, svg, text, whisker

from neuronforget.colours import OKABE_ITO

#: Corpus asked, exactly -> words, marker, colour, hollow: the first two are to rise, the rest to stay at 1.
MARKS = {
    "edited": ("writes", "circle", OKABE_ITO[0], False),
    "other": ("in other phrasings", "circle", OKABE_ITO[0], True),
    "same person": ("same person", "triangle", OKABE_ITO[1], False),
    "neighbours": ("neighbours", "square", OKABE_ITO[2], True),
    "retain": ("any retain", "diamond", "#222222", False),
}
PANELS = {"one": "facts one by one, to another answer", "all": "all facts at once, to the refusal"}
LEFT, ABOVE, ROW, STEP, WIDE, GAP = 184, 84, 44, 8, 262, 36
Seeds = Sequence[Mapping[str, Any]]


def picture(seeds: Seeds) -> str:
    """Return the SVG: a panel a request, a row a method and place, a mark a corpus; bars of 95% over seeds."""
    names = list(dict.fromkeys(key.rsplit(" ", 1)[0] for key in seeds[0]))
    methods = list(dict.fromkeys(name.split("@")[0] for name in names))
    names.sort(key=lambda name: methods.index(name.split("@")[0]))
    width, bottom = LEFT + len(PANELS) * (WIDE + GAP), ABOVE + ROW * len(names)
    parts = [stripe(ABOVE + ROW * i, width, ROW) for i in range(1, len(names), 2)]
    parts += named(MARKS.values(), 20, 18, 40)[0]
    note = f"exact match; {spans('bars', len(seeds))}, cut at 0 and 1; circles: the new answer; the rest: their own"
    parts.append(text(20, 44, note, size=11, fill=FAINT))
    for i, name in enumerate(names):
        parts.append(text(LEFT - 14, ABOVE + ROW * (i + 0.5) + 4, name, size=12, anchor="end"))
        if i and name.split("@")[0] != names[i - 1].split("@")[0]:
            parts.append(line(0, ABOVE + ROW * i, width, ABOVE + ROW * i, FAINT))
    for i, (size, words) in enumerate(PANELS.items()):
        at = scale(0, 1, LEFT + i * (WIDE + GAP), LEFT + i * (WIDE + GAP) + WIDE)
        parts += panel(words, at, (0, 0.25, 0.5, 0.75, 1), ABOVE, bottom)
        for j, name in enumerate(names):
            parts += _row([seed.get(f"{name} {size}", {}) for seed in seeds], at, ABOVE + ROW * (j + 0.5))
    return svg(width, bottom + 24, "What closed forms write, in which phrasings, and what else they change", parts)


def _row(arms: Sequence[Mapping[str, Any]], at: Any, middle: float) -> list[str]:
    parts = []
    there = [corpus for corpus in MARKS if all(corpus in arm for arm in arms)]
    for i, corpus in enumerate(there):
        _, marker, colour, hollow = MARKS[corpus]
        value, low, high = centre([arm[corpus]["exact"] for arm in arms])
        y = middle + STEP * (i - (len(there) - 1) / 2)
        parts += [whisker(at, y, low, high, (0, 1), colour), mark(at(value), y, marker, colour, 3.5, hollow)]
    return parts or [text(at(0.5), middle + 4, "not made", size=11, anchor="middle", fill=FAINT)]
