"""Where the knowledge lies: the map of all neurons, and how fast their scores fall off."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from neuronforget.figures.style import OKABE_ITO, styled, text
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores

QUANTILE = 0.995  # of the magnitudes, where colours end: one neuron must not bleach the rest
MAX_BINS = 512  # more cells than this share a pixel, which draws something that is not there


def binned(values: Float[np.ndarray, "layer neuron"], bins: int = MAX_BINS) -> tuple[np.ndarray, int]:
    """Return (values by bin, neurons in a bin): each bin shows its value of largest magnitude, with its sign."""
    width = values.shape[1]
    size = -(-width // bins)
    if size == 1:
        return values, 1
    padded = np.zeros((len(values), -(-width // size) * size))
    padded[:, :width] = values
    groups = padded.reshape(len(values), -1, size)
    pick = np.abs(groups).argmax(-1)[..., None]
    return np.take_along_axis(groups, pick, -1)[..., 0], size


def attribution_map(
    scores: Scores, neurons: Neurons | None = None, truth: Neurons | None = None, *, quantile: float = QUANTILE
) -> go.Figure:
    """Draw every neuron's score, layer 0 at the bottom; circles are selected neurons, crosses the true ones.

    Colours are symmetric about 0 and cut at the `quantile` of the magnitudes, so that one neuron does not
    bleach the rest. Layers wider than `MAX_BINS` are binned by signed extreme, and the axis says so.
    """
    values = scores.values.numpy()
    cells, size = binned(values)
    limit = float(np.quantile(np.abs(values), quantile)) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=cells,
            x=np.arange(cells.shape[1]) * size,
            y=[str(layer) for layer in scores.layers],
            colorscale="RdBu_r",
            zmid=0,
            zmin=-limit,
            zmax=limit,
            colorbar={"title": {"text": text(scores.name), "side": "top"}, "thickness": 14},
            hovertemplate="layer %{y}, neuron %{x}: %{z:.4g}<extra></extra>",
        )
    )
    for kind, chosen, symbol, colour in (
        ("selected", neurons, "circle-open", "#000000"),
        ("true neuron", truth, "x-thin", OKABE_ITO[2]),
    ):
        if chosen is not None:
            figure.add_trace(_marks(kind, chosen, size, symbol, colour))
    binning = f", {size} to a cell, which shows the one of largest magnitude" if size > 1 else ""
    figure.update_xaxes(title=f"neuron{binning}")
    figure.update_yaxes(title="layer", type="category")
    figure.update_layout(legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"})
    return styled(figure, 140 + 44 * len(values) if len(values) < 12 else 60 + 22 * len(values))


def rank_profile(scores: Scores, truth: Neurons | None = None) -> go.Figure:
    """Draw the scores from the end that has to do with forget, one line a layer; crosses are true neurons.

    The axis of ranks is logarithmic.
    """
    figure, mask = go.Figure(), truth.mask().numpy() if truth is not None else None
    for i, layer in enumerate(scores.layers):
        row = scores.values[i].numpy()
        order = np.argsort(-scores.ranked[i].numpy(), kind="stable")
        ranks = np.arange(1, len(row) + 1)
        colour = OKABE_ITO[i % len(OKABE_ITO)]
        name = f"layer {layer}"
        line = {"color": colour, "width": 1.5}
        figure.add_trace(go.Scatter(x=ranks, y=row[order], mode="lines", name=name, line=line, legendgroup=name))
        if mask is not None:
            hit = mask[i][order]
            marker = {"symbol": "x-thin", "size": 7, "line": {"color": colour, "width": 1.5}}
            figure.add_trace(
                go.Scatter(
                    x=ranks[hit],
                    y=row[order][hit],
                    mode="markers",
                    name="true neurons",
                    marker=marker,
                    legendgroup=name,
                    showlegend=False,
                )
            )
    figure.update_xaxes(title="rank within the layer", type="log", dtick=1)
    figure.update_yaxes(title=text(scores.name))
    return styled(figure, 400)


def _marks(kind: str, chosen: Neurons, size: int, symbol: str, colour: str) -> go.Scatter:
    members = sorted(chosen.members)
    return go.Scatter(
        x=[j // size * size for _, j in members],
        y=[str(layer) for layer, _ in members],
        mode="markers",
        name=kind,
        marker={
            "symbol": symbol,
            "size": 9 if kind == "selected" else 6,
            "color": colour,
            "line": {"width": 1.4, "color": colour},
        },
        customdata=[j for _, j in members],
        hovertemplate=f"{kind}: layer %{{y}}, neuron %{{customdata}}<extra></extra>",
    )
