"""The simulation of coverage: it tells intervals apart, and the documentation says what it printed."""

from __future__ import annotations

import json
from pathlib import Path

import covering
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_few_subjects_need_the_wider_interval_and_many_do_not() -> None:
    rows = {row["subjects"]: row for row in covering.intervals(60)}
    assert rows[2]["bootstrap"] < 0.7 < 0.8 < rows[2]["difference"]
    assert min(rows[50]["bootstrap"], rows[50]["difference"]) > 0.85


def test_the_interval_of_an_auc_near_one_holds_it_and_a_bootstraps_does_not(few: pytest.MonkeyPatch) -> None:
    few.setattr(covering, "TRUE_AUCS", (0.99,))
    (row,) = covering.aucs(25)
    assert row["bootstrap"] < 0.7 < 0.85 < row["of_auc"]


def test_an_audit_finds_nothing_in_a_model_as_ignorant_as_its_twin(few: pytest.MonkeyPatch) -> None:
    assert max(row["found"] for row in covering.audits(6)) <= 2 / 6


def test_intervals_of_rates_of_authors_texts_and_of_localisations_hold_what_others_do_not(
    few: pytest.MonkeyPatch,
) -> None:
    (row,) = covering.rates(20)
    assert row["bootstrap"] < 0.5 < 0.9 < row["of_rate"]
    row = covering.authors(20)[1]
    assert row["over texts"] < 0.9 <= row["by author"] + 0.1
    rows = covering.localised(10)
    assert np.mean([row["auroc"] for row in rows]) > 0.85 > np.mean([row["DeLong"] for row in rows])


def test_nothing_is_claimed_of_what_is_alike(few: pytest.MonkeyPatch) -> None:
    *found, alone, alike = [row["share"] for row in covering.claims(6)]
    assert max(*found, alone) <= 2 / 6 and alike > alone
    rows = covering.selections(1)
    assert all(abs(row["overlap of halves"] - row["by chance"]) < 0.15 and row["neurons"] < 5 for row in rows)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Few settings of each simulation."""
    small = {"RATES": (0.02,), "ASKED": (5,), "TRUE_AUCS": (0.8,), "TEXTS": (10,), "TRUE_NEURONS": (20,)}
    small |= {"NEURONS": 400, "PEOPLE": (5, 20), "EDITS": (3,), "DRAWS": (4,), "WIDTH": 60}
    for name, value in small.items():
        monkeypatch.setattr(covering, name, value)
    return monkeypatch


def test_the_pages_say_what_the_committed_results_say() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("*-coverage.json"))
    found = json.loads(newest.read_text(encoding="utf-8"))
    held = {row["subjects"]: row["bootstrap"] for row in found["intervals"]}
    metrics, suites = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("metrics.md", "suites.md"))
    assert f"holds the truth {held[10]:.0%} of the time, of\nfive {held[5]:.0%}, of two {held[2]:.0%} (" in metrics
    wide = [row["difference"] for row in found["intervals"]]
    assert f"`intervals.difference`: {min(wide):.0%} to\n{max(wide):.0%})" in metrics
    held = [row["of_auc"] for row in found["aucs"]]
    short = {(row["true AUC"], row["texts"]): row["bootstrap"] for row in found["aucs"]}
    assert f"holds the truth {min(held):.0%} to {max(held):.0%} of the time" in suites
    assert f"a bootstrap's {short[0.96, 10]:.0%} of ten and ten texts at .96" in suites
    assert max(row["found"] for row in found["audits"]) <= 0.05
