"""Erased or hidden: the audit tells a model that never knew from one that hides, and says what it could not ask."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beds import SHAPE, answers_kept, bed
from commanding import run

import neuronforget as nf
from neuronforget import figures
from neuronforget.auditing import Case, Reading
from neuronforget.auditing.cases import EDITED, GOLD, UNTOUCHED, constant
from neuronforget.auditing.verdicts import decide, judge
from neuronforget.corpora import subjects_of
from neuronforget.erase.ablate import all_of
from neuronforget.metrics import Metric


@lru_cache
def audited(name: str, gold: bool = True) -> nf.Audit:
    made = bed()
    last = [made.lm.shape[0] - 1]
    make = {
        "gold": lambda: made.gold,
        "ablate": lambda: nf.erase.ablate(made.lm, made.planted),
        "random": lambda: nf.erase.ablate(made.lm, made.planted.random_like(0)),
        "guard": lambda: nf.erase.guards.eco(made.lm, made.forget, made.retain, sigma=12.0),
        "npo": lambda: nf.erase.finetune(made.lm, made.forget, made.retain, progress=False),
        "npo on chosen neurons": lambda: nf.erase.finetune(
            made.lm, made.forget, made.retain, neurons=made.planted, steps=120, progress=False
        ),  # by the default's 60 it chooses the right answer in one or three of 24, as the processor rounds
        "output": lambda: nf.erase.finetune(
            made.lm, made.forget, made.retain, neurons=all_of(made.lm, last), lr=3e-3, progress=False
        ),
    }[name]
    gold_lm, kept = made.gold if gold else None, answers_kept()
    return nf.audit(made.lm, make(), made.forget, made.retain, gold=gold_lm, kept=kept, progress=False)


def outcomes(audit: nf.Audit) -> dict[str, str]:
    return {f"{check.probe}, {check.corpus}": check.outcome for check in audit.checks}


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("name", ["gold", "ablate"])
def test_a_model_that_never_knew_passes_and_so_does_undoing_what_was_planted(name: str, gold: bool) -> None:
    found = audited(name, gold)
    assert found.verdict == "gone, as far as asked" and not {"left", "avoided"} & set(outcomes(found).values())
    assert found.damage["retain after"] > 0.95


def test_random_neurons_erase_nothing() -> None:
    found = audited("random")
    assert found.verdict == "not erased"
    assert {outcomes(found)[k] for k in ("asked, forget", "nf4, forget", "relearning, siblings", "lens, forget")} == {
        "left"
    }


def test_a_guard_fails_whatever_it_answers() -> None:
    for gold in (True, False):
        found = audited("guard", gold)
        assert found.verdict in ("hidden", "not erased") and found.damage["guard"] == "eco"
        assert any("changes no weight" in line for line in found.findings)


def test_an_edit_of_the_last_layer_that_suppresses_the_output_is_found_below_it() -> None:
    found = audited("output")
    seen = outcomes(found)
    assert seen["asked, forget"] == "gone" and found.verdict == "suppressed"
    (patched,) = (c for c in found.checks if c.probe == "patching, states")
    assert patched.value > 0.15 and patched.low > 0 and patched.luck  # two people: not yet told from luck
    drops = found.curves["patching, states"]
    assert drops["edited"][0] == pytest.approx(0, abs=1e-4) and drops["gold"][0] > 0.1  # below it nothing was changed
    assert found.neurons["newly suppressing"] > found.neurons["taken away"]


@pytest.mark.parametrize("name", ["npo", "npo on chosen neurons"])
def test_answers_that_are_avoided_more_than_by_chance_are_not_unknown(name: str) -> None:
    found = audited(name)
    (choice,) = (c for c in found.checks if c.probe == "choice")
    assert outcomes(found)["asked, forget"] == "gone" and choice.value < 0.15 and choice.high < 0
    said = ("unclear", "unclear") if choice.luck else ("avoided", "suppressed")  # two people
    assert (choice.outcome, found.verdict) == said and choice.much == choice.luck
    assert found.damage["KL from gold"] > found.damage["KL from gold, untouched"]
    assert any("over-erased" in line for line in found.findings)


def test_what_could_not_be_asked_is_said() -> None:
    found = audited("ablate", gold=False)
    assert "give gold=" in found.not_tested["patching"]
    text = str(found)
    assert all(f"Not asked: {probe}" in text for probe in found.not_tested)
    never = [check.probe for check in found.checks if check.outcome == "not known before"]
    assert never and all(probe in text.partition("Nothing could be found by these")[2] for probe in never)
    assert "Shown but not judged, as there is no gold twin to compare with: lens (forget)" in text


def test_an_audit_is_kept_whole_and_leaves_the_models_alone(tmp_path: Path) -> None:
    made, found = bed(), audited("output")
    before = made.lm.digest(), made.gold.digest()
    asks = {"gold": made.gold, "probes": ["quantisation", "relearning"], "progress": False}  # none of it is kept
    nf.audit(made.lm, nf.erase.ablate(made.lm, made.planted), made.forget, made.retain, **asks)
    assert (made.lm.digest(), made.gold.digest()) == before
    found.save(tmp_path / "a")
    again = nf.Audit.load(tmp_path / "a")
    assert again.findings == found.findings and again.checks == found.checks
    asked = found.results.value(EDITED, "forget", found.damage["metric"], "asked")
    assert again.results.value(EDITED, "forget", found.damage["metric"], "asked") == asked


def test_the_results_of_an_audit_have_a_table_of_every_probe() -> None:
    results = audited("ablate").results
    shown = results._repr_html_()
    assert all(f"<th>{who}</th>" in shown for who in (UNTOUCHED, GOLD, EDITED))
    for point in dict.fromkeys(row["point"] for row in results.rows):
        metric = next(row["metric"] for row in results.rows if row["point"] == point)
        for who, values in results.table(metric, point).iterrows():
            assert all(np.isnan(v) or v == results.value(str(who), str(c), metric, point) for c, v in values.items())


def test_the_command_audits_an_edit_or_a_model_and_refuses_what_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bed()
    made.save(tmp_path / "bed")
    nf.erase.ablate(made.lm, made.planted).save(tmp_path / "edit.safetensors")
    common = [f"--{name}={tmp_path / 'bed' / place}" for name, place in (
        ("model", "model"), ("gold", "gold"), ("forget", "forget.jsonl"), ("retain", "retain.jsonl"))]  # fmt: skip
    asked = ("--probes", "choice", "lens")
    for i, edit in enumerate((tmp_path / "edit.safetensors", tmp_path / "bed" / "gold")):
        assert run(monkeypatch, "audit", edit, *common, "--out", tmp_path / f"a{i}", *asked) == 0
        assert "Verdict: gone, as far as asked" in capsys.readouterr().out
        page = (tmp_path / f"a{i}" / "audit.html").read_text()
        assert "<strong>gone, as far as asked</strong>" in page and "read off every block" in page
        assert f"neuronforget audit {edit} --model" in page
        assert {c.probe for c in nf.Audit.load(tmp_path / f"a{i}").checks} == {"asked", "choice", "lens"}
    for edit, more, message in (
        (tmp_path / "edit.safetensors", ("--probes", "guess"), "no probe is called 'guess'"),
        (tmp_path / "none.safetensors", (), "none.safetensors"),
        (tmp_path / "edit.safetensors", ("--gold", tmp_path / "nowhere"), "no model folder at"),
    ):
        given = [word for word in common if not (more and word.startswith(f"{more[0]}="))]
        assert run(monkeypatch, "audit", edit, *given, "--out", tmp_path / "b", *more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error and not (tmp_path / "b").exists()


def test_ones_own_probe_is_one_function() -> None:
    made = bed()

    def shouted(case: Case, metric: Metric) -> Iterator[Reading]:
        """Ask in capitals: a model of small letters knows nothing there, the edited one is said to."""
        for subject in case.subjects:
            value = {UNTOUCHED: 1.0, EDITED: 0.8, GOLD: 0.0}[subject.name]
            yield Reading(
                "shouted", subject.name, "forget", "mine", np.full(len(case.forget), value), subjects_of(case.forget)
            )

    found = nf.audit(
        made.lm, made.gold, made.forget, made.retain, gold=made.gold, probes=["asked"], own={"shouted": shouted},
        progress=False,
    )  # fmt: skip
    assert found.verdict == "hidden" and outcomes(found)["shouted, forget"] == "left"
    for wrong, said in ((lambda *_: None, "None"), (lambda *_: [3], "3"), (lambda *_: np.array(1), r"array\(1\)")):
        with pytest.raises(nf.InputError, match=f"'mine' gave {said}: a probe returns Readings"):
            nf.audit(
                made.lm, made.gold, made.forget, made.retain, probes=["asked"], own={"mine": wrong}, progress=False
            )
    for names in (["whispered"], "whispered"):
        with pytest.raises(nf.InputError, match="no probe is called 'whispered'"):
            nf.audit(made.lm, made.gold, made.forget, made.retain, probes=names, progress=False)


def readings(
    edited: list[float], untouched: list[float], gold: list[float] | None, units: np.ndarray | None = None,
    **about: object,
) -> list[Reading]:  # fmt: skip
    rows = {UNTOUCHED: untouched, EDITED: edited, **({GOLD: gold} if gold else {})}
    place = {"probe": "p", "corpus": "forget", "metric": "m"} | {k: about.pop(k) for k in ("probe",) if k in about}
    units = np.arange(len(edited)) if units is None else units
    return [Reading(subject=who, values=np.array(v), units=units, **place, **about) for who, v in rows.items()]  # type: ignore


@pytest.mark.parametrize(
    ("edited", "untouched", "gold", "about", "outcome", "reference"),
    [
        ([0.5] * 8, [1.0] * 8, [0.1] * 8, {}, "left", 0.1),
        ([0.12] * 8, [1.0] * 8, [0.1] * 8, {}, "gone", 0.1),  # .02 of .9 known
        ([1, 0, 0, 0, 0, 0, 0, 0], [1.0] * 8, [0.0] * 8, {}, "gone", 0.0),  # the interval holds zero
        ([0.0] * 8, [1.0] * 8, [0.5] * 8, {}, "gone", 0.5),
        ([0.0] * 8, [1.0] * 8, [0.5] * 8, {"two_sided": True}, "avoided", 0.5),
        ([0.6] * 8, [0.5] * 8, [0.5] * 8, {}, "not known before", 0.5),
        ([0.0] * 20, [0.9] * 20, [0.9] * 20, {"floor": np.full(20, 0.25), "two_sided": True}, "avoided", 0.9),
        ([0.0] * 20, [0.0] * 20, [0.9] * 20, {"floor": np.full(20, 0.25), "two_sided": True}, "not known before", 0.9),
        (
            [0.0] * 20,  # the wrong answers were likelier before the edit, too
            [0.0] * 20,
            None,
            {"floor": np.full(20, 0.25), "two_sided": True, "sign": -1},
            "not known before",
            0.25,
        ),
        ([0.2] * 20, [0.9] * 20, [0.9] * 20, {"floor": np.full(20, 0.2), "two_sided": True}, "not known before", 0.9),
        (
            [0.0] * 20,
            [0.9] * 20,
            [0.9] * 20,
            {},
            "not known before",
            0.9,
        ),  # it cannot be left, and nothing else is asked
        ([0.4] * 8, [1.0] * 8, None, {"floor": np.full(8, 0.1)}, "left", 0.1),
        ([0.4] * 8, [1.0] * 8, None, {"floor": np.full(8, 0.1), "sign": -1}, "gone", 0.1),
        ([0.0] * 8, [1.0] * 8, None, {"floor": np.full(8, 0.25), "sign": -1}, "unclear", 0.25),  # .75^8 = .10
        ([0.0] * 20, [1.0] * 20, None, {"floor": np.full(20, 0.25), "sign": -1}, "avoided", 0.25),
        ([0.0] * 20, [1.0] * 20, [0.7] * 20, {"floor": np.full(20, 0.25), "two_sided": True}, "avoided", 0.7),
        ([0.25] * 20, [1.0] * 20, [0.7] * 20, {"floor": np.full(20, 0.25), "two_sided": True}, "gone", 0.7),  # chance
        (
            [1, 0, 0, 0, 0, 0, 0, 0],
            [1.0] * 8,
            [0.6] * 8,
            {"floor": np.full(8, 0.25), "two_sided": True},
            "unclear",
            0.6,
        ),
        ([1.0] * 4, [1.0] * 4, None, {"floor": np.full(4, 0.5)}, "unclear", 0.5),  # four of four: .5^4 = .06
        ([0.0] * 5, [1.0] * 5, [0.0] * 5, {}, "unclear", 0.0),  # half of what was known: .5^5 = .03
        ([0.18] * 8, [1.0] * 8, [0.1] * 8, {"least": 0.1}, "gone", 0.1),
        ([float("nan")] * 8, [1.0] * 8, [0.1] * 8, {}, "unclear", 0.1),
        ([0.0] * 7 + [float("nan")], [1.0] * 8, [0.0] * 8, {}, "unclear", 0.0),
        ([0.0] * 8, [1.0] * 8, [float("nan")] * 8, {}, "unclear", float("nan")),
        ([1.0], [1.0], [0.0], {}, "unclear", 0.0),  # one example has no interval
        ([1, 1, 0, 0, 0], [1.0] * 5, [0.0] * 5, {}, "unclear", 0.0),  # two of five may be most or none
        ([1.0] * 5 + [0.0] * 15, [1.0] * 20, [0.0] * 20, {}, "left", 0.0),
    ],
)
def test_a_check_by_hand(
    edited: list[float], untouched: list[float], gold: list[float] | None, about: dict[str, object], outcome: str,
    reference: float,
) -> None:  # fmt: skip
    (check,) = judge(readings(edited, untouched, gold, **about), 0)
    assert check.outcome == outcome and check.reference == pytest.approx(reference, nan_ok=True)
    assert check.nan == int(np.isnan(edited).sum())


@pytest.mark.parametrize("edited", [[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
@pytest.mark.parametrize(
    ("gold", "floor", "within"),
    [(None, 0.0, (0, 1)), (None, 0.25, (-0.25, 0.75)), ([0, 0, 0, 0, 0, 1], 0.0, (-1, 1)), ([1] * 6, 0.25, (-1, 1))],
)
def test_intervals_of_rates_stay_where_rates_can_be(
    edited: list[float], gold: list[float] | None, floor: float, within: tuple[float, float]
) -> None:
    given = readings(edited, [1.0] * 6, gold, probe="asked", floor=np.full(6, floor), rate=True)
    (check,), (free,) = judge(given, 0), judge([replace(r, rate=False) for r in given], 0)
    assert (check.low, check.high) == tuple(np.clip([free.low, free.high], *within))
    assert (check.outcome, check.much) == (free.outcome, free.much)
    edited_line = figures.checks([check]).data[-1]
    for end in (check.value + edited_line.error_x.array[0], check.value - edited_line.error_x.arrayminus[0]):
        assert -1e-9 <= end <= 1 + 1e-9


TWO = np.repeat([0, 1], 12)


@pytest.mark.parametrize(
    ("edited", "gold", "about", "units", "outcome", "luck"),
    [  # 24 questions about two people, or one, of which the untouched model answers all
        ([1.0] * 8 + [0.0] * 16, [0.0] * 24, {}, TWO, "unclear", True),  # 8 of 12 of the first one's
        (([1.0] * 4 + [0.0] * 8) * 2, [0.0] * 24, {}, TWO, "left", False),  # 4 of 12 of either one's
        ([1.0] * 14 + [0.0] * 10, [0.0] * 24, {}, TWO, "left", False),  # over examples .26 at the least: no luck
        ([1.0] * 8 + [0.0] * 16, [0.0] * 24, {}, np.zeros(24), "unclear", True),  # one alone may be easy to guess
        ([1.0] * 14 + [0.0] * 10, [0.0] * 24, {}, np.zeros(24), "left", False),
        ([1.0] * 4 + [0.0] * 8 + [np.nan] * 12, [0.0] * 24, {}, TWO, "unclear", True),  # NaN of all of the other's
        ([1.0] * 8 + [0.0] * 16, [0.0] * 24, {}, np.repeat(np.arange(8), 3), "unclear", False),  # over eight: no luck
        ([0.0] * 24, [0.75] * 12 + [0.25] * 12, {"two_sided": True}, TWO, "avoided", False),
        ([0.4] * 12 + [0.0] * 12, [0.5] * 12 + [0.0] * 12, {"two_sided": True}, TWO, "unclear", True),
    ],
)
def test_luck_with_few_people_is_not_called_knowledge(
    edited: list[float], gold: list[float], about: dict[str, object], units: np.ndarray, outcome: str, luck: bool
) -> None:
    (check,) = judge(readings(edited, [1.0] * 24, gold, units, **about), 0)
    assert (check.outcome, check.luck) == (outcome, luck) and ("luck" in str(check)) == luck
    asked = judge(readings([0.0] * 24, [1.0] * 24, [0.0] * 24, units, probe="asked"), 0)
    assert (decide([*asked, check], None) == "unclear") == luck


def test_every_probe_of_rates_says_so() -> None:
    assert {c.probe for c in audited("ablate").checks if not c.rate} <= {"patching, states", "patching, neurons"}


def test_the_verdict_is_the_worst_that_was_found() -> None:
    left = judge(readings([1.0] * 8, [1.0] * 8, [0.0] * 8, probe="asked"), 0)
    hidden = judge(readings([1.0] * 8, [1.0] * 8, [0.0] * 8), 0)
    gone = judge(readings([0.0] * 8, [1.0] * 8, [0.0] * 8, probe="asked"), 0)
    avoided = judge(readings([0.0] * 8, [1.0] * 8, [0.5] * 8, two_sided=True), 0)
    never = judge(readings([0.0] * 8, [0.0] * 8, [0.0] * 8, probe="asked"), 0)
    assert decide(left + hidden, None) == "not erased"
    assert decide(gone + hidden, None) == "hidden" and decide(gone, "eco") == "hidden"
    assert decide(gone + avoided, None) == "suppressed" and decide(gone, None) == "gone, as far as asked"
    few = judge(readings([1.0], [1.0], [0.0], probe="asked"), 0)
    assert decide(few + gone, None) == "unclear" and decide(few + hidden, None) == "hidden"
    assert decide(gone + judge(readings([0.0], [1.0], [0.0]), 0), None) == "gone, as far as asked"  # asked plainly
    assert decide(never, None) == "nothing to forget" and decide(gone, None, nan=1) == "broken"
    with pytest.raises(nf.InputError, match="no probe is judged"):
        judge(readings([0.0] * 8, [1.0] * 8, None, sign=0), 0)


def test_a_broken_model_is_called_broken() -> None:
    made = bed()
    weights = {n: p.detach().clone() for n, p in made.lm.parameters.items()}
    broken = nf.LM(copy.deepcopy(made.lm.model), made.lm.tokenizer)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(float("nan"))
    found = nf.audit(made.lm, broken, made.forget, made.retain, gold=made.gold, probes=["asked"], progress=False)
    assert found.verdict == "broken" and any("It is broken" in line for line in found.findings)
    assert all(torch.equal(weights[n], p) for n, p in made.lm.parameters.items())


@pytest.mark.parametrize("gold", [True, False])
@pytest.mark.parametrize("what", ["uniform", "random", "constant"])
def test_a_model_that_answers_nothing_any_more_is_destroyed_not_erased_and_avoids_nothing(
    what: str, gold: bool
) -> None:
    made = bed()
    model = copy.deepcopy(made.lm.model)
    if what == "constant":
        fixed = torch.linspace(3, -3, model.get_output_embeddings().weight.shape[0])
        model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: torch.zeros_like(out) + fixed)
    for i, weight in enumerate(model.parameters() if what != "constant" else ()):
        weight.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(i))
        weight.data *= what == "random"
    broken = nf.LM(model, made.lm.tokenizer)
    found = nf.audit(
        made.lm, broken, made.forget, made.retain, gold=made.gold if gold else None, probes=["asked", "choice"],
        progress=False,
    )  # fmt: skip
    assert found.verdict == "destroyed"
    assert any("Retain is destroyed" in line and "not erasure" in line for line in found.findings)
    if what == "uniform":
        assert outcomes(found)["choice, forget"] == "gone"
        assert found.results.value(EDITED, "forget", "choice", "choice") == pytest.approx(0.25)


def test_of_a_model_that_was_destroyed_what_is_left_is_still_said() -> None:
    def checks(edited: float, probe: str) -> list[nf.auditing.Check]:
        return judge(readings([edited] * 8, [1.0] * 8, [0.0] * 8, probe=probe), 0)

    assert decide(checks(0, "asked"), None, destroyed=True) == "destroyed"
    assert decide(checks(1, "asked"), None, destroyed=True) == "not erased"
    assert decide(checks(0, "asked") + checks(1, "p"), None, destroyed=True) == "hidden"
    assert decide(checks(0, "asked"), None, nan=1, destroyed=True) == "broken"


@pytest.mark.parametrize(
    ("edited", "gold", "about", "much"),
    [
        ([0, 0, 0, 0, 0], [1, 1, 0, 1, 0], {"two_sided": True}, True),  # never chosen, as it seems
        ([0, 0, 0.5, 0, 0], None, {"sign": -1}, True),
        ([0.2, 0.25, 0.3, 0.2, 0.3], [1, 1, 0, 1, 0], {"two_sided": True}, False),  # chosen as by chance
        ([1, 1, 0, 0, 1], [0, 0, 0, 0, 0], {}, True),  # three of five people are known
        ([0, 1, 0, 0, 0], [0, 0, 0, 0, 0], {}, False),
    ],
)
def test_too_few_subjects_to_be_sure_are_no_erasure(
    edited: list[float], gold: list[float] | None, about: dict[str, Any], much: bool
) -> None:
    """Five people with six questions each; the interval holds zero, the mean says what it says."""
    chance = np.full(30, 0.25) if about else None
    given = [
        replace(r, values=np.repeat(r.values, 6), units=np.repeat(r.units, 6), floor=chance)
        for r in readings(edited, [1.0] * 5, gold, **about)
    ]
    others = [probe for i in range(12) for probe in readings([0.0] * 30, [1.0] * 30, [0.0] * 30, probe=f"other {i}")]
    (check, *_) = judge([*given, *others], 0)
    assert (check.outcome, check.much) == ("unclear", much) and ("half or more" in str(check)) == much
    asked = judge(readings([0.0] * 8, [1.0] * 8, [0.0] * 8, probe="asked"), 0)
    assert decide([*asked, check], None) == ("unclear" if much else "gone, as far as asked")


def test_bad_requests_are_refused() -> None:
    made = bed()
    with pytest.raises(nf.InputError, match="share"):
        nf.audit(made.lm, made.gold, made.forget, made.forget, progress=False)
    shape = replace(SHAPE, layers=1, steps=2, graft_steps=2)
    other = nf.testbed.people(people=20, forget_people=2, shape=shape, cache=False, progress=False).lm
    with pytest.raises(nf.InputError, match="the model to audit has layers and neurons"):
        nf.audit(made.lm, other, made.forget, made.retain, progress=False)


@pytest.mark.parametrize(
    ("answers", "guessed"),
    [("xyxz", [1 / 3, 0, 1 / 3, 0]), ("xxyxz", [1, 1, 0, 1, 0]), ("x", [0]), ("xx", [1, 1]), ("xxy", [0.5, 0.5, 0])],
)
def test_the_most_common_answer_of_the_others_is_guessed(answers: str, guessed: list[float]) -> None:
    rows = [{"prompt": f"q{i}", "answer": a} for i, a in enumerate(answers)]
    assert constant(nf.Corpus.from_rows(rows)).tolist() == guessed


def test_the_guess_is_that_of_leaving_each_example_out() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        answers = draw.integers(draw.integers(1, 6), size=draw.integers(1, 9)).tolist()
        wanted = []
        for i, own in enumerate(answers):
            others = answers[:i] + answers[i + 1 :]
            top = {a for a in others if others.count(a) == max(map(others.count, others))}
            wanted.append(float(own in top) / max(len(top), 1))
        rows = [{"prompt": f"q{i}", "answer": str(a)} for i, a in enumerate(answers)]
        assert constant(nf.Corpus.from_rows(rows)).tolist() == wanted


def test_plain_asking_is_judged_as_sharply_however_many_probes_there_are() -> None:
    some = [1.0] * 5 + [0.0] * 15
    asked = readings(some, [1.0] * 20, [0.0] * 20, probe="asked")
    others = [r for i in range(40) for r in readings([0.0] * 20, [1.0] * 20, [0.0] * 20, probe=f"p{i}")]
    assert decide(judge(asked + others, 0), None) == "not erased"
