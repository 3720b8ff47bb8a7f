"""The pictures of a report: a figure each, with its title, what it shows in words, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
import plotly.graph_objects as go

from neuronforget import figures
from neuronforget.figures.comparison import DAMAGES
from neuronforget.figures.style import label, scopes_of
from neuronforget.findings.closeups import Closeups
from neuronforget.findings.readings import drawn_in, told_in
from neuronforget.neurons import Neurons
from neuronforget.reporting.tables import Table, interval, results_table
from neuronforget.results import Results

BOTH = "Lower and further right is better: less of forget is answered, and more of retain."
#: What forgetting is drawn against -> title, how to read it.
FRONTIERS = {
    "nll": (
        "Frontier: forgetting against damage",
        "Lower and further left is better: less of forget is answered, and the retain loss rises less (at the left "
        "end, not at all, or it falls).",
    ),
    "kl_untouched": (
        "Frontier: forgetting against change",
        "Lower and further left is better: less of forget is answered, and the predictions on retain change less "
        "(a smaller KL from the untouched model).",
    ),
    "exact_match": ("Frontier in accuracy", BOTH),
    "probability": ("Frontier in probability", BOTH),
}
LAST = 24  # tokens of a text that are drawn


@dataclass(frozen=True)
class Picture:
    """A figure with its title, what it shows in words, and its numbers as a table; a `wide` one scrolls on a phone."""

    title: str
    caption: str
    figure: go.Figure
    table: Table
    wide: bool = False

    @property
    def name(self) -> str:
        """The picture's anchor on a page."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())

    @property
    def json(self) -> str:
        """The figure for plotly.js, with nothing in it that HTML would read; equal for equal figures."""
        return self.figure.to_json()


def measured(results: Results) -> set[str]:
    """Return the names of all metrics in the results."""
    return {row["metric"] for row in results.rows}


def comparison_pictures(results: Results) -> list[Picture]:
    """Return the frontiers, and every edit at full strength: those whose numbers are all there."""
    told, drawn = told_in(results), drawn_in(results)
    if drawn is None:
        return []
    about = (
        "Each line leads from the untouched model to an edit at full strength (large marker with its 95% interval). "
        "Solid lines are edits of neurons, dashed lines edits of the whole model, dash-dotted lines guards, which "
        "change no weight. Controls are grey. The horizontal dotted line is the gold twin, if there is one. "
    )
    return [
        *(
            Picture(title, about + words, figures.frontier(results, drawn, metric), _sweep(results, drawn, metric))
            for metric, (title, words) in FRONTIERS.items()
            if ("untouched", "retain", metric) in told and metric in (drawn, "nll", "kl_untouched")
        ),
        Picture(
            "Every edit at full strength",
            f"{'Accuracy' if drawn == 'exact_match' else 'Probability of the answer'} with 95% intervals. "
            "Unseen means phrasings that the erasure did not see. "
            "The dotted line is the gold twin, if there is one.",
            figures.dots(results, drawn),
            results_table(results, "full", (drawn,)),
            wide=True,
        ),
    ]


def _sweep(results: Results, drawn: str, metric: str) -> Table:
    """A frontier's points: what is left of forget, and what is drawn of retain, of every edit at every strength."""
    start = results.value("untouched", "retain", metric) if metric == "nll" else None
    cells = {
        (r["edit"], r["strength"], r["corpus"], r["metric"]): interval(r)
        if start is None or (r["corpus"], r["metric"]) != ("retain", metric) or isnan(r["value"])
        else f"{r['value'] - start:+.4f}"
        for r in results.rows
    }
    order = {edit: i for i, edit in enumerate(scopes_of(results.rows))}
    places = sorted({(edit, strength) for edit, strength, *_ in cells}, key=lambda place: (order[place[0]], place[1]))
    rows = []
    for edit, strength in places:
        pair = (edit, strength, "forget", drawn), (edit, strength, "retain", metric)
        if all(key in cells for key in pair):
            rows.append((edit, f"{strength:.2f}", *(cells[key] for key in pair)))
    retain = DAMAGES["nll"] if start is not None else f"retain: {label(metric)}"
    columns = ("edit", "strength", f"forget: {label(drawn)}", retain)
    return Table("The points of the lines", columns, tuple(rows))


def shift_picture(shifts: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[int]) -> Picture:
    """Return where each edit moved the activations, by layer."""
    rows = [
        (name, kind, *(f"{value:.3g}" for value in values))
        for name, shift in shifts.items()
        for kind, values in shift.items()
    ]
    return Picture(
        "Where the activations moved",
        "Root mean square (RMS) change of the neurons' activations, by layer. An edit that acts on forget alone moves "
        "them on forget and hardly on retain.",
        figures.activation_shift(shifts, layers),
        Table("RMS change", ("edit", "corpus", *(f"layer {layer}" for layer in layers)), tuple(rows)),
        wide=True,
    )


def closeup_pictures(found: Closeups, neurons: Neurons | None) -> list[Picture]:
    """Return forget against retain, neuron by neuron, and where in texts the selection acts."""
    forget, retain = found.recorded["forget"], found.recorded["retain"]
    shares = [("neurons", f"{forget.size:,}"), ("more on forget than on retain", f"{(forget > retain).mean():.1%}")]
    if neurons is not None:
        mask = neurons.mask().numpy()
        shares.append(("of the selected ones", f"{(forget > retain)[mask].mean():.1%}"))
    texts = tuple(
        (str(i), " ".join(f"{word!r} {value:+.3f}" for word, value in zip(text.tokens, text.values, strict=True)))
        for i, text in enumerate(found.texts)
    )
    return [
        Picture(
            "Forget against retain",
            "Every neuron by its mean |a g| (activation times gradient) on both corpora. A neuron below the dashed "
            "line has more to do with forget. Circles are selected neurons.",
            figures.density(forget, retain, "mean |a g|", neurons),
            Table("Neurons below the line", ("what", "share"), tuple(shares)),
        ),
        Picture(
            "Where the selection acts",
            "Forget examples, token by token: how much the answer's loss (nats per token) would rise, to first order, "
            "if the selected neurons were silent at this token. Red: they support the answer. Blue: they work against "
            f"it. Of a long text, the last {LAST} tokens are drawn.",
            figures.tokens([(text.tokens[-LAST:], text.values[-LAST:]) for text in found.texts], "nats"),
            Table("By token", ("example", "tokens"), texts),
            wide=True,
        ),
    ]


def moved_pictures(shifts: Mapping[str, Mapping[str, np.ndarray]], layers: Sequence[int]) -> list[Picture]:
    """Return how far each neuron moved, a picture an edit."""
    made = []
    for name, shift in shifts.items():
        rows = tuple(
            (f"layer {layer}", *(f"{value:.3g}" for kind in shift for value in _quartiles(shift[kind][i])))
            for i, layer in enumerate(layers)
        )
        columns = ("layer", *(f"{kind}, {what}" for kind in shift for what in ("still", "median", "largest")))
        words = "RMS change of each neuron's activation. Neurons that stayed still are counted in the table only."
        picture = figures.ridgelines(shift, layers)
        made.append(Picture(f"How far each neuron moved: {name}", words, picture, Table("RMS change", columns, rows)))
    return made


def _quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """How many neurons did not move, and the median and the largest shift."""
    return float((values == 0).sum()), float(np.median(values)), float(values.max())
