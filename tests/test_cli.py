"""The command line: every command on a tiny model, and one clear line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commanding import run

import neuronforget as nf
from neuronforget.commands.console import named
from neuronforget.edits import Edit
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny testbed folder, made by the command line itself."""
    shape = nf.testbed.Shape(layers=2, d_model=32, d_mlp=64, heads=2, steps=40, graft_steps=40, planted=4, batch=64)
    made = nf.testbed.people(people=8, forget_people=2, shape=shape, cache=False, progress=False)
    folder = tmp_path_factory.mktemp("beds") / "bed"
    made.save(folder)
    return folder


def data(bed: Path) -> list[object]:
    return ["--model", bed / "model", "--forget", bed / "forget.jsonl", "--retain", bed / "retain.jsonl"]


def test_the_steps_lead_from_a_checkpoint_to_a_report(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(monkeypatch, "attribute", *data(bed), "--out", tmp_path / "a", "--share", 0.1, "--tap", "torch_hooks") == 0
    )
    neurons = Neurons.load(tmp_path / "a" / "neurons.json")
    scores = Scores.load(tmp_path / "a" / "scores.safetensors")
    assert neurons == nf.select.per_layer(scores, 0.1)
    page = (tmp_path / "a" / "map.html").read_text()
    assert page.startswith("<!doctype html>") and 'aria-label="Map of the neurons.' in page

    edit_file, exported = tmp_path / "ablate.safetensors", tmp_path / "exported"
    words = ["--neurons", tmp_path / "a" / "neurons.json", "--out", edit_file, "--export", exported]
    assert run(monkeypatch, "erase", *data(bed), *words) == 0
    lm, plain = nf.load(bed / "model"), nf.load(exported)
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), Edit.load(edit_file).on(lm):
        assert torch.equal(lm.model(tokens).logits, plain.model(tokens).logits)

    words = ["--gold", bed / "gold", "--out", tmp_path / "results"]
    assert run(monkeypatch, "evaluate", edit_file, *data(bed), *words) == 0
    results = nf.Results.load(tmp_path / "results")
    assert {"untouched", "gold", "ablate"} == set(results.frame["edit"])
    assert results.info["command"].startswith(f"neuronforget evaluate {edit_file} --model")
    assert run(monkeypatch, "report", tmp_path / "results", "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text()
    assert results.info["command"] in page and "Ablating the selected neurons leaves forget at" in page
    assert "Certificate</h2>" in page and "Map of the neurons" not in page
    assert "exact match" in capsys.readouterr().out
    lm, rows = nf.load(bed / "model"), [nf.corpora.jsonl(bed / f"{name}.jsonl") for name in ("forget", "retain")]
    nf.audit(lm, Edit.load(edit_file), *rows, probes=["choice"], progress=False).save(tmp_path / "an audit")
    (tmp_path / "an audit" / "audit.html").write_text("its page")
    words = ["--scores", tmp_path / "a", "--audits", tmp_path / "an audit", "--out", tmp_path / "whole" / "report.html"]
    assert run(monkeypatch, "report", tmp_path / "results", *words) == 0
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Map of the neurons" in page and f"{len(neurons)} selected by {scores.name}, " in page
    assert 'href="../an%20audit/audit.html">Read the audit of an audit' in page
    twice = ["--audits", tmp_path / "an audit", tmp_path / "results" / ".." / "an audit", "--out", tmp_path / "no.html"]
    assert run(monkeypatch, "report", tmp_path / "results", *twice) == 2 and not (tmp_path / "no.html").exists()


def test_attribution_alone_does_without_retain(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, out = data(bed)[:4], tmp_path / "out.safetensors"
    assert run(monkeypatch, "attribute", *alone, "--tap", "torch_hooks", "--out", tmp_path / "a") == 0
    lm, forget = nf.load(bed / "model"), nf.corpora.jsonl(bed / "forget.jsonl")
    expected = nf.attribute(lm, forget, tap="torch_hooks", progress=False)
    assert torch.equal(Scores.load(tmp_path / "a" / "scores.safetensors").values, expected.values)
    edit, chosen = tmp_path / "edit.safetensors", ("--neurons", tmp_path / "a" / "neurons.json")
    assert run(monkeypatch, "erase", *alone, *chosen, "--out", edit) == 0
    trained = ("--method", "finetune", "--loss", "ga", "--steps", 1, "--out", tmp_path / "trained.safetensors")
    assert run(monkeypatch, "erase", *alone, *chosen, *trained) == 0
    assert Edit.load(edit).info["neurons"] == Edit.load(tmp_path / "trained.safetensors").info["neurons"]
    capsys.readouterr()
    asking = ["erase", "--method", "leace"], ["erase", "--method", "ssd"], ["erase", "--method", "finetune"]
    commands = ["attribute", "--score", "expert"], *asking, ["evaluate", edit], ["audit", edit]
    for words in commands:
        assert run(monkeypatch, *words, *alone, "--out", out) == 2
        said = capsys.readouterr().err.strip()
        assert "retain" in said and "\n" not in said and not out.exists(), said


def test_settings_of_a_score_are_set_by_name(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--score", "exact", "--set", "position=-1", "neurons=[(0, 1), (1, 2)]", "--out", tmp_path / "a"]
    assert run(monkeypatch, "attribute", *data(bed)[:4], *words) == 0
    lm, forget = nf.load(bed / "model"), nf.corpora.jsonl(bed / "forget.jsonl")
    asked: dict[str, Any] = {"position": -1, "neurons": [(0, 1), (1, 2)]}
    expected = nf.attribute(lm, forget, score=nf.scores.exact, progress=False, **asked)
    found = Scores.load(tmp_path / "a" / "scores.safetensors")
    assert found.name == "exact:-1" and torch.equal(found.values, expected.values)


def test_an_attribution_that_was_killed_is_resumed(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronforget import attribution
    from neuronforget.recording import recording
    from neuronforget.recording.unfinished import Unfinished

    monkeypatch.setattr(attribution, "Unfinished", partial(Unfinished, every=0))
    measure, state, done = recording.record_batch, tmp_path / "state", []

    def counted(*args: Any, **settings: Any) -> nf.Moments:
        done.append(len(done))
        if len(done) == 5:
            raise KeyboardInterrupt
        return measure(*args, **settings)

    monkeypatch.setattr(recording, "record_batch", counted)
    words = ["attribute", *data(bed), "--tap", "torch_hooks", "--batch-size", 8, "--resume", state]
    assert run(monkeypatch, *words, "--out", tmp_path / "a") == 130
    assert len(list(state.iterdir())) == 2 and not (tmp_path / "a").exists()  # both corpora
    assert run(monkeypatch, *words, "--out", tmp_path / "a") == 0
    resumed = len(done) - 5
    assert run(monkeypatch, *words, "--out", tmp_path / "b") == 0
    assert len(done) - 5 - resumed == resumed + 4  # all batches, of which four were done before
    found, whole = (Scores.load(tmp_path / name / "scores.safetensors") for name in "ab")
    assert torch.equal(found.values, whole.values) and not state.exists()


def test_training_and_rank_one_make_edits_too(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    better, refusals = tmp_path / "finetune learn.safetensors", tmp_path / "refusals.txt"
    refusals.write_text("unknown\n")
    cases: list[tuple[str, list[object]]] = [("finetune", ["--loss", name]) for name in ("grad_diff", "learn", "altpo")]
    cases += [("finetune", ["--loss", "whp", "--reinforced", better]), ("rank_one", []), ("task_vector", [])]
    cases += [("finetune", ["--loss", "idk_ap", "--refusals", refusals])]
    for method, extra in cases:
        name = " ".join([method, *map(str, extra[1:2])])
        words = ["--method", method, "--out", tmp_path / f"{name}.safetensors", "--steps", 2, *extra]
        assert run(monkeypatch, "erase", *data(bed), *words) == 0
        info = Edit.load(tmp_path / f"{name}.safetensors").info
        assert info["method"].startswith(method) and info.get("loss", name) in (*extra, "learn", name)


def test_every_loss_has_its_name_on_the_command_line(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = {n for n in nf.losses.__all__ if n.islower()} - {"asks_for", "identity", "name_of", "settings_of", "names"}
    for name in names:
        assert nf.losses.name_of(named(name, nf.losses)) == name
    words = ["--method", "finetune", "--out", tmp_path / "x.safetensors", "--loss"]
    assert run(monkeypatch, "erase", *data(bed), *words, "nonesuch") == 2
    known = capfd.readouterr().err.partition("known: ")[2].partition(";")[0]
    assert set(known.replace("\n", " ").replace(",", " ").split()) == names
    for loss, needs in (("whp", "reinforced"), ("rt", "preferred")):
        assert run(monkeypatch, "erase", *data(bed), *words, loss) == 2
        assert needs in capfd.readouterr().err


def test_every_operator_makes_an_edit_by_its_name(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronforget.erase import OPERATORS
    from neuronforget.erase.catalogue import takes

    nf.Neurons(frozenset((k, j) for k in (0, 1) for j in range(20)), (0, 1), 64).save(tmp_path / "neurons.json")
    settings = {
        "concept_vector": ["most=4"],
        "revs": ["most=4", "rank=9"],
        "ssd": ["alpha=0.5"],
        "alpha_edit": ["cut=0.2"],
    }
    for method in sorted(set(OPERATORS) - {"finetune", "rank_one", "llm_eraser"}):
        out = tmp_path / f"{method}.safetensors"
        at = ["--neurons", tmp_path / "neurons.json"] if takes(OPERATORS[method], "neurons") else []
        words = ["--method", method, *at, "--out", out]
        extra = ["--set", *settings[method]] if method in settings else []
        assert run(monkeypatch, "erase", *data(bed), *words, *extra) == 0, method
        info = Edit.load(out).info
        made_as = info["method"].removeprefix("guards.")
        assert made_as.startswith("ablate:mean" if method == "ablate_mean" else method)
        assert (info["scope"] == "guard") == info["method"].startswith("guards.")
        assert info["scope"] == "guard" or info["units"]
        if method in ("revs", "ssd"):
            assert info["rank"] == 9 if method == "revs" else info["alpha"] == 0.5


def test_an_operator_of_ones_own_runs_by_its_module(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent / "examples")
    nf.Neurons(frozenset((k, j) for k in (0, 1) for j in range(20)), (0, 1), 64).save(tmp_path / "neurons.json")
    words = [*data(bed), "--neurons", tmp_path / "neurons.json", "--out", tmp_path / "edit.safetensors"]
    assert run(monkeypatch, "erase", *words, "--method", "own_operator:share", "--set", "power=2") == 0
    lm, corpora = nf.load(bed / "model"), [nf.corpora.jsonl(bed / f"{name}.jsonl") for name in ("forget", "retain")]
    edit, (forget, retain) = Edit.load(tmp_path / "edit.safetensors"), (nf.record(lm, c)["abs_sum"] for c in corpora)
    forget, retain = forget / nf.record(lm, corpora[0]).tokens, retain / nf.record(lm, corpora[1]).tokens
    change = edit.changes[0]
    assert change.before is not None and change.index is not None
    kept = ((retain / (forget + retain)) ** 2)[0, change.index]
    torch.testing.assert_close(change.after.double(), change.before.double() * kept, rtol=1e-4, atol=1e-6)
    assert run(monkeypatch, "erase", *words, "--method", "own_operator:none") == 2
    assert "no function 'own_operator:none'" in capfd.readouterr().err


def test_an_adapter_that_peft_saved_is_erased_from_the_command_line(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lm = nf.load(bed / "model")
    adapter = nf.erase.learn_adapter(lm, nf.corpora.jsonl(bed / "retain.jsonl"), lora=2, steps=2, progress=False)
    adapter.save(tmp_path / "adapter")
    adapter.edit(lm).export(lm, tmp_path / "merged")
    words = ["--model", tmp_path / "merged", "--forget", bed / "forget.jsonl", "--retain", bed / "retain.jsonl"]
    words += ["--method", "llm_eraser", "--out", tmp_path / "erased.safetensors"]
    assert run(monkeypatch, "erase", *words) == 2 and "needs the setting adapter" in capfd.readouterr().err
    assert run(monkeypatch, "erase", *words, "--set", f"adapter={tmp_path / 'nowhere'}") == 2
    assert "no such file" in capfd.readouterr().err and not (tmp_path / "erased.safetensors").exists()
    settings = [f"adapter={tmp_path / 'adapter'}", "damping=1.0", "tolerance=0.9", "steps=50"]
    assert run(monkeypatch, "erase", *words, "--set", *settings) == 0
    assert Edit.load(tmp_path / "erased.safetensors").info["method"] == "llm_eraser"


def test_a_setting_that_an_operator_has_not_is_refused_before_the_model_is_read(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("neuronforget.commands.console.load", lambda *_, **__: pytest.fail("the model was read"))
    for words, said in (
        (["--method", "rank_one", "--set", "power=2"], "rank_one has no setting 'power'"),
        (["--method", "memit", "--loss", "npo"], "memit has no setting 'loss'"),
        (["--method", "noise"], "noise edits chosen neurons"),
        (["--method", "rank_on"], "known: ablate"),
    ):
        assert run(monkeypatch, "erase", *data(bed), *words, "--out", tmp_path / "edit.safetensors") == 2
        assert said in capfd.readouterr().err
    assert not (tmp_path / "edit.safetensors").exists()


def test_what_a_command_cannot_take_is_refused_before_the_model_is_read(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lm = nf.load(bed / "model")
    edit, file = tmp_path / "edit.safetensors", bed / "forget.jsonl"
    nf.erase.ablate(lm, Neurons(frozenset({(0, 1)}), (0, 1), 64)).save(edit)
    monkeypatch.setattr("neuronforget.commands.console.load", lambda *_, **__: pytest.fail("the model was read"))
    for command, words, said in (
        (("attribute",), ("--resume", file), "is a file: name a folder"),
        (("attribute",), ("--batch-size", 0), "attribute: batch_size must be a whole number >= 1, found 0"),
        (("attribute",), ("--set", "contrst=z"), "has no setting 'contrst'; it has contrast"),
        (("attribute",), ("--set", "contrast=zed"), "contrast must be 'difference' or 'ratio' or 'z'; found 'zed'"),
        (("attribute",), ("--set", "batch_size=3"), "batch_size is given by --set and by an option of its own"),
        (("evaluate", edit), ("--kept", file), "is a file: name a folder"),
        (("evaluate", edit), ("--damage", 0), "evaluate: damage must be a number > 0, found 0.0"),
        (("audit", edit), ("--kept", file), "is a file: name a folder"),
        (("audit", edit), ("--seed", -1), "audit: seed must be a whole number >= 0, found -1"),
        (("compare",), ("--steps", 0), "compare: steps must be a whole number >= 1, found 0"),
    ):
        assert run(monkeypatch, *command, *data(bed), *words, "--out", tmp_path / "out") == 2
        error = capfd.readouterr().err
        assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_setting_of_several_parts_is_given_by_their_names(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--loss", "ga", "--steps", 2, "--out", tmp_path / "edit.safetensors", "--method", "finetune", "--set"]
    assert run(monkeypatch, "erase", *data(bed), *words, "budget={'rise': 9.0, 'every': 1, 'examples': 4}") == 0
    assert Edit.load(tmp_path / "edit.safetensors").info["budget"] == {"rise": 9.0, "every": 1, "examples": 4}
    capfd.readouterr()
    for given, said in (
        ("budget={'rise': 9.0, 'evry': 1}", "budget is given by rise, every, examples; found"),
        ("budget={'rise': 9.0, 'every': 0}", "Budget: every must be a whole number >= 1, found 0"),
        ("budget=much", "finetune: budget must be a number or Budget; found 'much'"),
    ):
        assert run(monkeypatch, "erase", *data(bed), *words, given) == 2
        error = capfd.readouterr().err
        assert said in error and error.count("\n") == 1


def test_an_option_given_twice_is_refused_for_the_first_would_be_dropped(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--loss", "ga", "--set", "lr=1", "--set", "steps=3", "--out", tmp_path / "edit.safetensors"]
    assert run(monkeypatch, "erase", *data(bed), *words) == 2
    assert "--set is given twice" in capfd.readouterr().err and not (tmp_path / "edit.safetensors").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("brief_relearning")
def test_compare_writes_everything_into_one_folder(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path / "cache"))
    assert run(monkeypatch, "compare", "--testbed", bed, "--out", tmp_path / "out", "--steps", 2) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "results", "scores.safetensors", "neurons.json", "edits", "comparison.json"} <= names
    again = tmp_path / "out" / "again.html"
    assert run(monkeypatch, "report", tmp_path / "out", "--out", again) == 0
    assert again.read_bytes() == (tmp_path / "out" / "report.html").read_bytes()
    assert run(monkeypatch, "report", tmp_path / "out", "--scores", bed, "--out", tmp_path / "no.html") == 2
    again.unlink()
    frame = nf.Results.load(tmp_path / "out" / "results").frame
    expected = {"untouched", "gold", "ablate", "ablate@random 0", "ga@neurons", "npo@neurons", "npo@random 0"}
    assert expected | {"ga", "dpo", "npo", "rank_one@neurons"} <= set(frame["edit"])
    assert run(monkeypatch, "compare", "--testbed", bed, "--out", tmp_path / "out", "--steps", 2) == 2


@pytest.mark.slow
def test_compare_runs_on_two_files_of_plain_text(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path / "cache"))
    for name in ("forget", "retain"):
        rows = nf.corpora.jsonl(bed / f"{name}.jsonl", n=6)
        text = [json.dumps({"text": f"{e.prompt} {e.answer}"}) for e in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(text))
    words = ["--model", bed / "model", "--forget", tmp_path / "forget.jsonl", "--retain", tmp_path / "retain.jsonl"]
    assert run(monkeypatch, "compare", *words, "--out", tmp_path / "out", "--steps", 2) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def _nan_model(bed: Path, folder: Path) -> Path:
    lm = nf.load(bed / "model")
    with torch.no_grad():
        next(iter(lm.parameters.values()))[0, 0] = torch.nan
    lm.save(folder)
    return folder


CASES = {
    "a missing corpus": (lambda bed, tmp: {"--forget": tmp / "nowhere.jsonl"}, "no such file"),
    "a missing model": (lambda bed, tmp: {"--model": tmp / "nowhere"}, "no model folder"),
    "a folder that is no model": (lambda bed, tmp: {"--model": bed}, "config.json"),
    "malformed JSON": (
        lambda bed, tmp: {"--forget": _file(tmp, '{"prompt": "a", "answer": "b"}\n{"prompt": ')},
        "line 2",
    ),
    "a row without an answer": (
        lambda bed, tmp: {"--forget": _file(tmp, '{"prompt": "a"}')},
        "line 1: no string field",
    ),
    "an empty corpus": (lambda bed, tmp: {"--retain": _file(tmp, "\n")}, "is empty"),
    "overlapping corpora": (lambda bed, tmp: {"--retain": bed / "forget.jsonl"}, "share"),
    "an empty answer": (lambda bed, tmp: {"--forget": _file(tmp, '{"prompt": "a", "answer": ""}')}, "no answer token"),
    "a sequence over the model's length": (
        lambda bed, tmp: {"--forget": _file(tmp, json.dumps({"text": "born in " * 500}))},
        "the model takes",
    ),
    "NaN weights": (lambda bed, tmp: {"--model": _nan_model(bed, tmp / "nan")}, "NaN"),
    "an unknown score": (lambda bed, tmp: {"--score": "nonesuch"}, "no function 'nonesuch'"),
    "a subject that is no text": (
        lambda bed, tmp: {"--forget": _file(tmp, '{"prompt": "a", "answer": "b", "subject": 5}')},
        "line 1: field 'subject' must be a string",
    ),
    "paraphrases that are no list": (
        lambda bed, tmp: {"--forget": _file(tmp, '{"prompt": "a", "answer": "b", "paraphrases": {"x": 1}}')},
        "line 1: field 'paraphrases' must be a list",
    ),
    "half of a surrogate pair": (
        lambda bed, tmp: {"--forget": _file(tmp, '{"prompt": "\\ud800", "answer": "b"}')},
        "line 1: half of a surrogate pair",
    ),
    "brackets without end": (lambda bed, tmp: {"--forget": _file(tmp, "[" * 100_000)}, "line 1: not a row"),
    "a number of 5,000 digits": (lambda bed, tmp: {"--forget": _file(tmp, "1" * 5000)}, "line 1: not a row"),
    "a template that asks for more": (lambda bed, tmp: {"--template": "{prompt.foo}"}, "template must be"),
    "a relative module": (lambda bed, tmp: {"--score": "..:x"}, "no function '..:x'"),
    "a function of another kind": (lambda bed, tmp: {"--score": "os:getcwd"}, "cannot be called as scores are"),
    "tofu without a network": (
        lambda bed, tmp: {"--forget": "tofu:forget10"},
        "give tofu:forget10@FOLDER, where FOLDER holds full.jsonl",
    ),
    "an output below a file": (lambda bed, tmp: {"--out": _file(tmp, "x") / "out"}, "cannot write"),
}


def _file(tmp: Path, text: str) -> Path:
    path = tmp / "written.jsonl"
    path.write_text(text)
    return path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["attribute", "compare"])
def test_bad_input_gives_one_line_and_leaves_nothing(
    case: str,
    command: str,
    bed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change, message = CASES[case]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = dict(zip(*[iter(data(bed))] * 2, strict=True)) | {"--out": tmp_path / "out"} | change(bed, tmp_path)
    before = {path for path in tmp_path.iterdir()}
    capfd.readouterr()
    assert run(monkeypatch, command, *(word for pair in words.items() for word in pair)) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("neuronforget: ")]
    assert len(lines) == 1 and message in lines[0]
    assert {path for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "words", [("attribute", "--top", 10_000), ("attribute", "--share", 1.5), ("compare", "--share", 65)]
)
def test_more_neurons_than_there_are_is_said_before_any_recording(
    words: tuple[object, ...],
    bed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def record(*_: Any, **__: Any) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr("neuronforget.attribution.record", record)
    monkeypatch.setattr("neuronforget.comparing.run.record", record)
    assert run(monkeypatch, *words, *data(bed), "--out", tmp_path / "out") == 2
    assert "cannot select" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_refused_input_leaves_no_folders_behind(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        *data(bed)[:2],
        "--forget",
        tmp_path / "nowhere",
        *data(bed)[4:],
        "--out",
        tmp_path / "new" / "newer" / "out",
    ]
    assert run(monkeypatch, "attribute", *words) == 2
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Neurons, "save", full)
    assert run(monkeypatch, "attribute", *data(bed), "--tap", "torch_hooks", "--out", tmp_path / "a" / "out") == 2
    assert "No space left on device" in capfd.readouterr().err and not list((tmp_path / "a").iterdir())


def test_an_output_may_be_a_link_to_an_empty_folder(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run(monkeypatch, "attribute", *data(bed), "--tap", "torch_hooks", "--out", tmp_path / "out") == 0
    assert (tmp_path / "disk" / "neurons.json").is_file() and (tmp_path / "out").is_symlink()


def test_the_models_own_weights_are_never_an_output(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nf.Neurons(frozenset({(0, 1)}), (0, 1), 64).save(tmp_path / "neurons.json")
    weights = bed / "model" / "model.safetensors"
    before, words = weights.read_bytes(), [*data(bed), "--neurons", tmp_path / "neurons.json"]
    assert run(monkeypatch, "erase", *words, "--out", weights) == 2
    assert run(monkeypatch, "erase", *words, "--out", bed / "model" / "edit.safetensors") == 2
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(before)
    assert run(monkeypatch, "erase", *words, "--out", copy) == 2
    assert weights.read_bytes() == copy.read_bytes() == before
    for _ in range(2):  # an earlier edit may be replaced
        assert run(monkeypatch, "erase", *words, "--out", tmp_path / "edit.safetensors") == 0


def test_a_testbed_is_not_mixed_with_other_data(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["--model", bed / "model"], ["--n", 3], ["--template", "{prompt}"]):
        assert run(monkeypatch, "compare", "--testbed", bed, *words, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_ablation_without_neurons_is_refused(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "erase", *data(bed), "--out", tmp_path / "edit.safetensors") == 2
    assert not (tmp_path / "edit.safetensors").exists()


def test_an_output_never_takes_the_place_of_another_kind_of_file(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "thesis.tex"
    mine.write_text("years of work")
    results = tmp_path / "results"
    edit = nf.erase.ablate(lm := nf.load(bed / "model"), nf.Neurons(frozenset({(0, 1)}), (0, 1), 64))
    edit.save(tmp_path / "edit.safetensors")
    rows = nf.corpora.jsonl(bed / "forget.jsonl"), nf.corpora.jsonl(bed / "retain.jsonl")
    nf.evaluate(lm, {"edit": edit}, *rows, strengths=(), damage=None, progress=False).save(results)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert run(monkeypatch, "erase", *data(bed), "--method", "rank_one", "--out", mine) == 2
    assert run(monkeypatch, "report", results, "--out", mine) == 2
    assert run(monkeypatch, "demo", "--out", tmp_path) == 2
    assert run(monkeypatch, "demo", "--out", mine) == 2
    assert run(monkeypatch, "testbed", "people", "--out", results) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert mine.read_text() == "years of work"
    assert capfd.readouterr().err.count("neuronforget: ") == 5


def test_two_edits_of_one_name_are_refused(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = nf.load(bed / "model")
    for j, folder in enumerate(("one", "other")):
        (tmp_path / folder).mkdir()
        nf.erase.ablate(lm, nf.Neurons(frozenset({(0, j)}), (0, 1), 64)).save(tmp_path / folder / "edit.safetensors")
    files = [tmp_path / folder / "edit.safetensors" for folder in ("one", "other")]
    assert run(monkeypatch, "evaluate", *files, *data(bed), "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_a_metric_of_ones_own_is_measured_beside_the_built_in_ones(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_metric_here.py").write_text("def doubled(p):\n    return 2 * p.nll\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    edit = tmp_path / "edit.safetensors"
    nf.erase.ablate(nf.load(bed / "model"), nf.Neurons(frozenset({(0, 1)}), (0, 1), 64)).save(edit)
    words = ["--damage", 1, "--divergence", "None", "--out", tmp_path / "out", "--metrics"]
    words += ["own_metric_here:doubled", "extraction_strength", "nll"]  # the last is measured anyway
    assert run(monkeypatch, "evaluate", edit, *data(bed), *words) == 0
    results = nf.Results.load(tmp_path / "out")
    for corpus in ("forget", "retain"):
        nll = results.value("edit", corpus, "nll")
        assert results.value("edit", corpus, "doubled") == pytest.approx(2 * nll)
        assert 0 <= results.value("edit", corpus, "extraction_strength") <= 1
    for name in ("nosuch", "neuron_shift"):
        words = ["--out", tmp_path / "none", "--metrics", name]
        assert run(monkeypatch, "evaluate", edit, *data(bed), *words) == 2
        assert f"no function {name!r}" in capfd.readouterr().err and not (tmp_path / "none").exists()


def test_a_warning_is_one_line_without_code(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def says(_words: list[str]) -> None:
        print(warnings.formatwarning("9 values\n  round away", UserWarning, "_calling.py", 255), end="")

    usual = warnings.formatwarning
    monkeypatch.setattr("neuronforget.cli._run", says)
    assert run(monkeypatch, "erase") == 0 and capfd.readouterr().out == "warning: 9 values round away\n"
    assert warnings.formatwarning is usual


@pytest.mark.parametrize("command", ["compare", "evaluate", "audit", "report", "ledger", "demo", "testbed"])
def test_what_is_not_divided_over_processes_is_refused_in_a_launch(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each process would do all of it, and all but one would fail to write."""
    for name, value in {
        "RANK": 1,
        "LOCAL_RANK": 1,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    assert run(monkeypatch, command, "--out", "out") == 2
    assert f"{command} does not divide its work over processes" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [(("testbed", "tofu"), "--path FOLDER"), (("evaluate", "tofu", "--model", "MODEL"), "--data FOLDER")],
)
def test_without_a_network_the_option_that_names_the_folder_is_asked_for(
    words: tuple[str, ...],
    option: str,
    bed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = (bed / "model" if word == "MODEL" else word for word in words)
    assert run(monkeypatch, *given, "--out", tmp_path / "out") == 2
    assert f"give {option}, where FOLDER holds " in capfd.readouterr().err


def test_what_is_neither_a_benchmark_nor_a_file_is_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "evaluate", "toffu", "--model", "m", "--out", tmp_path / "out") == 2
    assert "'toffu' is neither a file nor a benchmark; benchmarks are tofu, " in capfd.readouterr().err


def test_a_comparison_looks_at_its_folder_before_it_reads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    words = ["--model", tmp_path / "none", "--forget", "none", "--retain", "none", "--out", tmp_path]
    assert run(monkeypatch, "compare", *words) == 2
    assert "exists and is not empty" in capfd.readouterr().err


def test_an_unknown_name_is_answered_with_the_known_ones(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("contrasted", "Scores", "grad", "_pair", "runs_model"):  # not scores, though names of the package
        assert run(monkeypatch, "attribute", *data(bed), "--out", tmp_path / "out", "--score", name) == 2
        error = capfd.readouterr().err
        assert f"no function {name!r}" in error and "grad_x_act" in error and "Literal" not in error
    assert run(monkeypatch, "attribute", *data(bed), "--out", tmp_path / "out", "--score", "nowhere:mine") == 2
    assert "nowhere" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["gap_x_grad", "before_answer"])
def test_a_score_of_ones_own_goes_where_the_built_in_ones_go(
    bed: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of moments, one that runs the model; the module is the example that the docs point to."""
    monkeypatch.chdir(Path(__file__).parent.parent / "examples")
    own, hooks = ["--score", f"own_score:{name}"], ["--tap", "torch_hooks"]
    assert run(monkeypatch, "attribute", *data(bed), "--out", tmp_path / "out", *own, *hooks) == 0
    found, score = Scores.load(tmp_path / "out" / "scores.safetensors"), getattr(sys.modules["own_score"], name)
    forget, retain = (nf.corpora.jsonl(bed / f"{which}.jsonl") for which in ("forget", "retain"))
    expected = nf.attribute(nf.load(bed / "model"), forget, retain, score=score, tap="torch_hooks", progress=False)
    assert found.name == name and torch.equal(found.values, expected.values)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "neuronforget", "--help"], capture_output=True, text=True, check=True)
    assert all(
        word in done.stdout for word in ("demo", "testbed", "attribute", "erase", "evaluate", "compare", "report")
    )


def test_requests_come_one_by_one_are_undone_and_travel(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """erase A, B, C into a ledger; undo A alone; export; undo there; go on from the exported checkpoint."""
    book, exported = tmp_path / "requests", tmp_path / "exported"
    for request, j in (("A", 1), ("B", 2), ("C", 3)):
        nf.Neurons(frozenset({(0, j), (1, j)}), (0, 1), 64).save(tmp_path / "neurons.json")
        words = ["--neurons", tmp_path / "neurons.json", "--ledger", book, "--request", request]
        assert run(monkeypatch, "erase", *data(bed), *words) == 0
    assert run(monkeypatch, "ledger", book) == 0
    assert "3 of 3 requests applied" in capfd.readouterr().out
    assert run(monkeypatch, "ledger", book, "--model", bed / "model", "--undo", "A", "--export", exported) == 0
    lm = nf.load(bed / "model")
    nf.erase.ablate(lm, nf.Neurons(frozenset((k, j) for k in (0, 1) for j in (2, 3)), (0, 1), 64)).apply(lm)
    assert nf.load(exported).digest() == lm.digest()
    assert "| A | undone |" in (exported / "README.md").read_text()

    assert run(monkeypatch, "ledger", exported, "--undo", "B", "--export", tmp_path / "x") == 2
    assert "did not travel" in capfd.readouterr().err and not (tmp_path / "x").exists()
    words = ["--model", bed / "model", "--export", tmp_path / "open", "--with-edits", "--dtype", "bfloat16"]
    assert run(monkeypatch, "ledger", book, *words) == 0
    assert run(monkeypatch, "ledger", tmp_path / "open", "--undo", "B", "C", "--export", tmp_path / "none") == 0
    plain, untouched = nf.load(tmp_path / "none"), nf.load(bed / "model")
    assert all(torch.equal(p, untouched.parameters[n].bfloat16()) for n, p in plain.parameters.items())

    after = data(bed)
    after[1] = exported
    words = ["--method", "noise", "--neurons", tmp_path / "neurons.json", "--request", "D", "--ledger", tmp_path / "on"]
    assert run(monkeypatch, "erase", *after, *words, "--export", tmp_path / "last") == 0
    requests = [e["request"] for e in json.loads((tmp_path / "last" / "neuronforget.json").read_text())["entries"]]
    assert requests == ["A", "B", "C", "D"]


def test_a_ledger_says_what_is_missing(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    nf.Neurons(frozenset({(0, 1)}), (0, 1), 64).save(tmp_path / "neurons.json")
    book, erase = tmp_path / "requests", ["erase", *data(bed), "--neurons", tmp_path / "neurons.json"]
    assert run(monkeypatch, *erase, "--ledger", book, "--request", "A") == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capfd.readouterr()
    for words, message in (
        (erase, "give --out"),
        ([*erase, "--ledger", book], "needs --request"),
        ([*erase, "--out", tmp_path / "a.safetensors", "--request", "B"], "give --ledger too"),
        ([*erase, "--ledger", book, "--request", "A"], "name of its own"),
        ([*erase, "--ledger", book, "--request", "B"], "changed nothing"),  # on top of A nothing is left to zero
        ([*erase, "--ledger", bed / "gold", "--request", "B"], "not a folder of a ledger alone"),
        ([*erase, "--ledger", bed / "model" / "requests", "--request", "B"], "model's own folder"),
        (["ledger", tmp_path / "nowhere"], "no such file"),
        (["ledger", book, "--undo", "A"], "give --model"),
        (["ledger", book, "--model", bed / "model", "--undo", "Z"], "no request 'Z'"),
        (["ledger", book, "--model", bed / "gold", "--undo", "A"], "another model"),
    ):
        assert run(monkeypatch, *words) == 2
        assert message in capfd.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_refused_export_keeps_the_edit(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from neuronforget.edits import checkpoints
    from neuronforget.errors import InputError

    def refused(*_: object) -> None:
        raise InputError("stored with other values")

    monkeypatch.setattr(checkpoints, "_check_saved", refused)
    nf.Neurons(frozenset({(0, 1)}), (0, 1), 64).save(tmp_path / "neurons.json")
    out, book = tmp_path / "edit.safetensors", tmp_path / "requests"
    words = ["--neurons", tmp_path / "neurons.json", "--out", out, "--ledger", book, "--request", "A"]
    assert run(monkeypatch, "erase", *data(bed), *words, "--export", tmp_path / "exported") == 2
    assert f"stored with other values (the edit is kept in {out} and {book})" in capfd.readouterr().err
    assert not (tmp_path / "exported").exists()
    Edit.load(out).certificate(nf.load(bed / "model"))
    assert [entry.request for entry in nf.Ledger.load(book).applied] == ["A"]


def test_an_edit_a_ledger_and_a_checkpoint_do_not_lie_in_one_another(
    bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    nf.Neurons(frozenset({(0, 1)}), (0, 1), 64).save(tmp_path / "neurons.json")
    erase = ["erase", *data(bed), "--neurons", tmp_path / "neurons.json"]
    one, inner = tmp_path / "one", tmp_path / "one" / "edit.safetensors"
    monkeypatch.setattr(nf.models, "load", lambda *_, **__: pytest.fail("refused before the model is read"))
    for words in (
        ["--ledger", one, "--request", "A", "--export", one],
        ["--ledger", one, "--request", "A", "--export", one / "exported"],
        ["--ledger", one / "requests", "--request", "A", "--export", one],
        ["--out", inner, "--export", inner],
        ["--out", inner, "--export", one],
        ["--out", inner, "--ledger", one, "--request", "A"],
    ):
        assert run(monkeypatch, *erase, *words) == 2
        assert "give each a place of its own" in capfd.readouterr().err and not one.exists()
    for words in (  # a killed run would leave there what the next one finds in its way
        ["attribute", *data(bed), "--out", one, "--resume", one / "unfinished"],
        [*erase, "--method", "finetune", "--out", tmp_path / "e.safetensors", "--export", one, "--resume", one],
        [*erase, "--method", "finetune", "--ledger", one, "--request", "A", "--resume", one],
    ):
        assert run(monkeypatch, *words) == 2
        assert "give each a place of its own" in capfd.readouterr().err and not one.exists()
    nf.Ledger().save(one)
    assert run(monkeypatch, "ledger", one, "--model", bed / "model", "--export", one / "exported") == 2
    assert "give each a place of its own" in capfd.readouterr().err
