"""Edits side by side: the frontier of forgetting against damage, and each edit's values with their intervals."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.figures.style import BELOW, label, looks, scopes_of, shown, styled, text
from neuronforget.results import Results


@checks_kinds
def frontier(results: Results, metric: str = "exact_match", retain_metric: str = "exact_match") -> go.Figure:
    """Draw forget against retain over strengths, a line for each edit from the untouched model to its full strength.

    The large marker is strength 1, with its interval. Down is better, until the gold twin's dotted line: a
    model that never knew does not answer less than that. `retain_metric="nll"` draws the rise of the retain
    loss, "kl_untouched" the KL from the untouched model, on a logarithmic axis (none at its left end), which tells
    small damages apart.
    """
    scopes = scopes_of(results.rows)
    wide = retain_metric in DAMAGES
    start = results.value("untouched", "retain", retain_metric) if wide else 0.0
    look, figure = looks(scopes), go.Figure()
    lines = {n: [_points(results, n, *of) for of in (("retain", retain_metric), ("forget", metric))] for n in scopes}
    for name, scope in scopes.items():
        x, y = lines[name]
        if not (strengths := sorted(set(x) & set(y))):
            continue
        own, last = look[name], strengths[-1]
        reference = scope == "reference"
        figure.add_trace(
            go.Scatter(
                x=[max(x[s]["value"] - start, LEAST) if wide else x[s]["value"] for s in strengths],
                y=[y[s]["value"] for s in strengths],
                mode="markers" if reference else "lines+markers",
                name=text(shown(name, scope)),
                legendgroup=scope,
                legendgrouptitle={"text": GROUPS[scope]},
                line={"color": own.colour, "dash": own.dash, "width": 1.8 if scope != "control" else 1.1},
                marker={
                    "symbol": own.marker,
                    "color": own.colour,
                    "size": [12 if reference or s == last else 5 for s in strengths],
                },
                error_x=None if wide else _whiskers([x[s] for s in strengths], own.colour),
                error_y=_whiskers([y[s] for s in strengths], own.colour),
                customdata=strengths,
                hovertemplate=f"{text(name)}, strength %{{customdata:.2f}}: retain %{{x:.3f}}, forget %{{y:.3f}}"
                "<extra></extra>",
            )
        )
    if "gold" in scopes and (floor := lines["gold"][1].get(0.0)):
        figure.add_hline(floor["value"], line={"dash": "dot", "width": 1})
    figure.update_xaxes(title=f"retain: {label(retain_metric)}")
    if wide:
        figure.update_xaxes(title=DAMAGES[retain_metric], type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title=f"forget: {label(metric)}")
    return styled(figure, 640).update_layout(legend=BELOW)


LEAST = 1e-4  # nats: the left end of a logarithmic axis of damage
#: What is drawn on such an axis.
DAMAGES = {
    "nll": "rise of the retain loss (nats/token)",
    "kl_untouched": "KL on retain (nats/token)",
}
GROUPS = {"reference": "references", "neurons": "on neurons", "full": "whole model", "guard": "guards (no erasure)"}
GROUPS |= {"control": "controls"}


@checks_kinds
def dots(results: Results, metric: str = "exact_match", point: str = "full") -> go.Figure:
    """Draw each edit's value on every corpus with its interval; the dotted line is the gold twin's.

    Raises InputError for a metric that was not measured at the point.
    """
    scopes = scopes_of(results.rows)
    rows = [r for r in results.at(point) if r["metric"] == metric]
    if not rows:
        raise InputError(f"{metric!r} was not measured at {point!r}")
    corpora = list(dict.fromkeys(r["corpus"] for r in rows))
    order = sorted(scopes, key=lambda name: (list(GROUPS).index(scopes[name]), _rank(rows, name)), reverse=True)
    look = looks(scopes)
    figure = make_subplots(1, len(corpora), shared_yaxes=True, subplot_titles=corpora, horizontal_spacing=0.03)
    for column, corpus in enumerate(corpora, start=1):
        by_name = {r["edit"]: r for r in rows if r["corpus"] == corpus}
        names = [name for name in order if name in by_name]
        cells = [by_name[name] for name in names]
        figure.add_trace(
            go.Scatter(
                x=[c["value"] for c in cells],
                y=[text(shown(name, scopes[name])) for name in names],
                mode="markers",
                showlegend=False,
                marker={
                    "color": [look[n].colour for n in names],
                    "symbol": [look[n].marker for n in names],
                    "size": 9,
                },
                error_x=_whiskers(cells, "#777777"),
                hovertemplate="%{y}: %{x:.3f}<extra></extra>",
            ),
            row=1,
            col=column,
        )
        if "gold" in by_name:
            figure.add_vline(by_name["gold"]["value"], line={"dash": "dot", "width": 1}, row=1, col=column)
    figure.update_xaxes(title=label(metric), title_font_size=12, col=(len(corpora) + 1) // 2)
    figure.update_yaxes(type="category", tickfont_size=12)
    styled(figure, 130 + 22 * len(order))
    return figure.update_annotations(font_size=13).update_layout(margin={"t": 40})


def _points(results: Results, name: str, corpus: str, metric: str) -> dict[float, dict[str, Any]]:
    """Rows of one edit by strength, if there are any; every edit starts at the untouched model (strength 0)."""
    rows = [r for r in results.rows if (r["corpus"], r["metric"]) == (corpus, metric)]
    own = {r["strength"]: r for r in rows if r["edit"] == name}
    start = next((r for r in rows if r["edit"] == "untouched"), None)
    return own if start is None or own.keys() <= {0.0} else {0.0: start, **own}


def _whiskers(rows: list[dict[str, Any]], colour: str) -> dict[str, Any]:
    """Interval of the last point (all of them would hide the lines), or of all in a column of dots."""
    last = len(rows) - 1
    shown = [i == last or colour == "#777777" for i in range(len(rows))]
    up = [r["high"] - r["value"] if s else 0 for r, s in zip(rows, shown, strict=True)]
    down = [r["value"] - r["low"] if s else 0 for r, s in zip(rows, shown, strict=True)]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3, "color": colour}


def _rank(rows: list[dict[str, Any]], name: str) -> float:
    return next((r["value"] for r in rows if r["edit"] == name and r["corpus"] == "forget"), 0.0)
