"""A page: sections of words, tables, pictures and cards as one HTML file that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from neuronforget.auditing import Audit
from neuronforget.findings.closeups import Card
from neuronforget.reporting.pictures import Picture
from neuronforget.reporting.tables import Table, flat
from neuronforget.runs import whole_file

#: Of every figure. Its tool bar lacks what sends data away and what selects points to no purpose.
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
}


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order; one that has nothing is left out of the page.

    `audits` are (name, address of its page or nothing, audit).
    """

    title: str
    words: str = ""
    pairs: Sequence[tuple[str, str]] = ()
    audits: Sequence[tuple[str, str, Audit]] = ()
    findings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    cards: Sequence[Card] = ()

    @property
    def empty(self) -> bool:
        """Has it words at most?"""
        return not any(getattr(self, field.name) for field in fields(self) if field.name not in ("title", "words"))


def page(path: str | Path, title: str, sections: Sequence[Section], *, nan: int = 0) -> Path:
    """Write one page; `nan` counts the values of broken models. Raises InputError if `path` is unwritable."""
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("neuronforget.reporting", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    body = environment.get_template("page.html.jinja").render(
        title=title, sections=[s for s in sections if not s.empty], nan=nan, plotly=get_plotlyjs(), config=CONFIG
    )
    with whole_file(path) as scratch:
        scratch.write_text(body, encoding="utf-8")
    return Path(path)


def reproduce(info: Mapping[str, Any], tables: Sequence[Table] = ()) -> Section:
    """Return the section that says how to get the same again: the command, the settings, seeds, versions, hashes."""
    return Section("How to reproduce this", "The same inputs give the same numbers.", flat(info), tables=tables)
