"""Analyses say what their numbers are: tried on the small testbed."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from beds import bed
from scipy.stats import t

import neuronforget as nf

FOLDER = Path(__file__).parents[1] / "analyses"
sys.path.append(str(FOLDER))


def analysis(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_scores_are_held_against_the_true_neurons_and_against_exact_ablation() -> None:
    where, sources = analysis("where_knowledge_lives"), import_module("sources")
    made = sources.Source.bare(bed(), 0)
    names = ("exact", "grad_x_act, then exact", "grad_x_act", "write norm", "random")
    rows = {row["score"]: row for row in where.rows_of(made, {name: where.SCORES[name] for name in names})}
    assert list(rows) == list(names) and rows["exact"]["spearman"] == pytest.approx(1)
    assert rows["exact"]["captured@1%"] == pytest.approx(1) and rows["exact"]["recall@k"] > 0.6
    assert rows["random"]["recall@k"] < 0.3 < rows["grad_x_act"]["recall@k"]
    # what the two stages find is what exact ablation finds among the first-order tenth
    retain = made.retain.head(len(made.forget))
    exact = nf.attribute(made.lm, made.forget, retain, score=nf.scores.exact, progress=False)
    first = nf.select.top(nf.attribute(made.lm, made.forget, retain, progress=False), sources.SHORTLIST)
    both = nf.attribute(made.lm, made.forget, retain, score=where.shortlist_exact, progress=False)
    assert nf.select.top(both, 5).members == set(sorted(first, key=lambda n: -float(exact.values[n[0], n[1]]))[:5])


def test_every_score_of_the_library_is_in_the_analysis() -> None:
    where = analysis("where_knowledge_lives")
    others = {"Scores", "PeakCounts", "TopTokens", "lens", "reads_examples", "runs_model"}
    assert set(nf.scores.__all__) - others <= set(where.SCORES)


def test_intervals_over_seeds_are_students_and_tables_show_them() -> None:
    where, cells = analysis("where_knowledge_lives"), analysis("cells")
    values = [0.2, 0.5, 0.9]
    half = t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5
    assert cells.cell(values) == f"{np.mean(values):.2f} ± {half:.2f}"
    row = {"score": "mine", "seconds per example": 0.5, "spearman": 0.25}
    text = where.tables({f"ordinary {i}": {"rows": [row], "facts": {"gold, forget": 0.0}} for i in range(2)})
    assert "| mine | 500.0 | 0.25 ± 0.00 |" in text and "ordinary (2 seeds)" in text


def test_halves_of_one_corpus_have_the_interval_of_that_corpus_and_not_of_the_halves() -> None:
    cells, draw = analysis("cells"), np.random.default_rng(0)
    held = {0.0: 0, 0.5: 0}
    for _ in range(400):
        corpus = draw.normal(size=40)
        halves = [draw.permutation(corpus)[:20].mean() for _ in range(5)]
        for drawn in held:
            held[drawn] += abs(np.mean(halves)) <= cells.half_interval(halves, drawn)
    assert held[0.5] / 400 > 0.93 > 0.8 > held[0.0] / 400
    values = [0.2, 0.5, 0.9]
    assert cells.half_interval(values, 0.5) == pytest.approx(2 * cells.half_interval(values))
    where = analysis("where_knowledge_lives")
    rows = [[{"score": "mine", "seconds per example": 0.5, "spearman": s}] for s in values]
    beds = {f"own model {i}": {"rows": own, "facts": {}, "drawn": 0.5} for i, own in enumerate(rows)}
    assert f"| mine | 500.0 | {cells.cell(values, drawn=0.5)} |" in where.tables(beds)


def test_requests_are_undone_alone_and_the_model_comes_back() -> None:
    undone, made = analysis("undone_alone"), import_module("sources").Source.bare(bed(), 0)
    start = made.lm.digest()
    rows = undone.rows_of(made, undone.ablate, "AB")
    assert [row["state"] for row in rows] == [
        "untouched", "A applied", "B applied", "A undone alone", "made without A",
    ]  # fmt: skip
    assert made.lm.digest() == start and list(rows[0]) == ["edit", "state", "A", "B", "retain"]
    whole = nf.evaluate(made.lm, {}, made.forget, made.retain, strengths=(), damage=None, progress=False)
    assert (rows[0]["A"] + rows[0]["B"]) / 2 == pytest.approx(whole.value("untouched", "forget"))  # a person each
    assert rows[2]["A"] < rows[3]["A"] <= rows[0]["A"]


@pytest.fixture(scope="module")
def erased() -> dict[str, Any]:
    """What the analysis of erase methods measured of a few arms of the small testbed."""
    sources, again, methods = analysis("sources"), analysis("relearning"), analysis("erase_methods")
    methods.STRENGTHS, again.TAUGHT = (0.5, 1.0), 6
    study, done = sources.Source.of(bed(), 0, share=0.1, measured=40), {}  # of 128 neurons, 12 are grafted
    study = replace(study, beside={"strangers": sources.strangers(study, 20)})
    yielded = list(methods.run(study, done, only=("ablate", "ssd", "grad_diff")))
    assert yielded[0] == "references" and not list(methods.run(study, done, only=("ablate", "ssd", "grad_diff")))
    return {"study": study, "done": json.loads(json.dumps(done)), "methods": methods}


@pytest.mark.slow
def test_found_neurons_ablated_are_closer_to_gold_than_random_ones(erased: dict[str, Any]) -> None:
    done = erased["done"]
    places = {name.split("@")[-1] for name in done if "@" in name}
    assert places == {"found", "random", "full"} and "ssd@full" in done and "ablate@full" not in done
    kl = {name: done[name]["dials"][-1][1]["unseen"]["kl_gold"] for name in ("ablate@found", "ablate@random")}
    assert kl["ablate@found"] < 0.5 * kl["ablate@random"]
    assert done["gold"]["tuned"]["unseen"]["kl_gold"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_points_are_what_evaluate_measures(erased: dict[str, Any]) -> None:
    study, done = erased["study"], erased["done"]
    edit = nf.erase.ablate(study.lm, study.found)
    results = nf.evaluate(study.lm, {"a": edit}, study.forget, study.corpora["retain"], gold=study.gold,
                          strengths=(), damage=None, progress=False)  # fmt: skip
    point = done["ablate@found"]["dials"][0][1]
    for name, corpus in (("forget", "forget"), ("unseen", "forget unseen"), ("retain", "retain")):
        for metric in ("exact_match", "nll", "kl_gold"):
            assert point[name][metric] == pytest.approx(results.value("a", corpus, metric), abs=1e-6)


@pytest.mark.slow
def test_tuned_points_keep_the_damage_and_matched_ones_reach_no_more(erased: dict[str, Any]) -> None:
    done, methods = erased["done"], erased["methods"]
    start = done["untouched"]["tuned"]["retain"]["nll"]
    for name, arm in done.items():
        if "@" not in name or "failed" in arm:
            continue
        allowed = [p for dial in arm["dials"] for p in dial if p["retain"]["nll"] <= start + methods.DAMAGE]
        best = min([done["untouched"]["tuned"], arm["matched"], *allowed], key=lambda p: p["forget"]["kl_gold"])
        assert arm["tuned"] == best
        assert arm["matched"]["retain"]["nll"] <= start + methods.DAMAGE + 1e-6


@pytest.mark.slow
def test_strangers_are_in_neither_corpus(erased: dict[str, Any]) -> None:
    study = erased["study"]
    text = " ".join(e.prompt for corpus in (study.forget, study.retain) for e in corpus)
    asked = [e.prompt for e in study.corpora["strangers"]]
    assert len(asked) == 20 and len(set(asked)) > 15 and not any(prompt in text for prompt in asked)


@pytest.mark.slow
def test_relearning_is_measured_on_the_taught_and_the_other_half(erased: dict[str, Any]) -> None:
    done = erased["done"]
    known = done["untouched"]["relearning"]
    assert known["step"] == [0, 3, 6] and len(known["siblings"]) == 3
    start = done["untouched"]["tuned"]["forget"]["exact_match"]
    assert (known["taught"][0] + known["siblings"][0]) / 2 == pytest.approx(start)
    assert done["gold"]["relearning"]["taught"][0] < 0.3


@pytest.mark.slow
def test_tables_say_what_was_measured(erased: dict[str, Any]) -> None:
    show, done = analysis("erase_tables"), erased["done"]
    text = show.tables([done, done])
    point = done["ablate@found"]["tuned"]
    assert f"| ablate | {point['strength']:.2g} | {point['forget']['exact_match']:.2f} ± 0.00" in text
    gap = show.gaps([done], "ablate@random")[0]
    assert gap < 0 and f"| {gap:.2f} ± 0.00 |" in text and "2 seeds" in text
    kl = [done[f"ssd@{place}"]["tuned"]["unseen"]["kl_gold"] for place in ("found", "full", "random")]
    told = f"| ssd | {kl[0]:.2f} ± 0.00 | {kl[1]:.2f} ± 0.00 | {kl[2]:.2f} ± 0.00 | {kl[0] - kl[2]:.2f} ± 0.00 |"
    assert kl[0] < kl[2] and told in text


@pytest.mark.slow
def test_figures_put_the_marks_where_the_numbers_are(erased: dict[str, Any]) -> None:
    draw, done = analysis("erase_figures"), erased["done"]
    for text in (draw.dials([done]), draw.dots([done, done])):
        tree = ElementTree.fromstring(text)
        words = {"".join(node.itertext()) for node in tree.iter() if node.tag.endswith("text")}
        assert {"ablate", "ssd", "found neurons", "whole model", "random neurons"} <= words
        assert len(text) < 100_000 and "script" not in text and "href" not in text
    found = [arm["tuned"]["unseen"]["kl_gold"] for name, arm in done.items() if name.endswith("@found")]
    marks = [node for node in ElementTree.fromstring(draw.dots([done])).iter() if node.tag.endswith("circle")]
    across = [float(node.get("cx") or 0) for node in marks[1:]]  # the first is the legend's
    assert across == pytest.approx([152 + 620 * kl / 8 for kl in sorted(found)], abs=0.06)


@pytest.mark.slow
def test_marks_on_the_dial_are_hollow_where_the_damage_is_too_large(erased: dict[str, Any]) -> None:
    draw, done = analysis("erase_figures"), json.loads(json.dumps(erased["done"]))
    start = done["untouched"]["tuned"]["retain"]["nll"]
    for point, rise in zip(done["ablate@found"]["dials"][-1], (0.04, 0.06), strict=True):
        point["retain"]["nll"] = start + rise
    assert [kept for *_, kept in draw._curve([done], "ablate@found")] == [True, True, False]
    assert draw.DAMAGE == erased["methods"].DAMAGE


def test_a_difference_is_one_only_where_its_interval_excludes_zero() -> None:
    show = analysis("erase_tables")
    assert show.verdict([-0.5, -0.52, -0.48]) == "lower" and show.verdict([0.5, 0.52, 0.48]) == "higher"
    assert show.verdict([-0.5, 0.3, -0.4]) == "not told apart" and show.verdict([-0.5]) == "not told apart"
    assert show.verdict([-0.1] * 5) == "not told apart" and show.verdict([-0.1] * 6) == "lower"  # 2 / 2^5 = .06
    assert show.verdict([0.1 + 0.2, 0.3, 0.3]) == "not told apart" and show.verdict([1e-17] * 8) == "not told apart"
    arm = {"relearning": {"step": [0, 3, 6], "taught": [0.1, 0.5, 0.95], "siblings": [0.4, 0.1, 0.2]}}
    assert show.relearned(arm) == 6 and show.came_back(arm) == 0.2
    arm["relearning"]["taught"][2] = 0.89
    assert show.relearned(arm) == float("inf")


@pytest.mark.slow
def test_rank_one_and_ablation_go_from_one_neuron_to_all(
    erased: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, show, done = erased["methods"], analysis("erase_tables"), {}
    monkeypatch.setattr(methods, "SIZES", (1, 24))
    keys = list(methods.sizes(erased["study"], done))
    assert keys == list(done) and "rank_one@best 256" in keys and "ablate@random 256" not in keys
    assert done["ablate@best 1"]["forget"]["nll"] < done["ablate@best 24"]["forget"]["nll"]
    best = done["ablate@best 24"]
    row = f"| 24 | {best['unseen']['exact_match']:.2f} | {best['retain']['exact_match']:.2f} |"
    assert row in show.sizes_table([done])


@pytest.mark.slow
def test_rewriting_is_measured_on_the_fact_and_on_what_is_near(
    erased: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite, study, done = analysis("erase_rewrite"), erased["study"], {}
    for name, value in {"WRITERS": {"rank_one": nf.erase.rank_one}, "MEASURED": 8}.items():
        monkeypatch.setattr(rewrite, name, value)
    where = rewrite.places(study)
    assert list(rewrite.rewrites(study, done)) == [f"rank_one@{p} {n}" for p in where for n in ("one", "all")]
    assert set(where["found-lower"].by_layer()) == {0} and where["found-lower"].members <= study.found.members
    one, every = done["rank_one@full one"], done["rank_one@full all"]
    assert one["edited"]["preferred"] > 0.7 and one["edited"]["probability"] > 10 * rewritten_without(rewrite, study)
    assert one["neighbours"]["exact"] > 0.9 and set(every) == {"edited", "other", "retain"}
    assert f"| rank_one@full | {one['edited']['exact']:.2f} |" in rewrite.rewrite_table([done])


def rewritten_without(rewrite: ModuleType, study: Any) -> float:
    """How likely an edit's new answers are where nothing is edited: what success must be told from."""
    found = rewrite.one_by_one(study, lambda **_: nf.Edit(()))
    assert found["edited"]["preferred"] < 0.2 and found["same person"]["exact"] > 0.7
    return float(found["edited"]["probability"])


def test_every_operator_and_loss_is_in_the_analysis_of_erasure() -> None:
    methods = analysis("methods")
    others = {"Answer", "Answered", "Loss", "Outputs", "Passes", "learn"}
    others |= {"asks_for", "identity", "name_of", "names", "settings_of"}
    assert set(nf.losses.__all__) - others == set(methods.LOSSES)
    # dampen is ablation at a smaller strength, finetune is the losses, revive no erasure; the page names the rest
    untried = {"llm_eraser"}
    others = {"dampen", "finetune", "revive"}
    assert set(nf.erase.OPERATORS) - others - untried == set(methods.OPERATORS) | set(methods.GUARDS)
    page = (FOLDER.parent / "docs" / "erasure.md").read_text()
    assert all(f"`{name}`" in page for name in untried)


def test_the_page_shows_small_figures_that_are_there() -> None:
    page = (FOLDER.parent / "docs" / "erasure.md").read_text()
    for name in ("erasure-dials.svg", "erasure-methods.svg"):
        assert f"]({name})" in page and (FOLDER.parent / "docs" / name).stat().st_size < 300_000


def test_every_operator_and_guard_is_tried_and_shown_beside_the_references() -> None:
    every, made = analysis("every_operator"), import_module("sources").Source.bare(bed(), 0)
    edits = every.erasures(replace(made, forget=made.forget.head(8), retain=made.retain.head(40)))
    tried = {name.split("`")[1] for name in edits}
    # trainings (docs/losses.md), and what makes units anew or needs an adapter, have pages of their own
    elsewhere = {"finetune", "task_vector", "revive", "llm_eraser"}
    assert tried == set(nf.erase.OPERATORS) - set(nf.erase.guards.__all__) - elsewhere - {"ablate_mean"}
    few = {name: edits[name] for name in list(edits)[:1]}
    part = every.measured(made, few)
    rows = [line.split(" | ") for line in every.shown([part]).splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == ["untouched", "gold", *few]
    # the true neurons hold the facts of this bed: ablated, they leave few answers and all of what is retained
    assert float(rows[2][1]) < 0.2 < 0.8 < float(rows[0][1]) and float(rows[2][3]) > 0.95
    assert [row["scope"] for row in part["rows"]] == ["reference", "reference", "neurons"]
    scopes = {every.scope_of(name, edit) for name, edit in edits.items()}
    assert scopes == {"neurons", "own choice"}
    guard = nf.erase.guards.resample(made.lm, made.truth, made.retain)
    assert every.scope_of("`resample`", guard) == "guard" and every.scope_of("random neurons", guard) == "control"
