"""What all figures share: template, colours that the colour-blind can tell apart, and one look for each edit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from neuronforget.colours import FONT, GREY, OKABE_ITO

MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_MARKS = 2000  # neurons that a figure marks one by one
FEW_MARKS = 300  # of more, the marks are smaller: they must not hide what lies under them
ABOVE = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}
BOTTOM = {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}
BELOW = {**BOTTOM, "itemsizing": "constant", "maxheight": 0.9}

#: How a metric is called on an axis.
METRIC_LABELS = {
    "exact_match": "accuracy (exact match)",
    "token_accuracy": "answer tokens right",
    "probability": "probability of the answer",
    "nll": "loss (nats per answer token)",
    "rank": "worst rank of an answer token",
    "kl_gold": "KL from the gold twin (nats)",
    "kl_untouched": "KL from the untouched model (nats)",
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of one edit."""

    colour: str
    marker: str
    dash: str


def looks(scopes: dict[str, str]) -> dict[str, Look]:
    """Give each edit its look by scope: controls grey, full-model dashed, guards dash-dotted, references black."""
    found: dict[str, Look] = {}
    counts = {"neurons": 0, "full": 0, "control": 0, "guard": 0}
    for name, scope in scopes.items():
        if scope == "reference":
            found[name] = Look("#000000", "x" if name == "untouched" else "star", "solid")
            continue
        i = counts.get(scope, 0)
        counts[scope] = i + 1
        colour = GREY if scope == "control" else OKABE_ITO[i % len(OKABE_ITO)]
        dash = {"full": "dash", "control": "dot", "guard": "dashdot"}.get(scope, "solid")
        turn = i + i // len(MARKERS)  # another pairing of colour and marker in every round
        mark = MARKERS[turn % len(MARKERS)] + {"full": "-open", "guard": "-dot"}.get(scope, "")
        found[name] = Look(colour, mark, dash)
    return found


def scopes_of(rows: Iterable[dict[str, object]]) -> dict[str, str]:
    """Return each edit's scope, in the order of the results."""
    return {str(row["edit"]): str(row["scope"]) for row in rows}


def shown(edit: str, scope: str) -> str:
    """Return an edit's name as tables and figures show it: a guard is called one, lest it be read as an erasure."""
    return f"{edit} (guard)" if scope == "guard" else edit


def label(metric: str) -> str:
    """Return a metric's words for an axis."""
    return METRIC_LABELS.get(metric, metric)


def text(value: object) -> str:
    """Return a name as plotly may show it: it reads some HTML in text, so mark-up in names is escaped."""
    return escape(str(value), quote=False)


def by_depth(layers: int) -> list[str]:
    """Return a colour for each layer, from dark (the first) to light: their order is seen, in grey too."""
    return sample_colorscale("Cividis", [0.75 * i / max(layers - 1, 1) for i in range(layers)])


def spread(count: int, most: int = MOST_MARKS) -> np.ndarray:
    """Return which of so many neurons to mark: all, or at most so many of them, evenly apart."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def marked(kind: str, drawn: int, count: int) -> str:
    """Return what a legend says of marked neurons: their kind, and how many of them are marked if not all."""
    return f"{kind} ({drawn:,} of {count:,} marked)" if drawn < count else kind


def scale(title: str, **more: object) -> dict[str, object]:
    """Return a scale of colours that lies below the figure, where it takes no width from it."""
    size = {"thickness": 10, "lenmode": "pixels", "len": 300, "nticks": 5, "tickangle": 0}
    return {**BOTTOM, **size, "title": {"text": text(title), "side": "right"}, **more}


def styled(figure: go.Figure, height: int = 460) -> go.Figure:
    """Return the figure in the common template."""
    return figure.update_layout(
        template="simple_white",
        height=height,
        font={"family": FONT, "size": 13},
        margin={"l": 64, "r": 16, "t": 24, "b": 56},
        legend={"font": {"size": 12}},
        hoverlabel={"font": {"family": FONT}},
    )
