"""audit_report(): an audit as one HTML file: the verdict in words, every check, and the curves behind them."""

from __future__ import annotations

from pathlib import Path

from neuronforget import figures
from neuronforget.auditing import Audit, Check
from neuronforget.auditing.cases import EDITED
from neuronforget.models.routed import OWN, neuron_name
from neuronforget.reporting.pages import Section, page, reproduce
from neuronforget.reporting.pictures import Picture
from neuronforget.reporting.residues import residue_pictures
from neuronforget.reporting.tables import Table


def audit_report(audit: Audit, path: str | Path, *, title: str = "Erased, or only hidden?") -> Path:
    """Write the page. Raises InputError if `path` is unwritable."""
    info = audit.results.info
    caption = (
        "Each line leads from the reference (a model that never knew, or what stands in for it) to the untouched "
        "model. An erased fact lies at the reference. Grey bars are intervals of the difference from the reference, at "
        "95% over all checks."
    )
    table = _table(audit.checks)
    sections = [
        Section("What was asked", pairs=_asked(audit)),
        Section("Verdict", audits=[(_edit(audit), "", audit)], findings=audit.findings[1:]),
        Section("Every check", "Intervals are at 95% over all checks together.", tables=[table],
                pictures=[Picture("The checks beside their references", caption, figures.checks(audit.checks), table)]),
        Section("What is left", pictures=residue_pictures({EDITED: audit})),
        Section("What it did to neurons", tables=_neurons(audit)),
        reproduce(info),
    ]  # fmt: skip
    return page(path, title, sections, nan=audit.damage["nan"])


def _edit(audit: Audit) -> str:
    edit = audit.results.info["edit"]
    return edit if isinstance(edit, str) else str(edit.get("method", "edit"))


def _asked(audit: Audit) -> list[tuple[str, str]]:
    info = audit.results.info
    return [
        ("Model", str(info["model"])),
        ("Edit", _edit(audit)),
        ("Corpora", ", ".join(info["data"])),
        ("Reference", "the gold twin, which never knew" if info["gold"] else "no gold twin was given: each check names "
                      "what stands in for a model that never knew"),
        ("Probes", ", ".join(dict.fromkeys(check.probe for check in audit.checks))),
    ]  # fmt: skip


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
    units, own = audit.neurons.get("units", {}), audit.neurons.get(OWN, 0)
    rows = [(name, f"{value:.4g}") for name, value in shown.items()]
    rows += [(f"units, {who}", what) for who, what in units.items()]
    found = [Table("What the edit did to neurons (contributions in logits per token)", ("", "value"), tuple(rows))]
    for name in ("lost most", "suppress most"):
        best = tuple((neuron_name(i, j, own), f"{value:.4g}") for i, j, value in audit.neurons.get(name, []))
        if best:
            found.append(Table(f"Neurons that {name}", ("neuron", "logits"), best))
    return found
