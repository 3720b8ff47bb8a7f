"""The whole path in one call, and what it says in words."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from beds import bed

import neuronforget as nf
from neuronforget import erase
from neuronforget.comparing.comparison import Comparison
from neuronforget.errors import InputError


def compare(**settings: Any) -> Comparison:
    made = bed()
    return nf.compare(
        made.lm, made.forget, made.retain, gold=made.gold, truth=made.truth, progress=False,
        **{"share": 0.1, "preferred": made.refusals, "steps": 3, "measured": 16, "audited": (), **settings},
    )  # fmt: skip


#: A comparison in which no number matters, only what becomes of its edits.
BRIEF: dict[str, Any] = {"steps": 1, "measured": 4, "controls": 0, "preferred": None}


@pytest.fixture(scope="module")
def found() -> Comparison:
    before = {name: p.detach().clone() for name, p in bed().lm.parameters.items()}
    made = compare()
    assert all(torch.equal(before[name], p) for name, p in bed().lm.parameters.items())
    return made


@pytest.mark.slow
def test_every_method_stands_beside_its_controls(found: Comparison) -> None:
    scopes = dict(zip(found.results.frame["edit"], found.results.frame["scope"], strict=True))
    assert {n for n, s in scopes.items() if s == "reference"} == {"untouched", "gold"}
    assert {n for n, s in scopes.items() if s == "full"} == {"ga", "grad_diff", "npo", "dpo"}
    neurons = {"ablate", "ga@neurons", "npo@neurons", "rank_one@neurons", "rank_one@layer"}
    assert {n for n, s in scopes.items() if s == "neurons"} == neurons
    assert {n for n, s in scopes.items() if s == "control"} == {
        "ablate@random 0", "ablate@random 1", "ablate@random 2", "ablate@norm-matched 0", "ablate@activation-matched 0",
        "ga@random 0", "npo@random 0", "rank_one@random 0",
    }  # fmt: skip


@pytest.mark.slow
def test_further_operators_stand_beside_them(tmp_path: Path) -> None:
    found = compare(operators=(erase.aura, erase.memit), resume=tmp_path, **{**BRIEF, "controls": 1})
    scopes = {name: edit.info["scope"] for name, edit in found.edits.items()}
    for method in ("aura", "memit"):
        assert scopes[f"{method}@neurons"] == "neurons" and scopes[f"{method}@random 0"] == "control"
    assert {"aura", "memit"} <= set(found.results.frame["edit"])


@pytest.mark.slow
def test_targeted_edits_and_their_controls_change_as_many_values(found: Comparison) -> None:
    for method in ("ga", "npo", "rank_one"):
        sizes = {found.edits[f"{method}@{where}"].summary()["values"] for where in ("neurons", "random 0")}
        assert len(sizes) == 1


@pytest.mark.slow
def test_every_edit_is_certified_and_the_report_shows_it(found: Comparison, tmp_path: Path) -> None:
    said = found.results.info["certificates"]
    assert said.keys() == found.edits.keys()
    for name in ("ablate", "npo"):
        certificate = found.edits[name].certificate(bed().lm)
        assert said[name] == certificate.entry() and said[name]["holds"] == certificate.holds is True
    found.save(tmp_path / "out")
    assert f"{said['ablate']['outside_values']:,}" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_on_grafted_facts_the_selection_forgets_and_random_neurons_do_not(found: Comparison) -> None:
    assert bed().truth is not None and found.neurons.recall(bed().truth) > 0.5  # type: ignore[arg-type]
    left = [found.results.value(f"ablate@random {seed}", "forget") for seed in range(3)]
    assert found.results.value("ablate", "forget") < 0.3 and sum(left) / 3 > 0.7, left
    text = " ".join(found.findings)
    assert (
        f"include {found.neurons.recall(bed().truth):.0%} of the {len(bed().truth)} true neurons" in text
        and "Not checked here" in text
    )  # type: ignore[arg-type]


@pytest.mark.slow
def test_edits_are_audited_and_the_report_leads_to_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(*args: Any, **settings: Any) -> Any:
        return nf.audit(*args, **settings, probes=["choice"])

    monkeypatch.setattr("neuronforget.comparing.run.audit", few)
    settings = {**BRIEF, "resume": tmp_path / "resume"}
    found = compare(audited=("ablate", "rank_one@layer"), **settings)
    for name in ("ablate", "rank_one@layer"):
        said = few(bed().lm, found.edits[name], bed().forget, bed().retain, gold=bed().gold, progress=False)
        assert found.audits[name].checks == said.checks
        assert f"Erased, or only hidden? {name}: {said.words}" in found.findings
    assert "for the other edits" in found.findings[-1]
    found.save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    again = Comparison.load(tmp_path / "out")
    assert [audit.checks for audit in again.audits.values()] == [audit.checks for audit in found.audits.values()]
    elsewhere = again.report(tmp_path / "far" / "again.html", saved=tmp_path / "out").read_text()
    alone = again.report(tmp_path / "alone.html").read_text()
    for name in ("ablate", "rank_one@layer"):
        assert f'href="audits/{name}/audit.html"' in page and f'href="../out/audits/{name}/audit.html"' in elsewhere
        assert f"{name}<strong>{found.audits[name].verdict}</strong>" in alone and "Read the audit" not in alone
        assert f"Erased, or only hidden? {name}" in (tmp_path / "out" / "audits" / name / "audit.html").read_text()
    monkeypatch.setattr("neuronforget.comparing.run.audit", lambda *_, **__: pytest.fail("it was audited"))
    assert compare(audited=("ablate",), **settings).audits["ablate"].checks == found.audits["ablate"].checks


@pytest.mark.slow
def test_an_edit_that_cannot_be_audited_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any, **_settings: Any) -> Any:
        raise InputError("no luck")

    monkeypatch.setattr("neuronforget.comparing.run.audit", fails)
    assert "Not audited: ablate (no luck)." in compare(audited=("ablate",), **BRIEF).findings


def test_a_name_that_no_edit_has_is_refused_before_anything_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuronforget.comparing.run.record", lambda *_, **__: pytest.fail("it was recorded"))
    unknown = "no edit to audit is called '{}'; there are ablate, "
    for name, settings in (
        ("nonesuch", {}), ("memit", {}), ("ablate@random 1", {"controls": 1}), ("dpo", {"preferred": None}),
        ("ablate@norm-matched 0", {"share": 0.6}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=unknown.format(name)):
            compare(audited=(name,), **{**BRIEF, **settings})
    monkeypatch.setattr(
        "neuronforget.comparing.run.record", lambda *_, **__: (_ for _ in ()).throw(KeyError("recorded"))
    )
    for name, settings in (
        ("memit", {"operators": (nf.erase.memit,)}),
        ("dampen@random 0", {"operators": (nf.erase.dampen,), "controls": 1}),
        ("dpo", {"preferred": bed().refusals}),
        ("ablate@norm-matched 0", {"share": 0.5}),
    ):
        with pytest.raises(KeyError, match="recorded"):
            compare(audited=(name,), **{**BRIEF, **settings})


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (partial(erase.finetune, loss=nf.losses.idk_ap), "this loss needs preferred answers"),
        (partial(erase.finetune, loss=nf.losses.whp), "this loss needs a reinforced model"),
        (partial(erase.finetune, loss=nf.losses.pdu, accumulate=2), "give accumulate=1"),
        (partial(erase.finetune, loss=partial(nf.losses.npo, beta=0.0)), "npo: beta must be a number > 0"),
        (partial(erase.ssd, alpha=0.0), "ssd: alpha must be a number > 0"),
        (erase.llm_eraser, "llm_eraser needs the setting adapter"),
    ],
)
def test_an_operator_that_cannot_be_called_is_refused_before_anything_is_recorded(
    operator: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronforget.comparing.run.record", lambda *_, **__: pytest.fail("it was recorded"))
    with pytest.raises(InputError, match=message):
        compare(**BRIEF, operators=(operator,))


@pytest.mark.slow
def test_the_comparison_is_written_whole(found: Comparison, tmp_path: Path) -> None:
    found.save(tmp_path / "out")
    assert "ablate@random 0" in (tmp_path / "out" / "report.html").read_text()
    edit = nf.Edit.load(tmp_path / "out" / "edits" / "npo@neurons.safetensors")
    assert edit.summary() == found.edits["npo@neurons"].summary()
    assert nf.Neurons.load(tmp_path / "out" / "neurons.json") == found.neurons


@pytest.mark.slow
def test_a_comparison_is_read_back_whole_and_drawn_again_to_the_byte(found: Comparison, tmp_path: Path) -> None:
    found.save(tmp_path / "out")
    again = Comparison.load(tmp_path / "out")
    assert again.results.rows == found.results.rows and torch.equal(again.scores.values, found.scores.values)
    assert (again.neurons, again.truth, again.controls) == (found.neurons, found.truth, found.controls)
    assert (again.shifts, again.findings) == (found.shifts, found.findings)
    assert (again.closeups.texts, again.closeups.cards) == (found.closeups.texts, found.closeups.cards)
    assert list(again.edits) == list(found.edits)
    for name in ("ablate", "npo@random 0"):
        assert again.edits[name].summary() == found.edits[name].summary()
    with pytest.raises(KeyError):
        again.edits["nonesuch"]
    first = (tmp_path / "out" / "report.html").read_bytes()
    assert again.report(tmp_path / "again.html").read_bytes() == first
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "report.html").read_bytes() == first
    for kept in ("closeups.safetensors", "edits/npo@random-0.safetensors", "controls/4.json", "comparison.json"):
        assert (tmp_path / "copy" / kept).read_bytes() == (tmp_path / "out" / kept).read_bytes(), kept


@pytest.mark.slow
def test_a_comparison_of_an_older_version_is_drawn_in_todays_sentences(found: Comparison, tmp_path: Path) -> None:
    """What it found was kept as sentences: an audit's old one stood beside the new one that the report makes of it."""
    found.save(tmp_path / "out")
    index = tmp_path / "out" / "comparison.json"
    about = json.loads(index.read_text())
    assert about["findings"] == [*found.findings]  # written for whoever reads the file
    about["findings"] = ["Erased, or only hidden? ablate: HIDDEN, in words of an older version."]
    index.write_text(json.dumps(about))
    again = Comparison.load(tmp_path / "out")
    assert again.findings == found.findings
    page = again.report(tmp_path / "again.html").read_bytes()
    assert b"an older version" not in page and page == (tmp_path / "out" / "report.html").read_bytes()


@pytest.mark.slow
def test_what_is_no_comparison_is_said_in_words(found: Comparison, tmp_path: Path) -> None:
    found.save(tmp_path / "out")
    with pytest.raises(InputError, match=r"no such file: .*results.comparison\.json"):
        Comparison.load(tmp_path / "out" / "results")
    (tmp_path / "out" / "closeups.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no close-ups"):
        Comparison.load(tmp_path / "out")
    (tmp_path / "out" / "comparison.json").write_text('{"edits": []}')
    with pytest.raises(InputError, match="holds no comparison"):
        Comparison.load(tmp_path / "out")


@pytest.mark.slow
def test_a_killed_comparison_does_not_make_finished_edits_again(
    found: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = erase.finetune

    def counted(*args: Any, loss: Any, **settings: Any) -> Any:
        calls.append(loss.__name__)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, loss=loss, **settings)

    monkeypatch.setattr(erase, "finetune", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(resume=tmp_path)
    again = compare(resume=tmp_path)
    assert len(calls) == 3 + 6  # eight trainings in all: two were finished before the kill
    assert again.results.rows == found.results.rows


@pytest.mark.slow
def test_an_audit_that_another_run_finished_meanwhile_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = nf.audit
    made: list[Any] = []
    settings: dict[str, Any] = {**BRIEF, "audited": ("ablate",), "resume": tmp_path}

    def slow(*args: Any, **given: Any) -> Any:
        if not made:
            made.append(None)  # the other run does not wait
            made.append(compare(**settings))
        return real(*args, **given, probes=["choice"])

    monkeypatch.setattr("neuronforget.comparing.run.audit", slow)
    assert compare(**settings).audits["ablate"].verdict == made[1].audits["ablate"].verdict


@pytest.mark.slow
def test_a_method_that_fails_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = erase.finetune

    def fails(*args: Any, loss: Any, **settings: Any) -> Any:
        if loss.__name__ != "npo":
            raise InputError(f"{loss.__name__}: the loss is nan at step 3")
        return real(*args, loss=loss, **settings)

    monkeypatch.setattr(erase, "finetune", fails)
    found = compare(**{**BRIEF, "preferred": bed().refusals})
    assert {"npo", "npo@neurons", "ablate"} <= set(found.edits) and not {"ga", "ga@neurons", "dpo"} & set(found.edits)
    assert "Not in this comparison: ga could not be made (ga: the loss is nan at step 3)." in found.findings


def test_a_comparison_without_any_edit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any, **_settings: Any) -> Any:
        raise InputError("no luck")

    for operator in ("ablate", "finetune", "rank_one"):
        monkeypatch.setattr(erase, operator, fails)
    with pytest.raises(InputError, match="no edit could be made: ablate: no luck"):
        compare(**BRIEF)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"measured": 0}, {"controls": -1}, {"damage": 0.0}])
def test_settings_without_a_meaning_are_refused_before_the_work(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronforget.comparing.run.record", lambda *_, **__: pytest.fail("work had begun"))
    with pytest.raises(InputError):
        nf.compare(bed().lm, bed().forget, bed().retain, progress=False, **settings)


def test_a_sample_keeps_the_order_and_is_seeded() -> None:
    whole = bed().retain
    part = whole.sample(10, 0)
    places = [whole.examples.index(e) for e in part]
    assert places == sorted(places) and len(set(places)) == 10
    assert part == whole.sample(10, 0) != whole.sample(10, 1)
    assert whole.sample(10**6, 0) is whole
