"""Analyses of a model of one's own: from files alone, without a gold twin, without known neurons."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from beds import bed
from test_analyses import analysis

import neuronforget as nf

pytestmark = pytest.mark.slow

MAINS = (
    "activation_shift", "erase_methods", "erased_or_hidden", "every_operator", "ga_rt_sweep", "informs_erasure",
    "regime_map", "undone_alone", "where_knowledge_lives",
)  # fmt: skip


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint and its corpora in files, no other phrasings and no subjects, and a command line that names them."""
    made = bed()
    made.lm.save(tmp_path / "model")
    for name, corpus in (("forget", made.forget), ("retain", made.retain)):
        rows = [json.dumps({"prompt": e.prompt, "answer": e.answer}) for e in corpus.examples[:12]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    command = "x --seeds 0 --out {0}/out --model {0}/model --forget {0}/forget.jsonl --retain {0}/retain.jsonl"
    monkeypatch.setattr(sys, "argv", command.format(tmp_path).split())
    return tmp_path / "out"


@pytest.mark.parametrize("name", MAINS)
def test_an_analysis_of_one_s_own_model_needs_its_corpora(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = analysis(name).main
    for words, message in (
        ("--model folder", "--model needs --forget and --retain"),
        ("--forget a.jsonl --retain b.jsonl", "of a model of one's own: name it by --model"),
        ("--gold folder", "--gold is a twin of --model"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path / "out"), *words.split()])
        with pytest.raises(SystemExit, match=message):
            main()


def test_bad_corpora_end_in_one_line_and_write_nothing(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_model.parent / "forget.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(SystemExit, match="error: "):
        analysis("erase_methods").main()
    assert not own_model.exists()


def test_one_s_own_model_is_swept_without_a_gold_twin(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = analysis("ga_rt_sweep")
    monkeypatch.setattr(sweep, "STEPS", 2)
    monkeypatch.setattr(sweep, "WEIGHTS", (0.0,))
    monkeypatch.setattr(sweep, "run", partial(sweep.run, weights=(0.0,)))
    sweep.main()
    text = (own_model / "tables.md").read_text()
    assert "| ascent | 0 | full |" in text and "KL" not in text and "gold" not in text
    assert "loss forget, tuned." in text and "| loss forget |" in text
    drawn = (own_model / "ga-rt.svg").read_text()
    assert "loss of the forget answers" in drawn and "gold" not in drawn
    ElementTree.fromstring(drawn)


def test_shifts_of_one_s_own_model_are_measured_without_a_gold_twin(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = analysis("activation_shift")
    monkeypatch.setattr(shift, "STRENGTHS", (1.0,))
    monkeypatch.setattr(shift, "run", partial(shift.run, only=("ablate",)))
    shift.main()
    text = (own_model / "tables.md").read_text()
    assert "| ablate@found |" in text and "| ablate@random |" in text and "gold" not in text
    assert "forget unseen" not in text and "| log p forget |" in text
    ElementTree.fromstring((own_model / "shift.svg").read_text())


def arms(path: Path) -> dict[str, Any]:
    """What is kept of seed 0."""
    return dict(json.loads(path.read_text())["seeds"]["0"])


def test_methods_on_one_s_own_model_are_judged_by_how_likely_the_answers_stay(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, made = analysis("erase_methods"), bed()
    monkeypatch.setattr(import_module("relearning"), "TAUGHT", 3)
    monkeypatch.setattr(methods, "STRENGTHS", (0.5, 1.0))
    only = partial(methods.run, only=("ablate", "ssd", "grad_diff"))
    monkeypatch.setitem(methods.PARTS, "methods", (only, *methods.PARTS["methods"][1:]))
    methods.main()
    done, text = arms(own_model / "methods.json"), (own_model / "methods.md").read_text()
    start = done["untouched"]["tuned"]
    known, most = start["forget"]["nll"], start["retain"]["nll"] + 0.05
    assert f"| untouched | {start['forget']['exact_match']:.2f} |" in text
    assert "log p forget" in text and f"{-known:.2f}" in text and "KL" not in text and "gold" not in text
    assert "recall" not in text and "strangers" not in text
    for name, arm in ((name, arm) for name, arm in done.items() if "dials" in arm):
        within = [p for dial in arm["dials"] for p in dial if p["retain"]["nll"] <= most]
        best = max([known, arm["matched"]["forget"]["nll"], *(p["forget"]["nll"] for p in within)])
        assert arm["tuned"]["forget"]["nll"] == best, name
    scores = nf.attribute(made.lm, nf.corpora.jsonl(own_model.parent / "forget.jsonl"),
                          nf.corpora.jsonl(own_model.parent / "retain.jsonl"), progress=False)  # fmt: skip
    assert done["neurons"] == {"found": len(nf.select.per_layer(scores, 0.05))}
    for name in ("erasure-dials.svg", "erasure-methods.svg"):
        svg = (own_model / name).read_text()
        assert "log-probability of the answers, the forget corpus" in svg and "gold" not in svg
        ElementTree.fromstring(svg)


def trivial(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An analysis that measures next to nothing, so that only what it keeps is tried."""
    module = analysis(name)

    def run(source: Any, *given: Any) -> Any:
        if "a" not in given[-1]:
            given[-1]["a"] = {"neurons": sorted(source.found.random_like(source.seed).members)}
            yield "a"

    for stub in ("tables", "picture", "sizes_table", "dials", "dots"):
        if hasattr(module, stub):
            monkeypatch.setattr(module, stub, lambda *_, **__: "")
    if name == "informs_erasure":
        monkeypatch.setattr(module, "rows_of", lambda done: [])
    elif name == "where_knowledge_lives":
        monkeypatch.setattr(module, "rows_of", lambda source: [])
        monkeypatch.setattr(module, "facts_of", lambda source: {})
    elif name == "erased_or_hidden":
        monkeypatch.setattr(module, "audits", lambda source, done, out: run(source, done))
    elif name == "erase_methods":
        monkeypatch.setitem(module.PARTS, "methods", (run, lambda _: "", {}))
    elif name == "regime_controls":
        monkeypatch.setattr(module, "won", lambda arms: [])
        monkeypatch.setattr(module, "judged_by", lambda point: "")
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--seeds", "0", "1"])
        monkeypatch.setattr(module, "kept", partial(with_map, module.kept))
        monkeypatch.setattr(module, "claim", partial(but_for_the_map, module.claim))
    if hasattr(module, "run"):
        monkeypatch.setattr(module, "run", run)
    return module


def with_map(kept: Any, path: Path, name: str) -> Any:
    arms = {f"own model {seed}": {"untouched": {"tuned": {}}} for seed in (0, 1)}
    return kept(path, name) if path.name != "map.json" else arms if name == "beds" else {}


def but_for_the_map(claim: Any, path: Path, *given: Any) -> None:
    if path.name != "map.json":
        claim(path, *given)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ("model", "erase_methods"),
        ("gold", "erase_methods"),
        *(("retain", name) for name in (*MAINS, "regime_controls")),
    ],
)
def test_results_of_another_model_are_not_continued(
    changed: str, name: str, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, made = trivial(name, monkeypatch), bed()
    module.main()
    module.main()  # the same is
    if changed == "model":
        made.gold.save(own_model.parent / "model")
    elif changed == "gold":
        made.gold.save(own_model.parent / "gold")
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--gold", str(own_model.parent / "gold")])
    else:
        lines = (own_model.parent / "retain.jsonl").read_text().splitlines()
        (own_model.parent / "retain.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(SystemExit, match="0 is of another model or other corpora"):
        module.main()
    (path,) = own_model.glob("*.json")
    left = json.loads(path.read_text())
    left.pop("subjects")  # of a version that did not note it
    path.write_text(json.dumps(left))
    with pytest.raises(SystemExit, match="0 is of another model or other corpora"):
        module.main()


def test_seeds_of_one_s_own_model_are_those_of_random_neurons_and_need_something_to_vary(
    own_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = " ".join(sys.argv).replace("--seeds 0", "--seeds 0 1").split()
    monkeypatch.setattr(sys, "argv", command)
    trivial("erase_methods", monkeypatch).main()
    seeds = json.loads((own_model / "methods.json").read_text())["seeds"]
    assert seeds["0"]["a"]["neurons"] != seeds["1"]["a"]["neurons"]
    for name in ("erased_or_hidden", "undone_alone"):
        with pytest.raises(SystemExit):
            analysis(name).main()
        assert "nothing here depends on the seed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [word for word in command if word not in ("--seeds", "0", "1")])
    running = import_module("running")
    assert running.parsed(running.asking("About.", seeds=range(5))).seeds == [0]
    monkeypatch.setattr(sys, "argv", ["x", "--out", "out"])
    assert running.parsed(running.asking("About.", seeds=range(5))).seeds == [0, 1, 2, 3, 4]
    assert running.parsed(running.asking("About.")).seeds == [0]


def test_costs_of_another_model_are_not_continued(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = analysis("attribution_cost")
    row = {"ratio": 1.0, "lowest": 1.0, "highest": 1.0, "neurons": 1, "examples": 1, "turns": 1}
    monkeypatch.setattr(
        cost, "row_of", lambda _, corpus, score, turns: {**row, "score": score, "examples": len(corpus)}
    )
    asked = "x --scores grad_x_act --out {0} --model {1}/model --forget {1}/forget.jsonl"
    monkeypatch.setattr(sys, "argv", asked.format(own_model, own_model.parent).split())
    cost.main()
    cost.main()
    other = asked.replace("forget.jsonl", "retain.jsonl").format(own_model, own_model.parent)
    monkeypatch.setattr(sys, "argv", other.split())
    with pytest.raises(SystemExit, match="is of another model or other corpora"):
        cost.main()
    monkeypatch.setattr(sys, "argv", f"x --out {own_model}/new --model {own_model} --forget missing.jsonl".split())
    with pytest.raises(SystemExit, match="error: "):
        cost.main()


def test_a_twin_of_another_vocabulary_is_refused(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = deepcopy(bed().gold.model)
    gold.resize_token_embeddings(gold.config.vocab_size + 8)
    nf.LM(gold, bed().gold.tokenizer).save(own_model.parent / "gold")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--gold", str(own_model.parent / "gold")])
    with pytest.raises(SystemExit, match="gold is of another vocabulary"):
        analysis("regime_map").main()


@pytest.mark.parametrize("part", ["sizes", "rewrite"])
def test_other_parts_of_the_erasure_run_on_one_s_own_model(
    part: str, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, rewrite = analysis("erase_methods"), import_module("erase_rewrite")
    monkeypatch.setattr(methods, "SIZES", (8,))
    monkeypatch.setattr(rewrite, "WRITERS", {"rank_one": nf.erase.rank_one})
    monkeypatch.setattr(rewrite, "FACTS", 2)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--part", part])
    methods.main()
    done, text = arms(own_model / f"{part}.json"), (own_model / f"{part}.md").read_text()
    if part == "sizes":
        assert f"| 8 | {done['ablate@best 8']['forget']['exact_match']:.2f} |" in text and "log p forget, best" in text
    else:
        one = done["rank_one@full one"]
        assert one["edited"]["probability"] > 0.3 and set(one) == {"edited", "neighbours", "retain"}
        assert f"| rank_one@full | {one['edited']['exact']:.2f} |" in text


def test_every_operator_is_tried_on_the_found_neurons_of_one_s_own_model(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = analysis("every_operator")
    monkeypatch.setattr(every, "ON_NEURONS", ["ablate", "revs"])
    monkeypatch.setattr(every, "SETTINGS", {"revs": {"most": 0}})  # refused
    every.main()
    text = (own_model / "tables.md").read_text()
    assert "| `ablate` on the found neurons |" in text and "- `revs` on the found neurons, most=0: " in text
    assert "| gold |" not in text and "unseen" not in text


def test_requests_of_one_s_own_model_are_undone_alone(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undone = analysis("undone_alone")

    def npo(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus) -> nf.Edit:
        return nf.erase.finetune(lm, forget, retain, steps=3, progress=False)

    monkeypatch.setattr(undone, "npo", npo)
    undone.main()
    text = (own_model / "tables.md").read_text()
    assert "| ablate | A undone alone |" in text and "| npo | made without A |" in text


def test_scores_of_one_s_own_model_are_held_against_exact_ablation(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = analysis("where_knowledge_lives")
    names = ("exact", "grad_x_act", "random")
    monkeypatch.setattr(where, "SCORES", {name: where.SCORES[name] for name in names})
    monkeypatch.setattr(where.rows_of, "__defaults__", (where.SCORES | {"none": lambda *_, **__: refuse()},))
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--examples", "6"])
    where.main()
    done = json.loads((own_model / "rows.json").read_text())["beds"]["own model 0"]
    text = (own_model / "tables.md").read_text()
    rows = {row["score"]: row for row in done["rows"]}
    assert rows["exact"]["spearman"] == pytest.approx(1) and abs(rows["random"]["spearman"]) < 0.3
    assert set(done["facts"]) == {"model, forget", "model, retain"} and "recall" not in text
    assert "## own model (1 seed)" in text and "- none: it cannot be had" in text


def refuse() -> Any:
    raise nf.InputError("it cannot be had")


def test_the_map_of_one_s_own_model_and_its_controls(own_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regimes, controls = analysis("regime_map"), analysis("regime_controls")
    for name, value in {"SIZES": (0.1,), "STRENGTHS": (0.5, 1.0), "DRAWS": 2, "OPERATORS": ("ablate", "ga"),
                        "SELECTIONS": {"grad_x_act": nf.scores.grad_x_act}}.items():  # fmt: skip
        monkeypatch.setattr(regimes, name, value)
    monkeypatch.setattr(import_module("relearning"), "TAUGHT", 3)
    with pytest.raises(SystemExit, match="of one seed nothing is told apart"):
        controls.main()
    command = [word if word != "0" else "0 1" for word in sys.argv]
    monkeypatch.setattr(sys, "argv", command := " ".join(command).split())
    with pytest.raises(SystemExit, match="has not 'own model 0': run regime_map"):
        controls.main()
    regimes.main()
    done = json.loads((own_model / "map.json").read_text())["beds"]
    arm, start = done["own model 0"]["ablate|0.1|grad_x_act"], done["own model 0"]["untouched"]["tuned"]
    likely = [start, *(p for p in arm["dial"] if p["retain"]["nll"] <= start["retain"]["nll"] + 0.05)]
    assert arm["tuned"]["forget"]["nll"] == max(p["forget"]["nll"] for p in likely)
    text, svg = (own_model / "tables.md").read_text(), (own_model / "map.svg").read_text()
    assert "| model | forget | retain | log p forget |" in text and "KL" not in text and "near facts" not in text
    assert "Log-probability on the forget corpus" in svg and "gold" not in svg
    ElementTree.fromstring(svg)
    monkeypatch.setattr(controls, "won", lambda arms: [("ablate", "0.1", "grad_x_act")])
    controls.main()
    assert "| own model | ablate | 10.00% | grad_x_act |" in (own_model / "controls.md").read_text()
    informs = analysis("informs_erasure")
    monkeypatch.setattr(sys, "argv", [*command, "--map", str(own_model)])
    with pytest.raises(SystemExit, match="--map holds points that were measured"):
        informs.main()
    monkeypatch.setattr(sys, "argv", f"x --out {own_model} --seeds 0 1 --map {own_model}".split())
    informs.main()
    assert "## log p itself" in (own_model / "tables.md").read_text()


@pytest.mark.parametrize("twin", [False, True])
def test_what_being_chosen_adds_is_asked_of_one_s_own_model(
    twin: bool, own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    informs = analysis("informs_erasure")
    monkeypatch.setattr(informs, "OPERATORS", ("ablate",))
    if twin:
        bed().gold.save(own_model.parent / "gold")
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--gold", str(own_model.parent / "gold")])
    informs.main()
    text, done = (own_model / "tables.md").read_text(), arms(own_model / "points.json")
    assert set(done) == {f"ablate|{layer}|{n}|{kind}" for layer in ("all", "0", "1") for n in (4, 32)
                         for kind in ("chosen", "random")}  # fmt: skip
    left, svg = [v for v in done.values() if v is not None], (own_model / "informs.svg").read_text()
    if twin:
        assert "## KL itself" in text and min(left) > 0 and "are closer to the gold twin" in svg
    else:
        assert "## log p itself" in text and "gold" not in text and max(left) < 0 and "leave the answers less" in svg


def test_edits_of_one_s_own_model_are_audited_on_its_found_neurons(
    own_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = analysis("erased_or_hidden")
    few = hidden.cases
    tried = ("ablate the found neurons",)
    monkeypatch.setattr(hidden, "cases", lambda source: {k: few(source)[k] for k in tried} | {"bad": refuse})
    hidden.main()
    text, done = (own_model / "tables.md").read_text(), arms(own_model / "audits.json")
    assert set(done["ablate the found neurons"]) == {"no gold"}
    assert "the found neurons" in (own_model / "ablate-the-found-neurons.html").read_text()
    assert "- bad: it cannot be had" in text and "| nf4, forget |" in text
    assert "| audited | without one |" in text and "less its reference" in text and "KL" not in text
    source = import_module("sources").Source.of(bed(), 0)
    assert "npo on the true neurons" in few(source) and "gold" in few(source)


def test_what_follows_is_asked_of_one_s_own_model_in_chains_of_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows, lm = analysis("what_follows"), bed().lm
    facts = [{"relation": "a", "subject": f"s{i}", "object": f"m{i}"} for i in range(3)]
    facts += [{"relation": "b", "subject": f"m{i}", "object": f"o{i}"} for i in range(3)]
    kinds = {"domain_name": "x", "range_name": "y"}
    forms = [{"relation": name, "prompt_templates": [f"The {name} of {{}} is a"], **kinds} for name in "ab"]
    for name, lines in (("templates", forms), ("samples", facts)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(nf.InputError, match="answers 0 of 6 facts"):
        follows.of_facts(lm, None, tmp_path, 0)
    # as if the model answered every question: of two facts that chain one is forgotten, and asked in the chain
    monkeypatch.setattr(follows, "right", lambda lm, corpus: list(range(len(corpus))))
    asked = follows.of_facts(lm, None, tmp_path, 0)
    gone = {(e.subject, e.answer) for e in asked.source.forget}
    assert len(gone) == 3 and len(asked.source.retain) == 3
    steps = {"first step": 0, "second step": 0, "kept questions": 0}
    for i in range(3):
        first, second = (f"s{i}", f"m{i}") in gone, (f"m{i}", f"o{i}") in gone
        steps["first step" if first else "second step" if second else "kept questions"] += 1
    assert {name: len(c) for name, c in asked.corpora.items() if name in steps} == {k: v for k, v in steps.items() if v}
    lm.save(tmp_path / "model")
    command = f"x --seeds 0 --out {tmp_path}/out --model {tmp_path}/model --data {tmp_path}"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(follows, "edits_of", lambda source: {"none": lambda: nf.Edit(()), "bad": refuse})
    follows.main()
    source = asked.source
    others = {**asked.corpora, "kept questions": source.forget}
    assert follows.Questions(source, others).key != asked.key == follows.Questions(source, asked.corpora).key
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "**own model** (1 seed)" in text and "| none | 1.00 | 1.00 |" in text and "given back" not in text
    assert "- not made: bad: it cannot be had" in text
    monkeypatch.setattr(sys, "argv", command.split()[:-2])
    with pytest.raises(SystemExit, match="--model and --data go together"):
        follows.main()
