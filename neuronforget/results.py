"""Results: tidy rows with their intervals, and the examples behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuronforget.errors import InputError, reading
from neuronforget.runs import whole_folder

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Results:
    """Tidy rows, and the value of every example behind the rows at full strength.

    A row: edit, scope ("reference", "control", "neurons", "full"), strength, point ("full", "frontier" or
    "matched"), corpus, metric, value, low, high (95% bootstrap interval), n, nan (examples without a value),
    seed. An example: edit, corpus, metric, example, value.
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
        raise InputError(f"no such row: {wanted}")

    def paired(self, edit: str, other: str, corpus: str, metric: str = "exact_match") -> tuple[float, float, float]:
        """Return `edit - other` on the same examples, with its paired bootstrap interval: (value, low, high)."""
        values = {}
        for name in (edit, other):
            keys = (name, corpus, metric)
            values[name] = [e["value"] for e in self.examples if (e["edit"], e["corpus"], e["metric"]) == keys]
        if not values[edit] or len(values[edit]) != len(values[other]):
            raise InputError(f"{edit!r} and {other!r} were not measured on the same examples of {corpus!r}")
        return bootstrap(np.array(values[edit]) - np.array(values[other]), self.info["seed"])

    def __repr__(self) -> str:
        edits = list(dict.fromkeys(row["edit"] for row in self.rows))
        return f"Results({len(self.rows)} rows of {len(edits)} edits: {', '.join(edits)})"

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
        with reading(folder / "info.json", "information"):
            info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        return cls(info=info, **tables)  # type: ignore[arg-type]


def bootstrap(values: np.ndarray, seed: int, *, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Return (mean, low, high): 95% percentile bootstrap over the examples that are not NaN."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)
