"""The map of `regime_map.py` as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from judging import judged_by
from regime_tables import Arms, gains, places, selections, verdict

#: From blue (chosen neurons are closer to the gold twin) to orange (random ones are), nats at the ends.
ENDS, REACH = ((33, 102, 172), (217, 95, 14)), 1.0
FONTS = 'font-family="sans-serif" font-size="12" role="img"'
SAYS = (
    "{what}, chosen neurons less random ones, nats (blue: the chosen {closer}).",
    "Framed: the interval over seeds excludes zero.",
)


def picture(done: Mapping[str, Arms], beds: Sequence[str], seeds: Sequence[int]) -> str:
    """Return the map as SVG: a square for each bed, operator, size and selection, framed where they are told apart."""
    panels, left, top = [], 210, 90
    kinds = [bed for bed in beds if f"{bed} {seeds[0]}" in done]
    first = done[f"{kinds[0]} {seeds[0]}"]
    rows, columns = places(first), selections(first)
    for i, bed in enumerate(kinds):
        arms = [done[f"{bed} {seed}"] for seed in seeds if f"{bed} {seed}" in done]
        x0 = left + i * (len(columns) * 46 + 24)
        panels.append(f'<text x="{x0}" y="20" font-weight="600">{escape(bed)}</text>')
        for j, name in enumerate(columns):
            panels.append(
                f'<text transform="translate({x0 + j * 46 + 18},{top - 6}) rotate(-24)">{escape(name)}</text>'
            )
        panels += _squares(arms, rows, columns, x0, top)
    labels = [
        f'<text x="{left - 8}" y="{top + 19 + 28 * i}" text-anchor="end">{escape(operator)}, {float(size):.2%}</text>'
        for i, (operator, size) in enumerate(rows)
    ]
    says = [escape(sentence) for sentence in _words(first)]
    wide = max(left + len(kinds) * (len(columns) * 46 + 24) + 60, 16 + 7 * max(map(len, says)))
    high = top + 28 * len(rows) + 58
    notes = [f'<text x="8" y="{high - 30 + 18 * i}">{sentence}</text>' for i, sentence in enumerate(says)]
    body = "".join([*labels, *panels, *notes])
    head = f'viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" {FONTS}'
    back = f'<title>{" ".join(says)}</title><rect width="{wide}" height="{high}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {head}>{back}{body}</svg>\n'


def _words(arms: Arms) -> list[str]:
    kind, where = judged_by(arms["untouched"]["tuned"]).rsplit(" ", 1)
    asked = "unseen phrasings" if where == "unseen" else "the forget corpus"
    what, closer = ("KL from the gold twin", "are closer") if kind == "KL" else ("Log-probability", "leave less")
    return [sentence.format(what=f"{what} on {asked}", closer=closer) for sentence in SAYS]


def _squares(
    arms: Sequence[Arms], rows: Sequence[tuple[str, str]], columns: Sequence[str], x0: int, y0: int
) -> Iterator[str]:
    for i, (operator, size) in enumerate(rows):
        for j, name in enumerate(columns):
            values = gains(arms, operator, size, name)
            mean = float(np.mean(values))
            share, told = min(abs(mean) / REACH, 1.0), bool(verdict(values))
            end = ENDS[mean > 0]
            shade = ",".join(f"{255 - share * (255 - c):.0f}" for c in end)
            fill = "#eee" if np.isnan(mean) else f"rgb({shade})"
            style = f'fill="{fill}"' if told else f'fill="{fill}" fill-opacity="0.35"'
            edge = ' stroke="black" stroke-width="1.5"' if told else ""
            x, y = x0 + 46 * j, y0 + 28 * i
            ink = "white" if told and share > 0.6 else "black"
            yield f'<rect x="{x}" y="{y}" width="44" height="26" {style}{edge}/>'
            yield f'<text x="{x + 22}" y="{y + 17}" text-anchor="middle" fill="{ink}">{mean:+.2f}</text>'
