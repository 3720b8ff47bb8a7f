"""Analyses say what their numbers are: tried on the small testbed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from beds import bed
from scipy.stats import t

import neuronforget as nf

FOLDER = Path(__file__).parents[1] / "analyses"


def analysis(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_scores_are_held_against_the_true_neurons_and_against_exact_ablation() -> None:
    where, made = analysis("where_knowledge_lives"), bed()
    names = ("exact", "grad_x_act, then exact", "grad_x_act", "write norm", "random")
    rows = {row["score"]: row for row in where.rows_of(made, {name: where.SCORES[name] for name in names})}
    assert list(rows) == list(names) and rows["exact"]["spearman"] == pytest.approx(1)
    assert rows["exact"]["captured@1%"] == pytest.approx(1) and rows["exact"]["recall@k"] > 0.6
    assert rows["random"]["recall@k"] < 0.3 < rows["grad_x_act"]["recall@k"]
    # what the two stages find is what exact ablation finds among the first-order tenth
    retain = made.retain.head(len(made.forget))
    exact = nf.attribute(made.lm, made.forget, retain, score=nf.scores.exact, progress=False)
    first = nf.select.top(nf.attribute(made.lm, made.forget, retain, progress=False), where.SHORTLIST)
    both = nf.attribute(made.lm, made.forget, retain, score=where.shortlist_exact, progress=False)
    assert nf.select.top(both, 5).members == set(sorted(first, key=lambda n: -float(exact.values[n[0], n[1]]))[:5])


def test_every_score_of_the_library_is_in_the_analysis() -> None:
    where = analysis("where_knowledge_lives")
    others = {"Scores", "PeakCounts", "TopTokens", "lens", "reads_examples", "runs_model"}
    assert set(nf.scores.__all__) - others <= set(where.SCORES)


def test_intervals_over_seeds_are_students_and_tables_show_them() -> None:
    where = analysis("where_knowledge_lives")
    values = [0.2, 0.5, 0.9]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5
    assert where.mean_interval(values) == f"{np.mean(values):.2f} ± {half:.2f}"
    row = {"score": "mine", "seconds per example": 0.5, "spearman": 0.25}
    text = where.tables({f"ordinary {i}": {"rows": [row], "facts": {"gold, forget": 0.0}} for i in range(2)})
    assert "| mine | 500.0 | 0.25 ± 0.00 |" in text and "ordinary (2 seeds)" in text


def test_requests_are_undone_alone_and_the_model_comes_back() -> None:
    undone, made = analysis("undone_alone"), bed()
    start = made.lm.digest()
    rows = undone.rows_of(made, undone.ablate, "AB")
    assert [row["state"] for row in rows] == [
        "untouched", "A applied", "B applied", "A undone alone", "made without A",
    ]  # fmt: skip
    assert made.lm.digest() == start
    whole = nf.evaluate(made.lm, {}, made.forget, made.retain, strengths=(), damage=None, progress=False)
    assert (rows[0]["A"] + rows[0]["B"]) / 2 == pytest.approx(whole.value("untouched", "forget"))  # a person each
    assert rows[2]["A"] < rows[3]["A"] <= rows[0]["A"]
