"""Numbers as cells of text: the tables of a report and of its pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuronforget.errors import InputError
from neuronforget.figures.style import METRIC_LABELS, scopes_of, shown
from neuronforget.findings.readings import drawn_in
from neuronforget.results import MATCHED, Results


@dataclass(frozen=True)
class Table:
    """Cells as text, first column the row's name."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def results_table(results: Results, point: str, metrics: Sequence[str] | None = None) -> Table:
    """Return every edit's values with intervals at one point of its frontier, references first.

    Without `metrics`: exact match, probability (this first where it is the measure of the findings), KL from gold and
    from the untouched model, and any that is not of this package. Only the first is told of unseen phrasings too.
    """
    rows = results.at(point)
    measured = list(dict.fromkeys(r["metric"] for r in rows))
    own = [m for m in measured if m not in METRIC_LABELS]
    if metrics is None:
        first = drawn_in(results) or "exact_match"
        metrics = tuple(dict.fromkeys((first, "exact_match", "probability", *own, "kl_gold", "kl_untouched")))
    names = [m for m in metrics if m in measured] or measured
    corpora = list(dict.fromkeys(r["corpus"] for r in rows))
    found = {(r["corpus"], r["metric"]) for r in rows}
    columns = [(c, m) for m in names for c in corpora if (c, m) in found and (m == names[0] or "unseen" not in c)]
    cells = {(r["edit"], r["corpus"], r["metric"]): r for r in rows}
    strengths = {r["edit"]: r["strength"] for r in rows}
    body = []
    for name, scope in scopes_of(rows).items():
        start = () if point == "full" else ("" if scope == "reference" else f"{strengths[name]:.2f}",)
        body.append((shown(name, scope), *start, *(interval(cells.get((name, c, m))) for c, m in columns)))
    caption = caption_of(results, point)
    heads = [f"{c}: {METRIC_LABELS.get(m, m)}" for c, m in columns]
    return Table(
        caption,
        ("edit", *(() if point == "full" else ("strength",)), *heads),
        tuple(body) if len(body) > 2 or point == "full" else (),
    )


def caption_of(results: Results, point: str) -> str:
    """Return what the edits of a table have in common: their full strength, or the damage that each may do."""
    if point == "full":
        return "Every edit at full strength"
    name, words = MATCHED[point]
    budget = results.info.get(name)
    until = "" if budget is None else f": each edit is weakened until {words} at most {budget:g} nats per answer token"
    return f"At matched damage{until} (strength 1: not weakened)"


def made_table(edits: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return how every edit was made, or None where the results do not say."""
    keys = ("method", "neurons", "values", "parameters", "relative", "values_lost_to_dtype", "steps", "lr", "seed")
    rows = [(name, *(_short(key, made.get(key, "")) for key in keys)) for name, made in edits.items()]
    heads = (
        "edit",
        "method",
        "neurons",
        "values",
        "parameters",
        "relative change",
        "lost to dtype",
        "steps",
        "lr",
        "seed",
    )
    return Table("How each edit was made, and its size", heads, tuple(rows)) if rows else None


def _short(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and key != "seed" else str(value)


def interval(row: dict[str, Any] | None) -> str:
    """Return a row's value with its interval, or how many of its examples have no value."""
    if row is None:
        return ""
    if math.isnan(row["value"]):
        return f"NaN ({row['nan']} of {row['n']})"
    return f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"


def flat(info: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested information as (name, value) pairs."""
    rows: list[tuple[str, str]] = []
    for key, value in info.items():
        name = f"{prefix}{key}".replace("_", " ")
        rows += flat(value, f"{name}: ") if isinstance(value, Mapping) else [(name, str(value))]
    return rows


def controls_table(results: Results, metric: str, point: str) -> Table | None:
    """Return each control beside the edit that it controls for, with their paired difference on forget; None without.

    A control `method@somewhere` belongs to the edit of neurons `method@neurons`, or else `method`. Differences are
    control - edit, so with a metric of what is left they are above 0 where the chosen neurons forget more.
    """
    scopes = scopes_of(results.rows)
    wanted = ("forget", metric, point)
    left = {r["edit"]: r["value"] for r in results.rows if (r["corpus"], r["metric"], r["point"]) == wanted}
    rows = []
    for control in (name for name, scope in scopes.items() if scope == "control" and name in left):
        method = control.partition("@")[0]
        own = (name for name in (f"{method}@neurons", method) if name in left and scopes[name] == "neurons")
        edit = next(own, None)
        if edit is None:
            continue
        try:
            gap = "{:+.3f} [{:+.2f}, {:+.2f}]".format(*results.paired(control, edit, *wanted))
        except InputError:  # results without their examples
            gap = f"{left[control] - left[edit]:+.3f}"
        rows.append((control, edit, f"{left[control]:.3f}", f"{left[edit]:.3f}", gap))
    columns = ("control", "compared with the edit", "control: forget", "edit: forget", "control - edit, 95% interval")
    caption = (
        "Each control beside the edit that uses the same method on the chosen neurons. What is left of forget after "
        f"either: {METRIC_LABELS.get(metric, metric)}. {caption_of(results, point)}"
    )
    return Table(caption, columns, tuple(rows)) if rows else None


def certificates_table(certificates: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Return what was checked of every edit, value by value, or None where nothing was."""
    columns = ("edit", "holds", "values inside", "values outside", "outside as before", "undone bit for bit",
               "model as before its training")  # fmt: skip
    rows = [
        (name, yes(c["holds"]), f"{c['inside_values']:,}", f"{c['outside_values']:,}", yes(c["outside_equal"]),
         yes(c["undone_equal"]), "not trained" if c["training_equal"] is None else yes(c["training_equal"]))
        for name, c in certificates.items()
    ]  # fmt: skip
    return (
        Table("Every parameter value, compared before, during and after each edit", columns, tuple(rows))
        if rows
        else None
    )


def yes(holds: bool) -> str:
    """Return yes, or a NO that is not overlooked."""
    return "yes" if holds else "NO"
