"""By layer: where the selection lies beside random ones, and where edits moved the activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from neuronforget.arguments import checks_kinds
from neuronforget.colours import GREY, OKABE_ITO
from neuronforget.errors import InputError
from neuronforget.figures.style import ABOVE, scale, styled, text
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores


@checks_kinds
def layer_share(neurons: Neurons, controls: Sequence[Neurons] = (), truth: Neurons | None = None) -> go.Figure:
    """Draw how many neurons of each layer are selected and, where they are known, how many of these are true.

    `controls` show how many true neurons equally large random sets hold (their mean, and the range as whiskers).
    """
    layers = [str(layer) for layer in neurons.layers]
    figure = go.Figure(go.Bar(x=_counts(neurons), y=layers, orientation="h", name="selected", marker_color="#c9d8e8"))
    if truth is not None:
        figure.add_trace(_bar(_counts(truth), layers, "true neurons", OKABE_ITO[4]))
        figure.add_trace(_bar(_counts(neurons & truth), layers, "selected and true", OKABE_ITO[0]))
        if controls:
            held = np.array([_counts(control & truth) for control in controls])
            many = f"{len(controls)} controls (mean, range)" if len(controls) > 1 else "the control"
            bar = _bar(held.mean(0), layers, f"true in {many}", GREY)
            bar.marker.pattern.shape = "/"
            if len(controls) > 1:
                bar.error_x = {"array": held.max(0) - held.mean(0), "arrayminus": held.mean(0) - held.min(0)}
            figure.add_trace(bar)
    elif controls:
        figure.add_trace(_bar(np.mean([_counts(c) for c in controls], axis=0), layers, "random controls", GREY))
    figure.update_xaxes(title="neurons")
    figure.update_yaxes(title="layer", type="category")
    figure.update_layout(barmode="group", legend=ABOVE)
    return styled(figure, 140 + 60 * len(layers) if len(layers) < 12 else 80 + 30 * len(layers))


@checks_kinds
def by_expert(scores: Scores) -> go.Figure:
    """Draw the sum of the scores of each expert's neurons, layer 0 at the bottom; colours are symmetric about 0.

    Raises InputError for scores that do not say which neurons are an expert's (those of another model).
    """
    if not scores.own:
        raise InputError("these scores are of no opened mixture of experts: there is nothing to draw by expert")
    sums = scores.values.unflatten(1, (-1, scores.own)).sum(2).numpy()
    limit = float(np.abs(sums).max()) or 1.0
    cells = go.Heatmap(
        z=sums, x=list(range(sums.shape[1])), y=[str(layer) for layer in scores.layers], colorscale="RdBu_r",
        zmin=-limit, zmax=limit, colorbar=scale(scores.name),
        hovertemplate="layer %{y}, expert %{x}: %{z:.4g}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(cells)
    figure.update_xaxes(title="expert")
    figure.update_yaxes(title="layer", type="category", range=[-0.5, len(sums) - 0.5])
    styled(figure, 180 + 44 * len(sums) if len(sums) < 12 else 100 + 22 * len(sums))
    return figure.update_layout(margin_b=96)


def activation_shift(shifts: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[int]) -> go.Figure:
    """Draw the RMS change of the activations by layer, on forget and on retain, one small picture for each edit.

    All share one scale. An edit that is about the forget corpus moves forget and hardly moves retain.
    """
    columns = 4
    rows = max(-(-len(shifts) // columns), 1)
    titles = [text(name).replace("@", "<br>@") for name in shifts]
    figure = make_subplots(rows, columns, subplot_titles=titles, shared_xaxes="all", shared_yaxes=True)
    names = [str(layer) for layer in layers]
    for i, shift in enumerate(shifts.values()):
        where = {"row": i // columns + 1, "col": i % columns + 1}
        for kind, colour, symbol in (("forget", OKABE_ITO[1], "circle"), ("retain", OKABE_ITO[0], "square-open")):
            figure.add_trace(
                go.Scatter(
                    x=list(shift[kind]),
                    y=names,
                    mode="lines+markers",
                    name=kind,
                    marker={"symbol": symbol, "color": colour},
                    line={"color": colour, "dash": "solid" if kind == "forget" else "dash"},
                    legendgroup=kind,
                    showlegend=i == 0,
                    hovertemplate=f"{kind}, layer %{{y}}: %{{x:.3g}}<extra></extra>",
                ),
                **where,
            )
    figure.update_xaxes(rangemode="tozero", nticks=4)
    figure.update_yaxes(type="category")
    figure.update_yaxes(title="layer", col=1)
    for column in range(1, columns + 1):
        row = rows - (len(shifts) <= (rows - 1) * columns + column - 1)  # the lowest picture of the column
        figure.update_xaxes(title="RMS change", showticklabels=True, row=max(row, 1), col=column)
    figure.update_annotations(font_size=12)
    styled(figure, 90 + (170 if len(layers) < 12 else 240) * rows)
    return figure.update_layout(legend={**ABOVE, "y": 1, "yref": "container", "yanchor": "top"}, margin={"t": 64})


def _counts(neurons: Neurons) -> np.ndarray:
    return neurons.mask().sum(1).numpy()


def _bar(counts: Sequence[float] | np.ndarray, layers: list[str], name: str, colour: str) -> go.Bar:
    return go.Bar(x=list(counts), y=layers, orientation="h", name=name, marker_color=colour)
