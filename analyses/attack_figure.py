"""The figure of `nine_attacks.py`: by edit and attack, what the attack finds left, beside what plain questions do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attack_tables import MEASURES, POINTS, UNINFORMATIVE, Answers, Left, kinds
from drawing import FAINT, INK, line, mark, named, scale, svg, text

from neuronforget.colours import OKABE_ITO

LEFT, ABOVE, STEP, WIDE, GAP, COLUMNS, HEAD = 160, 84, 20, 150, 26, 4, 54
LOW, HIGH = -0.25, 1.25
BACK, LIKE = OKABE_ITO[1], OKABE_ITO[0]


def picture(seeds: Sequence[Mapping[str, Any]], point: str = "halved") -> str:
    """Return the SVG: a panel an edit, a row an attack, whiskers of 95% over targets, cut at the panel's sides."""
    answers, measure = Answers(seeds), next(iter(MEASURES))
    shown = kinds(answers)
    high = STEP * len(shown) + HEAD
    parts = _legend(f"{MEASURES[measure]}, {POINTS[point]}")
    for i, name in enumerate(answers.names):
        left, top = LEFT + i % COLUMNS * (WIDE + GAP), ABOVE + i // COLUMNS * high
        parts += _panel(name, left, top, len(shown))
        for j, kind in enumerate(shown):
            y = top + STEP * (j + 0.5)
            if i % COLUMNS == 0:
                parts.append(text(LEFT - 10, y + 4, kind, size=12, anchor="end"))
            parts += _row(answers.left(name, measure, answers.of(kind), point), left, y)
    rows = -(-len(answers.names) // COLUMNS)
    width, title = LEFT + COLUMNS * (WIDE + GAP), "What nine attacks find left after each kind of erasure"
    return svg(width, ABOVE + rows * high, title, parts)


def _legend(what: str) -> list[str]:
    entries = [
        ("attack: more than plain", "triangle", BACK, False), ("attack: not more", "circle", LIKE, False),
        ("the same facts, asked plainly", "square", INK, True),
    ]  # fmt: skip
    parts, _ = named(entries, LEFT + 6, 16, 24)
    note = f"share of the gap gold (0) to untouched (1) that is left ({what}); whiskers: 95% over targets"
    return [*parts, text(LEFT, 42, note, size=11, fill=FAINT)]


def _panel(name: str, left: float, top: float, rows: int) -> list[str]:
    at, bottom = scale(LOW, HIGH, left, left + WIDE), top + STEP * rows
    parts = [text(left + WIDE / 2, top - 8, name, weight="600", anchor="middle")]
    parts += [f'<rect x="{left}" y="{top + STEP * i}" width="{WIDE}" height="{STEP}" fill="#f4f4f4"/>'
              for i in range(1, rows, 2)]  # fmt: skip
    for tick, dash in ((0, ""), (0.5, "2 3"), (1, "")):
        parts.append(line(at(tick), top, at(tick), bottom, "#9a9a9a", dash))
        parts.append(text(at(tick), bottom + 14, f"{tick:g}", size=11, anchor="middle", fill=FAINT))
    return parts


def _row(left: Left, start: float, y: float) -> list[str]:
    if left.attack is None:
        return [text(start + WIDE / 2, y + 4, UNINFORMATIVE, size=11, anchor="middle", fill=FAINT)]
    at = scale(LOW, HIGH, start, start + WIDE)
    low, value, high = (at(min(max(v, LOW), HIGH)) for v in (left.attack.low, left.attack.value, left.attack.high))
    marker, colour = ("triangle", BACK) if left.back else ("circle", LIKE)
    parts = [line(low, y, high, y, colour, width=1.6)]
    if left.plain is not None:
        parts.append(mark(at(min(max(left.plain.value, LOW), HIGH)), y, "square", INK, 3.5, hollow=True))
    return [*parts, mark(value, y, marker, colour)]
