"""What a comparison's results say, looked up: which measure is meant, what was known, what an edit left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from neuronforget.errors import InputError
from neuronforget.results import COMPARED, Results
from neuronforget.results.intervals import FEWEST

KNOWN = 0.2  # exact match from which on it is the measure; below, the answer's probability


@dataclass(frozen=True, eq=False)
class Readings:
    """Looks numbers up in results, by exact match or, where that says nothing, by the answer's probability."""

    results: Results

    @cached_property
    def broken(self) -> dict[str, int]:
        """Examples without a value, the most on one corpus, of every edit that has any."""
        counts: dict[str, int] = {}
        for row in self.results.rows:
            if row["nan"]:
                counts[row["edit"]] = max(counts.get(row["edit"], 0), row["nan"])
        return counts

    @cached_property
    def edits(self) -> dict[str, str]:
        """Scope of every edit whose model gives numbers."""
        return {row["edit"]: row["scope"] for row in self.results.rows if row["edit"] not in self.broken}

    @cached_property
    def readable(self) -> bool:
        """Is this a comparison in a measure of sentences: was the untouched model asked for both corpora?"""
        start = {(row["corpus"], row["metric"]) for row in self.results.rows if row["edit"] == "untouched"}
        return any({("forget", name), ("retain", name)} <= start for name in ("exact_match", "probability"))

    @cached_property
    def metric(self) -> str:
        """The measure of all sentences."""
        measured = {row["metric"] for row in self.results.rows}
        known = self.results.value("untouched", "forget", "exact_match") if "exact_match" in measured else 0.0
        return "exact_match" if known >= KNOWN or "probability" not in measured else "probability"

    @cached_property
    def floor(self) -> float | None:
        """What the gold twin makes of the forget corpus."""
        return self.value("gold", "forget") if "gold" in self.edits else None

    @property
    def known(self) -> float:
        """What there was to forget: the untouched model's value above the gold twin's."""
        return max(self.value("untouched", "forget") - (self.floor or 0.0), 1e-9)

    def value(self, edit: str, corpus: str, point: str = "full") -> float:
        """One number in the measure of all sentences."""
        return self.results.value(edit, corpus, self.metric, point)

    def row(self, edit: str, point: str = "matched") -> dict[str, Any] | None:
        """The row of the forget corpus at a point, or None."""
        wanted = (edit, "forget", point, self.metric)
        rows = (r for r in self.results.rows if (r["edit"], r["corpus"], r["point"], r["metric"]) == wanted)
        return next(rows, None)

    def named(self, *scopes: str) -> list[str]:
        """Edits of the given scopes."""
        return [name for name, scope in self.edits.items() if scope in scopes]

    def pairs(self, whole: int, aimed: int) -> int:
        """Of how many pairs, a full-model and a neuron-level edit each, is one of these the best?

        Of results that are a part of others (`Results.only`), of these others' pairs: there the best were looked for.
        """
        compared = self.results.info.get(COMPARED, {})
        return max(compared.get("full", 0), whole) * max(compared.get("neurons", 0), aimed)

    def verdict(self, one: dict[str, Any], other: dict[str, Any], lower: str, higher: str, pairs: int = 1) -> str:
        """Compare two rows of one corpus and point by their paired difference (by their intervals without examples).

        `pairs` is among how many the two were looked for: the interval is at 95% over all of them (Bonferroni).
        """
        if min(row.get("units", row["n"]) for row in (one, other)) < FEWEST:
            return "too few examples to tell"
        try:
            place = one["edit"], other["edit"], one["corpus"], one["metric"], one["point"]
            paired = self.results.paired(*place, level=1 - 0.05 / pairs)
        except InputError:
            low, high = one["low"] - other["high"], one["high"] - other["low"]
        else:
            low, high = paired[1:]
        return lower if high < 0 else higher if low > 0 else "no clear difference"


def told_in(results: Results) -> set[tuple[str, str, str]]:
    """Return (edit, corpus, metric) of all that was measured at full strength."""
    return {(r["edit"], r["corpus"], r["metric"]) for r in results.rows if r["point"] == "full"}


def drawn_in(results: Results) -> str | None:
    """Return the measure of pictures, which is that of the sentences; None where the untouched model was not asked.

    A line of zeros would show nothing: a model seldom writes a long answer exactly, whatever was erased.
    """
    told = told_in(results)
    metric = Readings(results).metric if ("untouched", "forget", "exact_match") in told else "probability"
    return metric if ("untouched", "forget", metric) in told else None
