"""Neuron by neuron and token by token: forget against retain, how far each moved, where in a text a set acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from neuronforget.colours import GREY, OKABE_ITO
from neuronforget.figures.style import ABOVE, FEW_MARKS, marked, scale, spread, styled, text
from neuronforget.neurons import Neurons

ByNeuron = Float[np.ndarray, "layer neuron"]
CELLS = 60  # of the density, along either axis
#: Limits of colour for tokens: the largest few would wash out the rest.
QUANTILE = 0.99


def density(forget: ByNeuron, retain: ByNeuron, what: str, neurons: Neurons | None = None) -> go.Figure:
    """Draw every neuron by a positive statistic on forget (across) and on retain (up), as counts of neurons in cells.

    Both axes are logarithmic, and the same; a neuron at 0 lies at the lower end. Selected neurons are marked one by
    one, of more than `MOST_MARKS` so many, evenly apart. Under the dashed line a neuron has more to do with forget.
    """
    floor = min((float(v[v > 0].min()) for v in (forget, retain) if (v > 0).any()), default=1.0)
    x, y = (np.log10(np.maximum(v, floor)) for v in (forget, retain))
    edges = np.linspace(min(x.min(), y.min()), max(x.max(), y.max()) + 1e-9, CELLS + 1)
    counts, _, _ = np.histogram2d(x.ravel(), y.ravel(), bins=(edges, edges))
    with np.errstate(divide="ignore"):
        height = np.where(counts > 0, np.log10(counts), np.nan).T
    middle = (edges[1:] + edges[:-1]) / 2
    most = int(max(counts.max(), 1))
    apart = most**0.85  # a power of ten nearer to the largest count would be written over it
    ticks = sorted({*(10**power for power in range(len(str(most))) if 10**power <= apart), most})
    figure = go.Figure(
        go.Heatmap(
            x=middle, y=middle, z=height, colorscale="Cividis", customdata=counts.T,
            hovertemplate="forget 1e%{x:.1f}, retain 1e%{y:.1f}: %{customdata:.0f} neurons<extra></extra>",
            colorbar=scale("neurons", tickvals=np.log10(ticks), ticktext=[f"{tick:,}" for tick in ticks]),
        )
    )  # fmt: skip
    ends = [edges[0], edges[-1]]
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="equal", line={"color": GREY, "dash": "dash"}))
    if neurons is not None:
        mask = neurons.mask().numpy()
        which = spread(int(mask.sum()))
        size, opacity = (7, 1.0) if len(which) <= FEW_MARKS else (4, 0.6)  # many must not hide the counts
        marker = {"symbol": "circle-open", "size": size, "color": OKABE_ITO[1], "line": {"width": 1.3}}
        marker |= {"opacity": opacity}
        at = {"x": x[mask][which], "y": y[mask][which], "name": marked("selected", len(which), int(mask.sum()))}
        figure.add_trace(go.Scatter(**at, mode="markers", marker=marker))
    figure.update_xaxes(title=f"log10 of {text(what)} on forget")
    figure.update_yaxes(title=f"log10 of {text(what)} on retain")
    figure.update_layout(legend=ABOVE)
    return styled(figure, 560).update_layout(margin_b=96)


def ridgelines(shifts: Mapping[str, ByNeuron], layers: Sequence[int]) -> go.Figure:
    """Draw how the neurons' shifts spread, one ridge a layer, for each corpus; layer 0 is at the bottom.

    Across is log10 of the RMS change of a neuron's activation; a neuron that did not move is in no ridge, and its
    number stands in the hover text. Heights are densities, to one scale in the whole figure.
    """
    with np.errstate(divide="ignore"):
        logs = {kind: np.log10(values) for kind, values in shifts.items()}
    known = np.concatenate([v[np.isfinite(v)].ravel() for v in logs.values()] or [np.zeros(0)])
    edges = np.linspace(known.min(), known.max() + 1e-9, CELLS + 1) if len(known) else np.linspace(-1, 0, CELLS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    heights = {
        kind: np.stack([np.histogram(row[np.isfinite(row)], edges)[0] / row.size for row in values])
        for kind, values in logs.items()
    }
    scale = 0.9 / max((float(h.max()) for h in heights.values()), default=1.0) if len(known) else 1.0
    figure = go.Figure()
    looks = ((OKABE_ITO[1], "solid"), (OKABE_ITO[0], "dash"), (OKABE_ITO[2], "dot"))
    for i, layer in enumerate(layers):
        for (kind, height), (colour, dash) in zip(heights.items(), looks, strict=False):
            still = int((~np.isfinite(logs[kind][i])).sum())
            base = go.Scatter(x=[middle[0], middle[-1]], y=[i, i], mode="lines", line={"width": 0}, hoverinfo="skip",
                              showlegend=False)  # fmt: skip
            ridge = go.Scatter(
                x=middle, y=i + scale * height[i], mode="lines", fill="tonexty", name=text(kind), legendgroup=kind,
                showlegend=i == 0, line={"color": colour, "dash": dash, "width": 1.5}, opacity=0.8,
                hovertemplate=f"{text(kind)}, layer {layer}: 1e%{{x:.1f}}; {still} neurons did not move<extra></extra>",
            )  # fmt: skip
            figure.add_traces([base, ridge])
    figure.update_xaxes(title="RMS change of the activation (log10)")
    figure.update_yaxes(title="layer", tickvals=list(range(len(layers))), ticktext=[str(layer) for layer in layers])
    figure.update_layout(legend=ABOVE)
    return styled(figure, 160 + 44 * len(layers) if len(layers) < 12 else 120 + 24 * len(layers))


def tokens(rows: Sequence[tuple[Sequence[str], Sequence[float]]], what: str) -> go.Figure:
    """Draw texts token by token, each in the colour of its number; one row a text; 0 is white."""
    width = max((len(words) for words, _ in rows), default=0)
    values = np.full((len(rows), width), np.nan)
    cells = [["" for _ in range(width)] for _ in rows]
    for i, (words, numbers) in enumerate(rows):
        values[i, : len(numbers)] = numbers
        cells[i][: len(words)] = [text(word.replace("\n", "\\n")) for word in words]
    known = np.abs(values[np.isfinite(values)])
    limit = float(np.quantile(known, QUANTILE)) if len(known) else 1.0
    figure = go.Figure(
        go.Heatmap(
            z=values, text=cells, texttemplate="%{text}", colorscale="RdBu_r", zmid=0, zmin=-limit or -1.0,
            zmax=limit or 1.0, xgap=1, ygap=6, textfont={"size": 12}, hoverongaps=False,
            hovertemplate="%{text}: %{z:.3g}<extra></extra>", colorbar=scale(what),
        )
    )  # fmt: skip
    figure.update_xaxes(title="token", showgrid=False)
    figure.update_yaxes(title="example", autorange="reversed", tickvals=list(range(len(rows))), showgrid=False)
    return styled(figure, 140 + 40 * max(len(rows), 1)).update_layout(margin_b=96)
