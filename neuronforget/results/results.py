"""Results: tidy rows with their intervals, and the examples behind them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronforget.corpora.corpus import texts_of
from neuronforget.errors import InputError, reading
from neuronforget.results.intervals import RATES, bootstrap, difference, of_rate
from neuronforget.runs import whole_folder

if TYPE_CHECKING:
    import pandas as pd

#: Point of matched damage -> the name of its budget in `info`, and what stays within it.
MATCHED = {
    "matched": ("damage_budget", "the retain loss has risen by"),
    "matched KL": ("divergence_budget", "the KL from the untouched model on retain is"),
}
#: Corpus, metric, each example's value, and the subject that it stands and falls with.
Column = tuple[str, str, np.ndarray, np.ndarray]
#: Rows and examples of `Results`.
Tables = tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]
#: Information that a part keeps of the whole: how many edits of each scope were compared, broken ones left out.
COMPARED = "edits compared"
#: Information that is told of each edit.
BY_EDIT = ("edits", "certificates")
#: What the tables of saved results hold.
COLUMNS = {
    "rows": set("edit scope strength point corpus metric value low high n units nan seed".split()),
    "examples": set("edit point corpus metric example unit value".split()),
}


class NoRow(InputError):
    """Results do not hold the number that was asked for."""


@dataclass(frozen=True, eq=False)
class Results:
    """Tidy rows, and the value of every example behind the rows at full strength and at matched damage.

    A row: edit, scope ("reference", "control", "neurons", "full", "guard"), strength, point ("full", "frontier",
    "matched" or "matched KL"), corpus, metric, value, low, high (95% bootstrap interval over subjects; exact where
    all are 0 or all 1), n, units (subjects; an example without one is its own), nan (examples without a value), seed.
    An example: edit, point, corpus, metric, example, unit, value.
    """

    rows: tuple[dict[str, Any], ...] = field(repr=False)
    examples: tuple[dict[str, Any], ...] = field(repr=False)
    info: dict[str, Any]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as a pandas table."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def value(self, edit: str, corpus: str, metric: str = "exact_match", point: str = "full") -> float:
        """Return one number. Raises InputError if there is no such row."""
        wanted = {"edit": edit, "corpus": corpus, "metric": metric, "point": point}
        for row in self.rows:
            if all(row[k] == v for k, v in wanted.items()):
                return row["value"]
        raise NoRow(f"no such row: {wanted}")

    def only(
        self,
        *,
        edits: Sequence[str] | None = None,
        corpora: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        points: Sequence[str] | None = None,
    ) -> Results:
        """Return the part that is named, in every respect that is given; the references stay with any edits.

        A report or a figure of it leaves out what it no longer holds; of how many edits the best were looked for stays
        in `info`. Raises InputError for a name that is not there.
        """
        named = {"edit": edits, "corpus": corpora, "metric": metrics, "point": points}
        wanted = {key: {*texts_of(names)} for key, names in named.items() if names is not None}
        for key, names in wanted.items():
            there = dict.fromkeys(row[key] for row in self.rows)
            if strange := names - there.keys():
                raise InputError(f"no {key} {min(strange)!r} in these results; there are {', '.join(there)}")
        if "edit" in wanted:
            wanted["edit"] |= {row["edit"] for row in self.rows if row["scope"] == "reference"}
        info = self.info if edits is None else {COMPARED: _sound(self.rows)} | {  # of a part of a part, the first's
            key: {name: v for name, v in about.items() if name in wanted["edit"]} if key in BY_EDIT else about
            for key, about in self.info.items()
        }  # fmt: skip
        rows, examples = (
            tuple(row for row in table if all(row[key] in names for key, names in wanted.items()))
            for table in (self.rows, self.examples)
        )
        return replace(self, rows=rows, examples=examples, info=info)

    def paired(
        self,
        edit: str,
        other: str,
        corpus: str,
        metric: str = "exact_match",
        point: str = "full",
        *,
        level: float = 0.95,
    ) -> tuple[float, float, float]:
        """Return `edit - other` on the same examples, with the interval of `difference`: (value, low, high)."""
        wanted = (corpus, metric, point)
        own = [e for e in self.examples if (e["corpus"], e["metric"], e["point"]) == wanted]
        here, there = ([e for e in own if e["edit"] == name] for name in (edit, other))
        if not here or [e["example"] for e in here] != [e["example"] for e in there]:
            raise InputError(f"{edit!r} and {other!r} were not measured on the same examples of {corpus!r}")
        gap = np.array([e["value"] for e in here]) - np.array([e["value"] for e in there])
        within = (-1.0, 1.0) if metric in RATES else (-np.inf, np.inf)
        return difference(gap, self.info["seed"], units=np.array([e["unit"] for e in here]), level=level, within=within)

    def at(self, point: str) -> list[dict[str, Any]]:
        """Return the rows of one point, and of full strength those of references that were not measured at the point.

        What the untouched model and the gold twin answer is measured once where no point is a question of its own.
        """
        keys = ("edit", "corpus", "metric")
        there = {tuple(row[k] for k in keys) for row in self.rows if row["point"] == point}
        return [
            row
            for row in self.rows
            if row["point"] == point
            or (row["scope"] == "reference" and row["point"] == "full" and tuple(row[k] for k in keys) not in there)
        ]

    def table(self, metric: str = "exact_match", point: str = "full") -> pd.DataFrame:
        """Return a metric as a table of edits and corpora at one point, beside the references; both in their order.

        Raises InputError for a metric that was not measured there, and for a point that several strengths share.
        """
        import pandas as pd

        found = [row for row in self.at(point) if row["metric"] == metric]
        if not any(row["point"] == point for row in found):
            raise InputError(f"{metric!r} was not measured at {point!r}")
        frame = pd.DataFrame(found)
        if frame.duplicated(["edit", "corpus"]).any():
            raise InputError(f"{metric!r} has several strengths of an edit at {point!r}: take them from `frame`")
        rows, columns = frame["edit"].unique(), frame["corpus"].unique()
        return frame.pivot(index="edit", columns="corpus", values="value").loc[rows, columns]

    def __repr__(self) -> str:
        edits = list(dict.fromkeys(row["edit"] for row in self.rows))
        return f"Results({len(self.rows)} rows of {len(edits)} edits: {', '.join(edits)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the first metric, at the point where it was measured first."""
        if not self.rows:
            return f"<p>{escape(repr(self))}</p>"
        metric, point = (str(self.rows[0][key]) for key in ("metric", "point"))
        words = f"{self!r}: {metric}, {point}"
        try:
            return f"<p>{escape(words)}</p>{self.table(metric, point).round(3).to_html()}"
        except InputError:  # a frontier alone
            return f"<p>{escape(repr(self))}</p>"

    def save(self, folder: str | Path) -> None:
        """Write `rows.parquet`, `examples.parquet` and `info.json` into a new folder."""
        import pandas as pd

        with whole_folder(folder) as scratch:
            self.frame.to_parquet(scratch / "rows.parquet")
            pd.DataFrame(list(self.examples)).to_parquet(scratch / "examples.parquet")
            (scratch / "info.json").write_text(json.dumps(self.info, indent=1, default=str), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read what `save` wrote."""
        import pandas as pd

        folder = Path(folder)
        if not (folder / "rows.parquet").is_file():
            raise InputError(f"no results in {folder}: it has no rows.parquet")
        tables = {}
        for name in ("rows", "examples"):
            path = folder / f"{name}.parquet"
            with reading(path, name):
                tables[name] = tuple(pd.read_parquet(path).to_dict("records"))
                if tables[name] and (lacking := COLUMNS[name] - tables[name][0].keys()):
                    raise InputError(f"{path} has no column {min(lacking)!r}: it is not a table of this version")
        with reading(folder / "info.json", "information"):
            info = dict(json.loads((folder / "info.json").read_text(encoding="utf-8")))
        return cls(info=info, **tables)  # type: ignore[arg-type]


def _sound(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many edits of each scope have no NaN."""
    rows = list(rows)
    broken = {row["edit"] for row in rows if row["nan"]}
    return dict(Counter({row["edit"]: row["scope"] for row in rows if row["edit"] not in broken}.values()))


def check_edit_names(edits: Mapping[str, Any]) -> None:
    """Raise InputError where an edit is called what a reference is called in `Results`."""
    if {"untouched", "gold"} & edits.keys():
        raise InputError("'untouched' and 'gold' are names of references: call the edit something else")


def tidy_row(names: dict[str, Any], values: np.ndarray, units: np.ndarray, seed: int) -> dict[str, Any]:
    """Return one row of `Results`: what is measured, by `names` (edit to metric), and its value with the interval."""
    value, low, high = (of_rate if names["metric"] in RATES else bootstrap)(values, seed, units=units)
    found = {"value": value, "low": low, "high": high, "n": len(values), "units": len(np.unique(units))}
    return {**names, **found, "nan": int(np.isnan(values).sum()), "seed": seed}


def example_rows(names: dict[str, Any], values: np.ndarray, units: np.ndarray) -> list[dict[str, Any]]:
    """Return the examples behind a row, by `names` (edit, point, corpus, metric)."""
    pairs = enumerate(zip(units, values, strict=True))
    return [{**names, "example": i, "unit": int(unit), "value": float(x)} for i, (unit, x) in pairs]


def model_tables(name: str, columns: Iterable[Column], seed: int) -> Tables:
    """Return rows and examples of a model that was asked as it is: a reference, at full strength."""
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for corpus, metric, values, units in columns:
        names = {"edit": name, "point": "full", "corpus": corpus, "metric": metric}
        rows.append(tidy_row({**names, "scope": "reference", "strength": 0.0}, values, units, seed))
        examples += example_rows(names, values, units)
    return tuple(rows), tuple(examples)
