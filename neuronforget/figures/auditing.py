"""Pictures of an audit: every check beside its references, and curves of the three models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from neuronforget.auditing import Check
from neuronforget.colours import GREY, OKABE_ITO
from neuronforget.figures.style import ABOVE, BELOW, DASHES, MARKERS, styled, text

#: Colour, marker and dash of each model: told apart without colour too.
SUBJECTS = {
    "untouched": (OKABE_ITO[1], "x", "dot"),
    "edited": (OKABE_ITO[0], "circle", "solid"),
    "gold": ("#000000", "star", "dash"),
}


def checks(found: Sequence[Check]) -> go.Figure:
    """Draw each check as a line from what is known untouched to the reference, with the edited model on it.

    The interval is that of edited - reference, laid around the edited model's value; of a rate it ends at 0 and 1.
    """
    names = [f"{text(c.probe)}<br>{text(c.corpus)}" for c in found]
    figure = go.Figure()
    for name, check in zip(names, found, strict=True):
        figure.add_shape(
            type="line", x0=check.reference, x1=check.start, y0=name, y1=name, line={"color": "#d0d0d0", "width": 5},
            layer="below",
        )  # fmt: skip
    values = {"untouched": [c.start for c in found], "gold": [c.reference for c in found]}
    for who, label in (("untouched", "untouched"), ("gold", "reference (gold twin, or what stands in for it)")):
        colour, marker, _ = SUBJECTS[who]
        figure.add_trace(
            go.Scatter(x=values[who], y=names, mode="markers", name=label,
                       hovertemplate="%{y}: %{x:.3f}<extra></extra>",
                       marker={"color": colour, "symbol": marker, "size": 9})
        )  # fmt: skip
    ends = [[c.reference + end for end in (c.low, c.high)] for c in found]
    ends = [[min(max(end, 0.0), 1.0) for end in own] if c.rate else own for own, c in zip(ends, found, strict=True)]
    left = [c.outcome in ("left", "avoided") for c in found]
    colour, marker, _ = SUBJECTS["edited"]
    figure.add_trace(
        go.Scatter(
            x=[c.value for c in found], y=names, mode="markers+text", name="edited (filled: found left or avoided)",
            text=[f"  {c.outcome}" if bad else "" for c, bad in zip(found, left, strict=True)],
            textposition="top center",
            textfont={"size": 12},
            marker={"color": colour, "size": 10, "symbol": [marker if bad else f"{marker}-open" for bad in left]},
            error_x={"type": "data", "array": [high - c.value for c, (_, high) in zip(found, ends, strict=True)],
                     "arrayminus": [c.value - low for c, (low, _) in zip(found, ends, strict=True)],
                     "thickness": 1, "color": GREY},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(type="category", autorange="reversed", tickfont_size=12)
    figure.update_xaxes(title="the check's metric")
    return styled(figure, 170 + 38 * len(found)).update_layout(legend=BELOW)


def curves(
    found: Mapping[str, Sequence[float]], across: str, up: str, *, step: int = 1, top: float | None = None
) -> go.Figure:
    """Draw one curve a model; its values are `step` apart `across`, and `top` is where the axis ends."""
    figure = go.Figure()
    edits = [who for who in found if who not in SUBJECTS]
    own = {who: (OKABE_ITO[2 + i % 4], MARKERS[1 + i % 5], DASHES[i % len(DASHES)]) for i, who in enumerate(edits)}
    looks = SUBJECTS | own
    for who in (name for name in looks if name in found):
        values, (colour, marker, dash) = found[who], looks[who]
        figure.add_trace(
            go.Scatter(x=[step * i for i in range(len(values))], y=list(values), mode="lines+markers", name=text(who),
                       line={"color": colour, "dash": dash}, marker={"symbol": marker, "size": 8})
        )  # fmt: skip
    most = max(map(len, found.values()))
    figure.update_xaxes(title=across, tick0=0, dtick=step * -(-most // 8), range=[-0.4 * step, (most - 0.6) * step])
    figure.update_yaxes(title=up, rangemode="tozero")
    if top is not None:
        figure.update_yaxes(range=[-0.03 * top, 1.03 * top])
    return styled(figure, 400).update_layout(legend=ABOVE)
