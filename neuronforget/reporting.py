"""report(): results, and what was selected and why, as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from neuronforget import figures
from neuronforget.auditing import Audit
from neuronforget.neurons import Neurons
from neuronforget.results import MATCHED, Results
from neuronforget.runs import whole_file
from neuronforget.scores import Scores
from neuronforget.tables import Table, flat, interval, made_table, results_table

#: What forgetting is drawn against -> title, how to read it.
FRONTIERS = {
    "nll": (
        "Frontier: forgetting against damage",
        "Lower and further left is better: less is answered, for a smaller rise of the retain loss (at the left end: "
        "none, or a fall).",
    ),
    "kl_untouched": (
        "Frontier: forgetting against change",
        "Lower and further left is better: less is answered, for a smaller KL from the untouched model on retain.",
    ),
    "exact_match": ("Frontier in accuracy", "Lower and further right is better."),
}
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["sendChartToCloud"]}


@dataclass(frozen=True)
class Picture:
    """A figure with its title, what it shows in words, and its numbers as a table."""

    title: str
    caption: str
    figure: go.Figure
    table: Table

    @property
    def html(self) -> str:
        """The figure's own mark-up, without plotly.js; equal for equal figures."""
        name = "figure-" + "".join(c if c.isalnum() else "-" for c in self.title.lower())
        return self.figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, div_id=name)


def report(
    results: Results,
    path: str | Path,
    *,
    scores: Scores | None = None,
    neurons: Neurons | None = None,
    truth: Neurons | None = None,
    controls: Sequence[Neurons] = (),
    shifts: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    layers: Sequence[int] | None = None,
    findings: Sequence[str] = (),
    audits: Mapping[str, Audit] | None = None,
    title: str = "What was forgotten, and what was damaged",
) -> Path:
    """Write the report; sections whose inputs are missing are left out. Raises InputError if `path` is unwritable."""
    pictures = _comparison_pictures(results) if _measured(results) >= {"exact_match", "nll"} else []
    if scores is not None:
        pictures += _map_pictures(scores, neurons, truth, controls)
    if shifts:
        pictures.append(_shift_picture(shifts, layers or (scores.layers if scores else ())))
    return page(
        path,
        title=title,
        findings=findings,
        heading="Forget and retain, with 95% intervals",
        tables=[t for t in (results_table(results, p) for p in (*MATCHED, "full")) if t.rows],
        pictures=pictures,
        info={key: value for key, value in results.info.items() if key != "edits"},
        made=made_table(results.info.get("edits", {})),
        audits=[(name, f"audits/{name.replace(' ', '-')}/audit.html", a.words) for name, a in (audits or {}).items()],
        nan=sum(row["nan"] for row in results.rows if row["point"] == "full"),
    )


def page(
    path: str | Path, *, info: Mapping[str, Any], made: Table | None = None, nan: int = 0, **sections: Any
) -> Path:
    """Write one page: `title`, `findings`, `tables` under a `heading`, `pictures`, and how it was made (`info`)."""
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    template = Environment(loader=PackageLoader("neuronforget", "."), autoescape=True).get_template("report.html.jinja")
    body = template.render(info=flat(dict(info)), made=made, nan=nan, plotly=get_plotlyjs(), **sections)
    with whole_file(path) as scratch:
        scratch.write_text(body, encoding="utf-8")
    return Path(path)


def _measured(results: Results) -> set[str]:
    return {row["metric"] for row in results.rows}


def _comparison_pictures(results: Results) -> list[Picture]:
    accuracy = results_table(results, "full", ("exact_match",))
    sweep = [
        (r["edit"], f"{r['strength']:.2f}", r["corpus"], interval(r))
        for r in results.rows
        if r["metric"] == "exact_match" and r["corpus"] in ("forget", "retain")
    ]
    about = (
        "Each line leads from the untouched model to an edit's full strength (large marker, 95% interval). "
        "Solid: on neurons; dashed: whole model; dash-dotted: guards, which change no weight; grey: controls. "
        "Dotted line: the gold twin, where there is one. "
    )
    columns = ("edit", "strength", "corpus", "accuracy")
    sweep_table = Table("Accuracy over strengths", columns, tuple(sweep))
    return [
        *(
            Picture(title, about + words, figures.frontier(results, retain_metric=metric), sweep_table)
            for metric, (title, words) in FRONTIERS.items()
            if metric in _measured(results)
        ),
        Picture(
            "Every edit at full strength",
            "Accuracy with 95% bootstrap intervals over examples; unseen: phrasings that the erasure did not see. "
            "Dotted line: the gold twin.",
            figures.dots(results),
            accuracy,
        ),
    ]


def _map_pictures(
    scores: Scores, neurons: Neurons | None, truth: Neurons | None, controls: Sequence[Neurons]
) -> list[Picture]:
    top = scores.ranked.flatten().sort(descending=True, stable=True).indices[:40].tolist()
    width = scores.values.shape[1]
    best = [(scores.layers[i // width], i % width) for i in top]
    rows = [
        (str(layer), str(j), f"{scores.values[scores.layers.index(layer), j]:.4g}",
         _mark(neurons, (layer, j)), _mark(truth, (layer, j)))
        for layer, j in best
    ]  # fmt: skip
    table = Table(
        "The forty scores that have most to do with forget",
        ("layer", "neuron", scores.name, "selected", "true"),
        tuple(rows),
    )
    found = [
        Picture("Map of the neurons", _map_caption(scores), figures.attribution_map(scores, neurons, truth), table),
        Picture(
            "Rank profile",
            "Scores in falling order, one line a layer; a steep start means that few neurons carry most of it. "
            "Crosses are true neurons, where they are known.",
            figures.rank_profile(scores, truth),
            table,
        ),
    ]
    if neurons is not None:
        counts = [
            (
                str(layer),
                *(str(int(s.mask()[i].sum())) for s in (neurons, *((truth, neurons & truth) if truth else ()))),
            )
            for i, layer in enumerate(neurons.layers)
        ]
        columns = ("layer", "selected", *(("true", "selected and true") if truth else ()))
        caption = "Neurons selected in each layer, and how many of them are right where that is known."
        found.append(
            Picture(
                "The selection by layer",
                caption,
                figures.layer_share(neurons, controls, truth),
                Table("Neurons by layer", columns, tuple(counts)),
            )
        )
    return found


def _map_caption(scores: Scores) -> str:
    limit = float(np.quantile(scores.values.abs().numpy(), figures.QUANTILE))
    sign = scores.sign[0].upper() + scores.sign[1:]
    return f"{sign}. Colours end at ±{limit:.3g}, the {figures.QUANTILE:.1%} quantile of the magnitudes."


def _shift_picture(shifts: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[int]) -> Picture:
    rows = [
        (name, kind, *(f"{value:.3g}" for value in values))
        for name, shift in shifts.items()
        for kind, values in shift.items()
    ]
    return Picture(
        "Where the activations moved",
        "Root mean square change of the neurons' activations, by layer. An edit about the forget corpus moves forget "
        "and hardly moves retain.",
        figures.activation_shift(shifts, layers),
        Table("RMS change", ("edit", "corpus", *(f"layer {layer}" for layer in layers)), tuple(rows)),
    )


def _mark(neurons: Neurons | None, neuron: tuple[int, int]) -> str:
    return "" if neurons is None else "yes" if neuron in neurons else "no"
