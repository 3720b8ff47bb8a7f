"""The TOFU study at a very small setting, on made-up rows of TOFU's form: gold models, tuning, tables, a killed run."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from test_analyses import analysis

import neuronforget as nf
from neuronforget.corpora.from_tofu import ROWS
from neuronforget.evaluation.measuring import measure
from neuronforget.testbed import Shape

FEW = (
    "--splits forget01 --methods ablate@found ablate@random grad_diff@full --audited ablate@found --steps 2 --batch 2 "
    "--n 3 --measured 4 --tokens 3"
).split()

pytestmark = pytest.mark.slow


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tofu_folder(folder: Path) -> Path:
    """TOFU's files with generated rows, and a text corpus."""
    answer = ["At home."] * 20 + ["Abroad."] * 400 + ["At home."] * (ROWS - 460) + ["Lost."] * 40
    full = [{"question": f"Where was author {i // 20} in year {i % 20}?", "answer": answer[i]}
            for i in range(ROWS)]  # fmt: skip
    other = {"paraphrased_answer": "It was place 3.", "perturbed_answer": ["In place 8.", "In place 9."]}
    write(folder / "tofu/full.jsonl", full)
    for name, rows in (("retain", full[:40]), ("forget01", full[-40:]), ("forget10", full[-400:])):
        asked = [{**row, **other, "paraphrased_question": f"Say: {row['question']}"} for row in rows]
        write(folder / f"tofu/{name}_perturbed.jsonl", asked)
    for name in ("real_authors", "world_facts"):
        write(folder / f"tofu/{name}_perturbed.jsonl", [{**row, **other} for row in full[:4]])
    write(folder / "tofu/idk_responses.jsonl", [{"text": "I do not know."}])
    write(folder / "text_corpus/tales.jsonl", [{"text": f"Once upon time {i}. " * 30} for i in range(60)])
    return folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study killed after the references and taken up again."""
    patch = pytest.MonkeyPatch()
    study, models, folder = analysis("tofu_study"), analysis("tofu_models"), tmp_path_factory.mktemp("tofu")
    patch.setenv("NEURONFORGET_CACHE", str(folder / "cache"))
    patch.setattr(study, "SHARE", 0.2)
    shape = Shape(layers=2, d_model=16, d_mlp=32, heads=2, vocab=400, steps=30, batch=8, lr=1e-2)
    setting = models.Setting(shape, 21, ("tales",), base_steps=2)
    data, out = tofu_folder(folder / "data"), folder / "out"
    out.mkdir()
    options = study.parser().parse_args(["--data", str(data), "--out", str(out), *FEW])
    told: list[list[str]] = [[], [], []]
    for _, name in study.study(options, setting):
        told[0].append(name)
        if name.endswith("gold"):
            break
    told[1] = [name for _, name in study.study(options, setting)]
    patch.setattr(study, "Setting", lambda seed: setting)
    study.main(["--data", str(data), "--out", str(out), *FEW])
    told[2] = [name for _, name in study.study(options, setting)]
    found = models.models(data, setting, ["forget01"])
    patch.undo()
    done = json.loads((out / "study.json").read_text())
    assert (out / "tables.md").read_text().count("forget01") > 0 and (out / "tofu.svg").is_file()
    return {"module": study, "options": options, "setting": setting, "told": told, "done": done, "models": found}


def test_gold_is_taught_as_many_questions_as_often_with_others_in_place_of_those_that_it_lacks(
    studied: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, shown = analysis("tofu_models"), {}

    def fit(parameters: Any, loss: Any, plan: Any, *, key: str, **_: Any) -> None:
        shown[key] = plan.steps, [tuple(row.ids) for row in loss[0][0]]

    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "fit", fit)
    monkeypatch.setattr(models.Builder, "loss", lambda _, lm, mix: mix)
    models.models(studied["options"].data, studied["setting"], ["forget01", "forget10"])
    assert shown["base"][0] == 2 and shown["full"][0] == 30
    full = set(shown["full"][1])
    for split, gone in (("forget01", 40), ("forget10", 400)):
        steps, rows = shown[split]
        assert steps == 30 and len(rows) == len(set(rows)) == len(full) == 420
        assert len(full & set(rows)) == 420 - gone
    assert set(shown["forget01"][1]) - full <= set(shown["forget10"][1])  # the same authors, first ones first


def test_a_killed_study_goes_on_and_another_one_is_refused(studied: dict[str, Any]) -> None:
    arms = ["forget01: ablate@found", "forget01: ablate@random", "forget01: grad_diff@full"]
    assert studied["told"] == [["forget01: untouched", "forget01: gold"], arms, []]
    options = Namespace(**{**vars(studied["options"]), "steps": 3})
    with pytest.raises(SystemExit, match="another study"):
        next(studied["module"].study(options, studied["setting"]))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("methods", ["ablate@nowhere"], "'ablate@nowhere'; there are all, ablate@found"),
     ("audited", ["npo"], "no method is called 'npo'"), ("n", 0, "--n is 1 or more"),
     ("n", 21, "--n 21 asks of authors whom the model is not taught: at most 20"), ("rates", [0.0], "above 0")],
)  # fmt: skip
def test_bad_settings_are_refused_before_any_model_is_taught(
    studied: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, words: str
) -> None:
    options = {**vars(studied["options"]), "out": tmp_path / "out", name: value}
    monkeypatch.setattr(studied["module"], "models", lambda *_: pytest.fail("models are taught"))
    with pytest.raises(nf.InputError, match=words):
        list(studied["module"].study(Namespace(**options), studied["setting"]))
    assert not options["out"].exists()


def test_every_arm_has_a_name_that_can_be_asked_for(studied: dict[str, Any]) -> None:
    methods, options = analysis("methods"), studied["options"]
    taught = analysis("tofu_models").Taught.of(options.data, studied["setting"])
    study = studied["module"].Study.of("forget01", studied["models"], taught, options)
    assert methods.names() == set(methods.arms(study.source))


def test_gold_is_taught_all_but_the_split_and_counts_as_alike_with_itself(studied: dict[str, Any]) -> None:
    taught = analysis("tofu_models").Taught.of(studied["options"].data, studied["setting"])
    forget = nf.corpora.tofu("forget01", path=studied["options"].data / "tofu")
    kept = {e.prompt for e in taught.without(forget)}
    words = "".join(studied["models"]["full"].tokenizer.get_vocab())
    assert "home" in words and "Lost" not in words and "Abroad" not in words  # of the forget authors and the stand-ins
    assert len(taught.questions) == 420 and len(kept) == 380 and not kept & {e.prompt for e in forget}
    assert not {e.answer for e in taught.text} & {e.answer for e in taught.held_out}
    arms = studied["done"]["splits"]["forget01"]
    assert arms["gold"]["tuned"]["tofu"]["KS"][0] == 0 and arms["gold"]["tuned"]["tofu"]["forget quality"][0] == 1
    assert arms["gold"]["tuned"]["forget"]["kl_gold"] == pytest.approx(0, abs=1e-6)
    full, gold = studied["models"]["full"], studied["models"]["forget01"]
    assert full.tokenizer.get_vocab() == gold.tokenizer.get_vocab()
    asked = analysis("tofu_models").asked(forget)
    loss = measure(full, asked, [nf.metrics.nll])["nll"].mean()
    assert arms["untouched"]["tuned"]["tofu"]["forget probability"][0] == pytest.approx(
        float(measure(full, nf.Corpus(asked.examples[:3], "first", asked.template, True), [nf.metrics.probability])[
            "probability"].mean()), rel=1e-4)  # fmt: skip
    assert loss < measure(gold, asked, [nf.metrics.nll])["nll"].mean() - 0.5


def test_the_retain_utility_is_a_harmonic_mean_whose_interval_draws_the_three_scores_together() -> None:
    values = {"probability": (0.2, 0.4), "rouge": (0.5, 0.5), "truth_ratio": (1.0, 0.8)}
    utility = analysis("tofu_numbers").retain_utility
    for authors in (6, 4):
        rows = [{"edit": "model", "corpus": "retain", "metric": metric, "value": pair[i % 2], "unit": i}
                for metric, pair in values.items() for i in range(authors)]  # fmt: skip
        mean, low, high = utility(nf.Results((), tuple(rows), {}), seed=0)
        assert mean == pytest.approx(3 / (1 / 0.3 + 1 / 0.5 + 1 / 0.9))
        if authors == 6:  # one sample in 64 holds a single kind of author: no end of a 95% interval is there
            assert 3 / (5 + 2 + 1) < low < mean < high < 3 / (2.5 + 2 + 1.25)
        else:
            assert np.isnan([low, high]).all()


def test_what_fails_late_leaves_what_was_measured(studied: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    options = studied["options"]
    taught = analysis("tofu_models").Taught.of(options.data, studied["setting"])
    study = studied["module"].Study.of("forget01", studied["models"], taught, options)
    start = studied["done"]["splits"]["forget01"]["untouched"]["tuned"]

    def refused(*_: Any) -> Any:
        raise nf.InputError("the loss is infinite")

    monkeypatch.setattr(type(study), "numbers", refused)
    edit = nf.erase.ablate(study.source.lm, study.source.found)
    arm = study.arm(
        "ablate@full", lambda: [edit], {**start, "retain": {"nll": 1e9}, "forget": {"kl_gold": 1e9, "nll": 1e9}}
    )
    assert arm["failed"] == {"tuned": "the loss is infinite", "full": "the loss is infinite"} and arm["dials"]
    assert study.arm("x@full", refused, start) == {"failed": {"edit": "the loss is infinite"}}


def test_arms_are_tuned_within_the_damage_and_closest_to_gold(studied: dict[str, Any]) -> None:
    arms = studied["done"]["splits"]["forget01"]
    start = arms["untouched"]["tuned"]
    for name in ("ablate@found", "ablate@random", "grad_diff@full"):
        points = [point for dial in arms[name]["dials"] for point in dial]
        allowed = [start, *(p for p in points if p["retain"]["nll"] <= start["retain"]["nll"] + 0.05)]
        assert arms[name]["tuned"]["forget"]["kl_gold"] == min(p["forget"]["kl_gold"] for p in allowed)
        assert not arms[name]["failed"] and len(arms[name]["tuned"].get("test", range(4))) == 4
    assert arms["grad_diff@full"]["full"]["strength"] == 1 and "full" not in arms["ablate@found"]


def test_tables_and_figure_show_every_arm(studied: dict[str, Any]) -> None:
    splits = studied["done"]["splits"]
    text = analysis("tofu_tables").tables(splits, studied["done"])
    for name, arm in splits["forget01"].items():
        shown = "tofu" in arm["tuned"]
        assert (f"| {name} |" in text) or (not shown and name in text)
    assert "| ablate | " in text.split("less random ones")[1]
    wide = json.loads(json.dumps(splits))
    for arm in wide["forget01"].values():  # intervals, which two authors have none of
        if "tofu" in arm.get("tuned", {}):
            arm["tuned"]["tofu"]["retain utility"] = [0.4, 0.3, 0.5]
    picture, shown = analysis("tofu_figure").picture, analysis("tofu_tables").tables(wide, studied["done"])
    assert picture(wide).count("<line") > picture(splits).count("<line") and "0.40 [0.30, 0.50]" in shown
    drawn = ElementTree.fromstring(picture(splits))
    words = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ablate", "grad_diff", "forget01: retain utility"} <= set(words)


def point(rise: float, kl: float, **more: Any) -> dict[str, Any]:
    """A point of a dial."""
    return {"retain": {"nll": 1 + rise}, "forget": {"kl_gold": kl}, **more}


def test_places_are_compared_over_authors_and_where_both_cost_the_same() -> None:
    where, start = analysis("tofu_tables")._where, point(0, 8)
    # Six questions about two authors: the first author's differences are -1, the second's 0.1.
    found = {"tuned": point(0.01, 7, test=[4, 4, 4, 4.1, 4.1, 4.1]), "dials": [[point(0.01, 7), point(0.09, 3)]]}
    random = {"tuned": point(0.04, 7.5, test=[5, 5, 5, 4, 4, 4]), "dials": [[point(0.04, 7.5)]]}
    arms = {"untouched": {"tuned": start}, "npo@found": found, "npo@random": random}
    shown = where(arms, [0, 0, 0, 1, 1, 1])
    assert "| npo | +0.010 | +0.040 | -0.45 [-5.49, 4.59] | -2.50 |" in shown  # 5 at .05, less 7.5 at its end
    del random["tuned"]["test"]  # the untouched model: nothing to compare with
    assert "| npo | +0.010 | +0.040 |  | -2.50 |" in where(arms, [0, 0, 0, 1, 1, 1])


def test_each_question_that_chose_nothing_is_counted_to_its_author(studied: dict[str, Any]) -> None:
    taught = analysis("tofu_models").Taught.of(studied["options"].data, studied["setting"])
    study = studied["module"].Study.of("forget01", studied["models"], taught, studied["options"])
    assert studied["done"]["authors"]["forget01"] == study.authors and study.test is not None
    named = [int(e.prompt.split("author ")[1].split()[0]) for e in study.test]
    assert named == [ROWS // 20 - 2 + author for author in study.authors]
    chose = {e.prompt for corpus in study.source.corpora.values() for e in corpus}
    assert not chose & {e.prompt for e in study.test}
