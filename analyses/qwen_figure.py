"""The figure of `qwen_case_study.py`: what is left of forget probes and of all else, before and after each edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drawing import FAINT, INK, PLACES, line, mark, named, panel, scale, stripe, svg, text, whisker
from qwen_tables import State, entries

#: Panel -> column of a state -> its words.
PANELS = {
    "forget probes": ("forget, rouge_l",),
    "neighbours": ("neighbours, rouge_l",),
    "TriviaQA; BBH": ("triviaqa, exact", "bbh, exact"),
    "membership (AUC)": ("AUC, loss",),
}
REFERENCE = ("untouched, gold", INK, "", "diamond")
LEFT, ABOVE, ROW, WIDE, GAP = 142, 88, 22, 118, 28


def picture(arms: Mapping[str, Any]) -> str:
    """Return the SVG: a row a model, a panel a measure; bars are 95% over questions or texts."""
    made = list(entries(arms))
    shown = sorted(made, key=lambda entry: _order(entry[0], [name for name, *_ in made]))
    width, bottom = LEFT + len(PANELS) * (WIDE + GAP), ABOVE + ROW * len(shown)
    parts = [stripe(ABOVE + ROW * i, width, ROW) for i in range(1, len(shown), 2)] + _legend()
    before = ""
    for i, (name, _, _) in enumerate(shown):
        y, method = ABOVE + ROW * (i + 0.5), "" if _place(name) is REFERENCE else _method(name)
        parts += [line(0, y - ROW / 2, width, y - ROW / 2, FAINT)] if i and method != before else []
        parts.append(text(LEFT - 12, y + 4, name, size=12, anchor="end"))
        before = method
    for i, (words, keys) in enumerate(PANELS.items()):
        left = LEFT + i * (WIDE + GAP)
        at = scale(0, 1, left, left + WIDE)
        parts += panel(words, at, (0, 0.5, 1), ABOVE, bottom)
        for name, dash in (("untouched", "1 3"), ("gold", "8 2 2 2")):
            value = arms.get(name, {"values": {}})["values"].get(keys[0])
            if value is not None:
                parts.append(line(at(value["value"]), ABOVE, at(value["value"]), bottom, INK, dash))
        for j, (name, _, state) in enumerate(shown):
            parts += _marks(name, state, keys, at, ABOVE + ROW * (j + 0.5))
    return svg(width, bottom + 24, "Forget probes, neighbours, other tasks and membership before and after", parts)


def _method(name: str) -> str:
    return name.partition("@")[0].partition(",")[0]


def _place(name: str) -> tuple[str, str, str, str]:
    """Return words, colour, dash and marker of where an edit acts."""
    if "@" not in name:
        return REFERENCE if name in ("untouched", "gold") else PLACES["full"]
    return PLACES[name.partition("@")[2].split()[0]]


def _order(name: str, names: list[str]) -> tuple[int, int]:
    """References first, then a method beside itself, in full before tuned."""
    first = next(i for i, other in enumerate(names) if _method(other) == _method(name))
    return first, names.index(name)


def _marks(name: str, state: State, keys: tuple[str, ...], at: Any, middle: float) -> list[str]:
    parts, (_, colour, _, marker) = [], _place(name)
    for i, key in enumerate(keys):
        found, y = state["values"].get(key), middle + 9 * (i - (len(keys) - 1) / 2)
        if found is not None and found["value"] == found["value"]:
            parts.append(whisker(at, y, found["low"], found["high"], (0, 1), colour))
            parts.append(mark(at(found["value"]), y, marker, colour, 4, hollow=name.endswith("in full")))
    return parts


def _legend() -> list[str]:
    looks = (REFERENCE, *PLACES.values())
    parts, _ = named([(words, marker, colour, False) for words, colour, _, marker in looks], 20, 18)
    note = "filled: tuned; hollow: in full; dotted: before (untouched); dash-dotted: gold; bars: 95%"
    return [*parts, text(20, 44, note, size=11, fill=FAINT)]
