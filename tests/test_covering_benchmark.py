"""The simulation of coverage: it tells intervals apart, and the documentation says what it printed."""

from __future__ import annotations

import json
from pathlib import Path

import covering

ROOT = Path(__file__).resolve().parent.parent


def test_few_subjects_need_the_wider_interval_and_many_do_not() -> None:
    rows = {row["subjects"]: row for row in covering.intervals(60)}
    assert rows[2]["bootstrap"] < 0.7 < 0.8 < rows[2]["difference"]
    assert min(rows[50]["bootstrap"], rows[50]["difference"]) > 0.85


def test_the_interval_of_an_auc_near_one_holds_it_and_a_bootstraps_does_not() -> None:
    row = next(row for row in covering.aucs(25) if (row["true AUC"], row["texts"]) == (0.99, 10))
    assert row["bootstrap"] < 0.7 < 0.85 < row["of_auc"]


def test_an_audit_finds_nothing_in_a_model_as_ignorant_as_its_twin() -> None:
    assert max(row["found"] for row in covering.audits(6)) <= 2 / 6


def test_the_pages_say_what_the_committed_results_say() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("*-coverage.json"))
    found = json.loads(newest.read_text(encoding="utf-8"))
    held = {row["subjects"]: row["bootstrap"] for row in found["intervals"]}
    pages = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("metrics.md", "suites.md"))
    metrics, suites = (" ".join(page.split()) for page in pages)
    assert all(f"| {subjects} | {held[subjects]:.0%} |" in metrics for subjects in (10, 5, 2))
    wide = [row["difference"] for row in found["intervals"]]
    assert f"hold the truth {min(wide):.0%} to {max(wide):.0%} of the time" in metrics
    held = [row["of_auc"] for row in found["aucs"]]
    short = {(row["true AUC"], row["texts"]): row["bootstrap"] for row in found["aucs"]}
    assert f"holds the truth {min(held):.0%} to {max(held):.0%} of the time" in suites
    assert f"a bootstrap holds it {short[0.96, 10]:.0%} of the time" in suites
    assert max(row["found"] for row in found["audits"]) <= 0.05
