"""Where the knowledge lies: the map of all neurons, and how fast their scores fall off."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from neuronforget.arguments import checks_kinds
from neuronforget.colours import OKABE_ITO
from neuronforget.errors import InputError
from neuronforget.figures.style import (
    ABOVE,
    DASHES,
    FEW_MARKS,
    MOST_MARKS,
    by_depth,
    marked,
    scale,
    spread,
    styled,
    text,
)
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores

QUANTILE = 0.995  # of the magnitudes, where colours end: one neuron must not bleach the rest
MAX_BINS = 512  # more cells than this share a pixel, which draws something that is not there
MAX_RANKS = 240  # points of a line, evenly apart on the logarithmic axis: more are not seen
NAMED = 12  # layers that a legend names; of more it names every so many


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


@checks_kinds
def attribution_map(
    scores: Scores, neurons: Neurons | None = None, truth: Neurons | None = None, *, quantile: float = QUANTILE
) -> go.Figure:
    """Draw every neuron's score, layer 0 at the bottom; circles are selected neurons, crosses the true ones.

    Colours are symmetric about 0 and cut at the `quantile` of the magnitudes, so that one neuron does not
    bleach the rest. Layers wider than `MAX_BINS` are binned by signed extreme, and the axis says so. Of more than
    `MOST_MARKS` selected neurons so many are marked, evenly apart, and the legend says so.
    """
    if not 0 < quantile <= 1:
        raise InputError(f"quantile is a share of the neurons, above 0 and up to 1; found {quantile}")
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
            colorbar=scale(scores.name),
            hovertemplate="layer %{y}, neuron %{x}: %{z:.4g}<extra></extra>",
        )
    )
    for kind, chosen, symbol, colour in (
        ("selected", neurons, "circle-open", "#000000"),
        ("true neuron", truth, "x-thin", OKABE_ITO[2]),
    ):
        if chosen is not None:
            figure.add_trace(_marks(kind, chosen, size, symbol, colour, scores.own))
    binning = f", {size} to a cell:<br>the largest magnitude shows" if size > 1 else ""  # short lines for a phone
    each = f" ({scores.own} of each expert)" if scores.own else ""
    figure.update_xaxes(title=f"neuron{each}{binning}", range=[-size / 2, (cells.shape[1] - 0.5) * size])
    figure.update_yaxes(title="layer", type="category", range=[-0.5, len(cells) - 0.5])
    figure.update_layout(legend=ABOVE)
    styled(figure, 180 + 44 * len(values) if len(values) < 12 else 100 + 22 * len(values))
    return figure.update_layout(margin_b=96)


@checks_kinds
def rank_profile(scores: Scores, truth: Neurons | None = None) -> go.Figure:
    """Draw the scores from the end that has to do with forget, one line a layer; crosses are true neurons.

    The axis of ranks is logarithmic, and so are the ranks that are drawn. Deeper layers are lighter.
    Of very many true neurons some are marked, evenly apart, and the legend says how many.
    """
    figure, mask = go.Figure(), truth.mask().numpy() if truth is not None else None
    width = scores.values.shape[1]
    ranks = np.unique(np.geomspace(1, width, MAX_RANKS).round().astype(int))
    every = -(-len(scores.layers) // NAMED)
    drawn = 0
    for i, (layer, colour) in enumerate(zip(scores.layers, by_depth(len(scores.layers)), strict=True)):
        row = scores.values[i].numpy()
        order = np.argsort(-scores.ranked[i].numpy(), kind="stable")
        own = {"name": f"layer {layer}", "legendgroup": f"layer {layer}"}
        line = {"color": colour, "width": 1.5, "dash": DASHES[i % len(DASHES)]}
        falling = go.Scatter(
            x=ranks, y=row[order[ranks - 1]], mode="lines", line=line, showlegend=i % every == 0, **own
        )
        figure.add_trace(falling)
        if mask is not None:
            hit = np.flatnonzero(mask[i][order])
            hit = hit[spread(len(hit), MOST_MARKS // len(scores.layers))]
            drawn += len(hit)
            marker = {"symbol": "x-thin", "size": 7, "line": {"color": colour, "width": 1.5}}
            crosses = go.Scatter(x=hit + 1, y=row[order[hit]], mode="markers", marker=marker, showlegend=False, **own)
            figure.add_trace(crosses)
    if mask is not None:
        said = marked("true neuron", drawn, int(mask.sum()))
        marker = {"symbol": "x-thin", "size": 7, "line": {"color": "#000000", "width": 1.5}}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=said))
    figure.update_xaxes(title="rank within the layer", type="log", dtick=1)
    figure.update_yaxes(title=text(scores.name))
    return styled(figure, 420).update_layout(legend=ABOVE)


def _marks(kind: str, chosen: Neurons, size: int, symbol: str, colour: str, own: int) -> go.Scatter:
    every = sorted(chosen.members)
    members = [every[i] for i in spread(len(every))]
    named = "expert %{customdata[0]}, neuron %{customdata[1]}" if own else "neuron %{customdata}"
    size_of_mark = 6 if kind != "selected" or len(members) > FEW_MARKS else 9
    return go.Scatter(
        x=[j // size * size for _, j in members],
        y=[str(layer) for layer, _ in members],
        mode="markers",
        name=marked(kind, len(members), len(every)),
        marker={
            "symbol": symbol,
            "size": size_of_mark,
            "color": colour,
            "line": {"width": 1.4 if len(members) <= FEW_MARKS else 0.8, "color": colour},
        },
        customdata=[divmod(j, own) if own else j for _, j in members],
        hovertemplate=f"{kind}: layer %{{y}}, {named}<extra></extra>",
    )
