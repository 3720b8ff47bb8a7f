"""audit_report(): an audit as one HTML file: the verdict in words, every check, and the curves behind them."""

from __future__ import annotations

from pathlib import Path

from neuronforget import figures
from neuronforget.auditing import Audit, Check
from neuronforget.auditing.relearning import EVERY
from neuronforget.pictures import Picture
from neuronforget.reporting import page
from neuronforget.tables import Table

#: Curve -> title, caption, axes.
DRAWN = {
    "taught again": (
        "Relearning: the facts that are taught again",
        "The whole model is taught half of the facts again. What was only hidden comes back sooner than in a model "
        "that never knew.",
        f"looks, one every {EVERY} steps",
        "answered",
    ),
    "siblings": (
        "Relearning: their siblings, of which nothing is taught",
        "The other half of the facts, meanwhile. What never was there cannot come back.",
        f"looks, one every {EVERY} steps",
        "answered",
    ),
    "lens": (
        "Read off every block",
        "Probability of the answer by the model's own last norm and unembedding, from each block's states. High below "
        "and low at the end: the output alone is suppressed.",
        "block",
        "probability of the answer",
    ),
    "patching, states": (
        "The edited model's states put into the untouched one",
        "How much less likely the untouched model's answers get (nats a token) with a model's states at one block. "
        "Where the gold twin takes away more than the edited model, knowledge is still there.",
        "block",
        "nats lost",
    ),
    "patching, neurons": (
        "The edited model's neurons put into the untouched one",
        "The same with the activations of one layer's neurons alone.",
        "layer",
        "nats lost",
    ),
}


def audit_report(audit: Audit, path: str | Path, *, title: str = "Erased, or only hidden?") -> Path:
    """Write the page. Raises InputError if `path` is unwritable."""
    made = figures.checks(audit.checks)
    caption = (
        "Each line leads from the reference, a model that never knew or what stands in for it, to the untouched model. "
        "An erased fact lies at the reference. Grey: interval of the difference to it, at 95% over all checks."
    )
    pictures = [Picture("Every check", caption, made, _table(audit.checks))]
    for name, values in audit.curves.items():
        if name in DRAWN:
            heading, words, across, up = DRAWN[name]
            rows = tuple((who, *(f"{v:.3f}" for v in curve)) for who, curve in values.items())
            columns = ("model", *map(str, range(max(map(len, values.values())))))
            table = Table(f"{heading}, by {across}", columns, rows)
            pictures.append(Picture(heading, words, figures.curves(values, across, up), table))
    return page(
        path, title=title, findings=audit.findings, heading="Every check, with intervals at 95% over all of them",
        tables=[_table(audit.checks), *_neurons(audit)], pictures=pictures, info=audit.results.info,
        nan=audit.damage["nan"],
    )  # fmt: skip


def _table(checks: tuple[Check, ...]) -> Table:
    rows = tuple(
        (f"{c.probe} ({c.corpus})", c.outcome, c.metric, f"{c.start:.3f}", f"{c.value:.3f}", f"{c.reference:.3f}",
         c.against, f"{c.value - c.reference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]", f"{c.n}, over {c.over}")
        for c in checks
    )  # fmt: skip
    columns = ("check", "outcome", "metric", "untouched", "edited", "reference", "which is", "difference", "examples")
    return Table("What each probe found", columns, rows)


def _neurons(audit: Audit) -> list[Table]:
    shown = {k: v for k, v in audit.neurons.items() if isinstance(v, int | float)}
    units = audit.neurons.get("units", {})
    rows = [(name, f"{value:.4g}") for name, value in shown.items()]
    rows += [(f"units, {who}", what) for who, what in units.items()]
    found = [Table("What the edit did to neurons (contributions: logits a token)", ("", "value"), tuple(rows))]
    for name in ("lost most", "suppress most"):
        best = tuple((str(i), str(j), f"{value:.4g}") for i, j, value in audit.neurons.get(name, []))
        if best:
            found.append(Table(f"Neurons that {name}", ("layer", "neuron", "logits"), best))
    return found
