"""report(): results, and what was selected and why, as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuronforget.auditing import Audit
from neuronforget.closeups import Closeups
from neuronforget.neurons import Neurons
from neuronforget.pictures import closeup_pictures, comparison_pictures, map_pictures, measured, shift_picture
from neuronforget.results import MATCHED, Results
from neuronforget.runs import whole_file
from neuronforget.scores import Scores
from neuronforget.tables import Table, cards_table, flat, made_table, results_table


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
    closeups: Closeups | None = None,
    findings: Sequence[str] = (),
    audits: Mapping[str, Audit] | None = None,
    title: str = "What was forgotten, and what was damaged",
) -> Path:
    """Write the report; sections whose inputs are missing are left out. Raises InputError if `path` is unwritable."""
    pictures = comparison_pictures(results) if measured(results) >= {"exact_match", "nll"} else []
    if scores is not None:
        pictures += map_pictures(scores, neurons, truth, controls)
    if shifts:
        pictures.append(shift_picture(shifts, layers or (scores.layers if scores else ())))
    if closeups is not None:
        pictures += closeup_pictures(closeups, neurons, layers or (scores.layers if scores else ()))
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
        cards=cards_table(closeups.cards, scores.name if scores else "score") if closeups else None,
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
