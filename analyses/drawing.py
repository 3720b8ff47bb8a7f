"""Marks, lines and words of the analyses' figures: SVG without script, told apart by shape and dash too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape

from neuronforget.colours import FONT, OKABE_ITO

#: Place of an edit -> its words, colour, dash and marker.
PLACES = {
    "found": ("found neurons", OKABE_ITO[0], "", "circle"),
    "full": ("whole model", OKABE_ITO[1], "6 3", "square"),
    "random": ("random neurons", "#6b6b6b", "2 3", "triangle"),
}
INK, FAINT = "#222222", "#767676"


def legend(left: float, top: float, lines: bool) -> str:
    parts = []
    for i, (words, colour, dash, marker) in enumerate(PLACES.values()):
        x = left + 150 * i
        parts += [
            line(x, top - 4, x + 28, top - 4, colour, dash if lines else "", 2),
            mark(x + 14, top - 4, marker, colour),
        ]
        parts.append(text(x + 36, top, words))
    return "".join(parts)


def named(
    entries: Iterable[tuple[str, str, str, bool]], x: float, y: float, apart: int = 44
) -> tuple[list[str], float]:
    """Draw marks with their words in a row, of (words, marker, colour, hollow); return them and where they end."""
    parts = []
    for words, marker, colour, hollow in entries:
        parts += [mark(x, y, marker, colour, 4, hollow), text(x + 12, y + 4, words, size=12)]
        x += apart + 7 * len(words)
    return parts, x


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def mark(x: float, y: float, marker: str, colour: str, size: float = 4, hollow: bool = False) -> str:
    shape = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}"',
        "square": f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"',
        "triangle": f'<polygon points="{joined([(x - size, y + size), (x + size, y + size), (x, y - size)])}"',
        "down": f'<polygon points="{joined([(x - size, y - size), (x + size, y - size), (x, y + size)])}"',
        "diamond": f'<polygon points="{joined([(x - size, y), (x, y - size), (x + size, y), (x, y + size)])}"',
    }[marker]
    return f'{shape} fill="{"white" if hollow else colour}" stroke="{colour}" stroke-width="1.4"/>'


def line(x: float, y: float, x2: float, y2: float, colour: str, dash: str = "", width: float = 1,
          opacity: float = 1) -> str:  # fmt: skip
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}" opacity="{opacity}"/>'
    )


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "start", fill: str = INK, weight: str = "400",
          move: str = "") -> str:  # fmt: skip
    place = f'transform="{move}"' if move else f'x="{x:.1f}" y="{y:.1f}"'
    return (
        f'<text {place} font-size="{size}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )


def panel(words: str, at: Callable[[float], float], ticks: Iterable[float], top: float, bottom: float) -> list[str]:
    """Return a panel's head, its grid and what stands at its ticks."""
    ticks = list(ticks)
    parts = [text(at(ticks[0]), top - 8, words, size=12, weight="600")]
    for tick in ticks:
        parts.append(line(at(tick), top, at(tick), bottom, "#c4c4c4"))
        parts.append(text(at(tick), bottom + 14, f"{tick:g}", size=11, anchor="middle", fill=FAINT))
    return parts


def stripe(y: float, wide: float, high: float, fill: str = "#f4f4f4") -> str:
    return f'<rect x="0" y="{y:.1f}" width="{wide:g}" height="{high:g}" fill="{fill}"/>'


def whisker(at: Callable[[float], float], across: float, low: float, high: float, ends: tuple[float, float],
             colour: str, upright: bool = False) -> str:  # fmt: skip
    """Return an interval, cut at the ends of its axis; nothing where it has no width."""
    low, high = max(low, ends[0]), min(high, ends[1])
    if low >= high:
        return ""
    x, y, x2, y2 = (across, at(low), across, at(high)) if upright else (at(low), across, at(high), across)
    return line(x, y, x2, y2, colour, width=1.4)


def ribbon(above: Sequence[tuple[float, float]], below: Sequence[tuple[float, float]], colour: str) -> str:
    """Return the band between two lines, both from left to right."""
    return f'<polygon points="{joined([*above, *below[::-1]])}" fill="{colour}" opacity=".13"/>'


def joined(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" font-family="{FONT}" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width:g}" height="{height:g}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
