"""The figure of `tofu_study.py`: how far from the gold model, and what is left of the utility, method by method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drawing import FAINT, INK, PLACES, legend, line, mark, scale, svg, text
from judging import DAMAGE

Splits = Mapping[str, Mapping[str, Any]]
#: Number of the study -> its words.
SHOWN = {"KS": "KS from gold", "retain utility": "retain utility"}
LEFT, ABOVE, WIDE, GAP, ROW = 110, 96, 170, 26, 19
OTHER = ("guard", "#6b6b6b", "", "square")


def picture(splits: Splits) -> str:
    """Return the SVG: a row a method, tuned and at full strength; a pair of columns a split."""
    names = list(dict.fromkeys(name for arms in splits.values() for name in arms if "@" in name))
    width = LEFT + len(splits) * len(SHOWN) * (WIDE + GAP)
    height = ABOVE + ROW * len(names) + 36
    notes = (f"filled: tuned, retain loss up by at most {DAMAGE}; hollow: full strength",
             "bars: 95% over authors; dotted: untouched; dash-dotted: gold (KS 0)")  # fmt: skip
    parts = [legend(LEFT, 20, lines=False)]
    parts += [text(LEFT, 42 + 15 * i, note, size=11, fill=FAINT) for i, note in enumerate(notes)]
    rows = {name: ABOVE + ROW * (i + 0.5) for i, name in enumerate(names)}
    parts += [text(LEFT - 10, y + 4, name.partition("@")[0], size=12, anchor="end") for name, y in rows.items()]
    for i, (split, arms) in enumerate(splits.items()):
        for j, number in enumerate(SHOWN):
            left = LEFT + (i * len(SHOWN) + j) * (WIDE + GAP)
            parts += _panel(arms, rows, left, number, f"{split}: {SHOWN[number]}")
    return svg(width, height, "TOFU: distance from the gold model and utility of every method", parts)


def _panel(arms: Mapping[str, Any], rows: Mapping[str, float], left: float, number: str, words: str) -> list[str]:
    points = [arm[point] for arm in arms.values() for point in ("tuned", "full") if "tofu" in arm.get(point, {})]
    ends = [value for point in points for value in point["tofu"][number]]
    top = 1.0 if number == "KS" else (max([end for end in ends if end == end], default=0) or 1.0) * 1.05
    x, bottom = scale(0, top, left, left + WIDE), ABOVE + ROW * len(rows)
    parts = [text(left, ABOVE - 12, words, size=11, weight="600"), line(left, bottom, left + WIDE, bottom, INK)]
    parts += [text(x(tick), bottom + 16, f"{tick:.2g}", size=11, anchor="middle") for tick in (0, top / 2, top)]
    for name, dash in (("untouched", "1 3"), ("gold", "8 2 2 2")):
        at = x(arms[name]["tuned"]["tofu"][number][0])
        parts.append(line(at, ABOVE, at, bottom, INK, dash))
    for name, y in rows.items():
        parts.append(line(left, y, left + WIDE, y, FAINT, "1 4", opacity=0.5))
        for point in ("full", "tuned"):
            found = arms.get(name, {}).get(point, {})
            if "tofu" not in found:  # not measured, not made, or at no strength closer to gold than the untouched model
                continue
            value, low, high = found["tofu"][number]
            _, colour, _, marker = PLACES.get(name.partition("@")[2], OTHER)
            if low == low:
                parts.append(line(x(low), y, x(high), y, colour, width=1.4))
            parts.append(mark(x(value), y, marker, colour, hollow=point == "full"))
    return parts
