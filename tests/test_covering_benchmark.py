"""The simulation of coverage: it tells intervals apart, and the documentation says what it printed."""

from __future__ import annotations

import json
from pathlib import Path

import claiming
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
    assert max(row["found"] for row in claiming.audits(6)) <= 2 / 6


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
    *found, alone, alike = [row["share"] for row in claiming.claims(6)]
    assert max(*found, alone) <= 2 / 6 and alike > alone
    rows = claiming.selections(1)
    assert all(abs(row["overlap of halves"] - row["by chance"]) < 0.15 and row["neurons"] < 5 for row in rows)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Few settings of each simulation."""
    small = {"RATES": (0.02,), "ASKED": (5,), "TRUE_AUCS": (0.8,), "TEXTS": (10,), "TRUE_NEURONS": (20,)}
    small |= {"NEURONS": 400, "PEOPLE": (5, 20), "EDITS": (3,), "DRAWS": (4,), "WIDTH": 60}
    for name, value in small.items():
        monkeypatch.setattr(covering if hasattr(covering, name) else claiming, name, value)
    return monkeypatch


def test_the_pages_say_what_the_committed_results_say() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("*-coverage.json"))
    found = json.loads(newest.read_text(encoding="utf-8"))
    held = {row["subjects"]: row["bootstrap"] for row in found["intervals"]}
    pages = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("metrics.md", "suites.md"))
    metrics, suites = (" ".join(page.split()) for page in pages)
    assert all(f"| {subjects} | {held[subjects]:.0%} |" in metrics for subjects in (10, 5, 2))
    wide = [row["difference"] for row in found["intervals"]]
    assert f"hold the truth {min(wide):.0%} to {max(wide):.0%} of the time" in metrics
    held = [row["of_auc"] for row in found["aucs"] if row["true AUC"] > 0.9]
    short = {(row["true AUC"], row["texts"]): row["bootstrap"] for row in found["aucs"]}
    assert f"holds the truth {min(held):.0%} to {max(held):.0%} of the time" in suites
    assert f"a bootstrap holds it {short[0.96, 10]:.0%} of the time" in suites
    texts, author = ([row[name] for row in found["authors"]] for name in ("over texts", "by author"))
    assert f"the truth {min(texts):.0%} to {max(texts):.0%} of the time, by author {min(author):.0%} to" in suites


def test_the_pages_say_what_is_claimed_where_nothing_differs() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("*-coverage.json"))
    found = json.loads(newest.read_text(encoding="utf-8"))
    metrics, audit = (
        " ".join((ROOT / "docs" / f).read_text(encoding="utf-8").split()) for f in ("metrics.md", "audit.md")
    )
    share = [row["share"] for row in found["claims"]]
    selected = {(row["spread"], row["forget, retain"]): row for row in found["selections"]}
    hidden = {(row["people"], row["what"]): row["found"] for row in found["audits"]}
    apart = [row["told apart"] for row in found["rates"]]
    alike = max(row["any selected"] for (spread, _), row in selected.items() if spread == "alike")
    thrice = [selected["forget thrice", sizes]["any selected"] for sizes in ("10, 10", "20, 100")]
    for text in (
        f"the best (`ranking.ranked`) | {share[2]:.1%}, {share[3]:.1%} |",
        f"(`selected_minus_random`) | {share[4]:.0%}, {share[5]:.0%} |",
        f"largest of three sizes) | {alike:.0%} |",
        f"20 and 100 examples | {thrice[0]:.0%}, {thrice[1]:.0%} |",
        f"model that never knew | {min(hidden.values()):.0%} to {max(hidden.values()):.0%} |",
        f"models is below .05 | {share[6]:.0%} |", f"being the authors' | {share[7]:.0%} |",
        f"told apart in {min(apart):.0%} to {max(apart):.0%} of",
        f"({max(row['neurons'] for row in selected.values()):.1f} on average)",
    ):  # fmt: skip
        assert text in metrics, text
    rare = [row["bootstrap"] for row in found["rates"] if row["rate"] == 0.02]
    assert f"holds the truth {min(rare):.0%} to {max(rare):.0%} of the time, with" in metrics
    near = {(r["true neurons"], r["count"]): r["DeLong"] for r in found["localised"] if r["true AUROC"] == 0.99}
    held = [row["auroc"] for row in found["localised"]]
    assert f"holds the truth {min(held):.0%} to {max(held):.0%} of the time; DeLong's" in metrics
    assert (
        f"{near['shifted', 20]:.0%} of the time, where part of them are found {near['part found', 20]:.0%}" in metrics
    )
    seen = {(row["people"], row["what"]): row["found, 0.6 left"] for row in found["audits"]}
    for count in (1, 2, 3, 4, 5, 10, 20):
        shares = (table[count, what] for table in (hidden, seen) for what in ("guessing", "choice"))
        assert f"| {count} | {' | '.join(f'{share:.0%}' for share in shares)} |" in audit
