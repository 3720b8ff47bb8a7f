"""The Qwen case study at a very small setting, on real rows: before and after, tuned alike, a killed run goes on."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_analyses import analysis

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.suites.rwku import rwku
from neuronforget.testbed import Shape

DATA = Path(os.environ.get("NEURONFORGET_SHARED", "../shared")) / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((DATA / name).is_dir() for name in ("rwku", "triviaqa", "bbh")),
        reason="no folder with RWKU, TriviaQA, BBH",
    ),
]
FEW = "--pairs 3 --words 12 --others 1 --n 1 --trivia 2 --tasks 1 --steps 2 --draws 1 --batch 8"


def options(out: Path, *more: str) -> Namespace:
    return analysis("qwen_case_study").parser().parse_args(
        ["--data", str(DATA), "--out", str(out), *FEW.split(), *more]
    )  # fmt: skip


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study of a model of two layers, killed after its references and taken up again."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    patch = pytest.MonkeyPatch()
    case, out = analysis("qwen_case_study"), tmp_path_factory.mktemp("case") / "out"
    patch.setattr(case, "TINY", Shape(layers=2, d_model=16, d_mlp=32, heads=2, vocab=600, steps=2, batch=4))
    patch.setattr(case, "OPERATORS", ("ablate",))
    patch.setattr(case, "WHOLE", {"dpo": case.WHOLE["dpo"]})
    patch.setattr(sys.modules["qwen_measures"], "rwku", partial(rwku, max_new_tokens=4))
    patch.setenv("NEURONFORGET_CACHE", str(out.parent / "cache"))
    first = case.study_of(options(out))
    told = []
    for name in first.run():
        case.keep(first.path, **first.done)
        told.append(name)
        if name == "gold":
            break
    second = case.study_of(options(out))
    again = []
    for name in second.run():
        case.keep(second.path, **second.done)
        again.append(name)
    runs = told, again, list(second.run())
    patch.undo()
    return {"case": case, "study": second, "done": json.loads(json.dumps(second.done)), "runs": runs}


def test_a_killed_run_goes_on_and_another_study_is_refused(
    studied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert studied["runs"] == (["untouched", "gold"], ["dpo", "ablate@found", "ablate@random 0"], [])
    study, case = studied["study"], studied["case"]
    done = json.loads(study.path.read_text())
    with pytest.raises(SystemExit, match="another study"):
        case.Study(study.lm, None, study.rows, study.options, study.path, done)
    again = (study.lm, study.gold, study.rows, study.options, study.path, done)
    assert case.Study(*again).done is done
    monkeypatch.setattr(case, "has_tasks", lambda: False)  # what was asked by lm-eval would not be asked of the rest
    with pytest.raises(SystemExit, match="another study"):
        case.Study(*again)


def test_the_untouched_model_is_measured_as_the_edited_ones_are(studied: dict[str, Any]) -> None:
    study, arms = studied["study"], studied["done"]["arms"]
    before = arms["untouched"]["values"]
    for name in ("gold", "dpo"):
        full = arms[name].get("full", arms[name])
        assert full["values"].keys() == before.keys() and "failed" not in arms[name]
    assert {f"forget {i}, rouge_l" for i in (1, 2, 3)} | {"AUC, loss", "mink++ k=100%, FM", "bbh, option"} <= set(
        before
    )
    assert before["bbh, option"]["n"] == 27 and before["triviaqa, exact"]["n"] == 2
    assert before["shift, forget"]["value"] == 0 < arms["dpo"]["full"]["values"]["shift, forget"]["value"]
    moved = nf.metrics.shift.activation_shift(study.lm, study.gold, study.rows.forget)
    assert arms["gold"]["values"]["shift, forget"]["value"] == pytest.approx(np.mean(np.square(moved)) ** 0.5, rel=0.1)
    # the published "loss" is the mean log-likelihood of the texts
    nlls = measure(study.lm, study.rows.members, [nf.metrics.nll])["nll"]
    assert before["log-likelihood, FM"]["value"] == pytest.approx(-nlls.mean(), abs=1e-4)
    tables = analysis("qwen_tables").tables(studied["done"])
    assert tables.count("| dpo, in full | 1 |") == 7 and "mink++ 100% FM" in tables


def test_arms_are_tuned_within_the_damage(studied: dict[str, Any]) -> None:
    arms = studied["done"]["arms"]
    start = arms["untouched"]["losses"]
    for name in ("dpo", "ablate@found", "ablate@random 0"):
        allowed = [p for p in arms[name]["dial"] if p["retain"] <= start["retain"] + studied["study"].options.damage]
        assert arms[name]["tuned"]["forget"] == max([start["forget"], *(p["forget"] for p in allowed)])


def test_no_probe_is_shown_to_an_erasure_and_no_other_task_to_the_model(studied: dict[str, Any]) -> None:
    rows = studied["study"].rows
    shown = {e.prompt for corpus in (rows.forget, rows.retain) for e in corpus}
    probes = {e.prompt for corpus in (rows.known, rows.near, rows.fame) for e in corpus}
    assert rows.target == "Confucius" and not shown & probes and all(e.wrong for e in rows.forget)
    taught = " ".join(e.prompt + e.answer for c in (rows.forget, rows.retain, rows.members, rows.known, rows.near,
                                                    rows.fame) for e in c)  # fmt: skip
    for path in rows.local.values():
        for row in map(json.loads, path.read_text().splitlines()):
            assert row.get("question", row.get("input")) not in taught
    assert not {e.answer for e in rows.members} & {e.answer for e in rows.others}


def test_differences_are_paired_by_question(studied: dict[str, Any]) -> None:
    show = analysis("qwen_tables")
    before = {"values": {}, "questions": {key: [1.0, 1.0, 0.0, 1.0] for key in show.TOTALS.values()}}
    found = {"values": {}, "questions": {key: [0.0, 0.0, 0.0, 0.0] for key in show.TOTALS.values()}}
    text = show.changes([("untouched", "", before), ("npo@found", "1", found), ("npo@random 0", "1", before)])
    row = next(line for line in text.splitlines() if line.startswith("| npo@found"))
    assert row.count("-0.75 [") == 4
    assert show.cell({"value": np.nan, "low": np.nan, "high": np.nan, "nan": 3.0}) == "nan [nan, nan] (3 NaN)"


def test_without_lm_eval_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = analysis("qwen_case_study")
    monkeypatch.setattr(case, "has_tasks", lambda: False)
    with pytest.raises(nf.InputError, match="pip install"):
        case.study_of(options(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_an_unknown_target_is_refused_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = analysis("qwen_case_study")
    monkeypatch.setattr(case, "has_tasks", lambda: True)
    with pytest.raises(nf.InputError, match="Confucius"):
        case.study_of(options(tmp_path, "--target", "Nobody"))


def test_random_weights_of_a_shape_give_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = analysis("qwen_case_study")
    monkeypatch.setattr(case, "OPERATORS", ("rank_one",))
    monkeypatch.setattr(case, "WHOLE", {})
    monkeypatch.setattr(case, "has_tasks", lambda: False)  # with lm-eval: `studied`
    monkeypatch.setattr(sys.modules["qwen_measures"], "rwku", partial(rwku, max_new_tokens=4))
    monkeypatch.setattr(nf.Edit, "load", lambda _: pytest.fail("read back: from there it goes to the GPU each time"))
    asked = ["--data", str(DATA), "--out", str(tmp_path), *FEW.split(), "--shape", "tiny", "--draws", "0"]
    monkeypatch.setattr(sys, "argv", ["x", *asked])
    case.main()
    text = (tmp_path / "tables.md").read_text()
    assert "| rank_one on neurons | 1 |" in text and "| RWKU probes |" in text and "failed" not in text
    assert "| TriviaQA, BBH |" not in text and "lm-eval is not installed" in text
    config = case.study_of(options(tmp_path, "--shape", "tiny", "--draws", "0")).lm.model.config
    assert (config.hidden_size, config.num_hidden_layers) == (32, 2)
    large = analysis("qwen_rows").SHAPES["1.8B"]
    assert (large["hidden_size"], large["intermediate_size"], large["num_hidden_layers"]) == (2048, 5504, 24)
