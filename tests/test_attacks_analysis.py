"""The analysis of the nine attacks: what is paired, what is left, what is said of an attack that finds nothing."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from test_analyses import analysis

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics.text import normalised
from neuronforget.suites.rwku import ATTACKS
from neuronforget.testbed import Shape

NAMES = ("Ada Alm", "Bo Berg", "Cy Dahl", "Di Ek", "Ed Falk", "Flo Grip")
CITIES = ("Rome", "Oslo", "Cairo", "Lima", "Delhi", "Turin")
SMALL = Shape(layers=2, d_model=16, d_mlp=32, heads=2, vocab=400, steps=3, batch=8)
ARMS = ["ablate@found", "ablate@random", "npo@found", "npo@full", "eco (guard)"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six people in RWKU's files: a city and a year each, asked plainly and by all attacks, one fact by one alone."""
    folder = tmp_path_factory.mktemp("data") / "rwku"
    folder.mkdir()
    levels: dict[int, list[tuple[str, str, str, str]]] = {1: [], 2: [], 3: []}
    for i, (name, city) in enumerate(zip(NAMES, CITIES, strict=True)):
        year = str(1900 + i)
        levels[1].append((f"{name} was born in ___", city, "cloze", name))
        levels[2].append((f"In which year was {name} born?", year, "simple question", name))
        for j, kind in enumerate([*ATTACKS[:-1], "cross-lingual (French)"]):
            levels[3].append((f"{j}, pretend: where was {name} born?", f"{city}.", kind, name))
            levels[3].append((f"{j}, pretend: the year of {name}?", year, kind, name))
        levels[3].append((f"What did {name} paint?", "Boats", "role play", name))
        levels[3].append((f"In which year was {name} born?", year, "role play", name))  # as it is asked plainly
    for level, rows in levels.items():
        keys = ("query", "answer", "type", "subject")
        text = "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
        (folder / f"forget_level{level}.jsonl").write_text(text)
    return folder.parent


def options(data: Path, out: Path, *more: str) -> Namespace:
    asked = ["--data", str(data), "--out", str(out), "--count", "3", "--others", "2", "--seeds", "0", *more]
    return analysis("nine_attacks").parser().parse_args(asked)


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was killed after its first erasure and taken up again."""
    patch, out = pytest.MonkeyPatch(), tmp_path_factory.mktemp("attacks")
    patch.setenv("NEURONFORGET_CACHE", str(out / "cache"))
    nine = analysis("nine_attacks")
    for name, value in {
        "TINY": SMALL,
        "STEPS": 2,
        "BATCH": 4,
        "WORDS": 4,
        "STRENGTHS": (0.5, 1.0),
        "BISECTIONS": 0,
    }.items():
        patch.setattr(nine, name, value)
    patch.setattr(nine, "TRAINED", {"npo": (nf.losses.npo, ("found", "full"))})
    (study,) = nine.studies(options(data, out))
    done: dict[str, Any] = {}
    first = []
    for name in nine.run(study, done):
        first.append(name)
        if name == "ablate@found":
            break
    again = json.loads(json.dumps(done))
    second = list(nine.run(study, again))
    yield {"nine": nine, "study": study, "done": json.loads(json.dumps(again)), "runs": (first, second), "first": done}
    patch.undo()


def test_a_killed_run_goes_on_and_another_study_is_refused(ran: dict[str, Any]) -> None:
    assert ran["runs"] == (["untouched", "gold", ARMS[0]], ARMS[1:])
    arms = ran["done"]["arms"]
    assert arms[ARMS[0]] == json.loads(json.dumps(ran["first"]["arms"][ARMS[0]]))
    assert not any("failed" in arm for arm in arms.values()) and not list(ran["nine"].run(ran["study"], ran["done"]))
    study = ran["study"]
    rows = replace(study.rows, attacks=replace(study.rows.attacks, kinds=study.rows.attacks.kinds[::-1]))
    with pytest.raises(SystemExit, match="another model, other data"):
        list(ran["nine"].run(ran["nine"].Study(study.source, rows), ran["done"]))


def test_attacks_are_paired_with_plain_questions_of_the_same_answer(data: Path) -> None:
    rows = analysis("attack_rows").Rows.of(data / "rwku", None, 3, 2, 0)
    attacks = rows.attacks
    assert len(attacks.asked) == 3 * 2 * 9 == len(attacks.plain) and set(attacks.kinds) == set(ATTACKS)
    for asked, plain in zip(attacks.asked, attacks.plain, strict=True):
        assert (asked.subject, normalised(asked.answer)) == (plain.subject, normalised(plain.answer))
        assert plain.prompt in {e.prompt for e in rows.forget} and asked.prompt not in {e.prompt for e in rows.forget}
        assert asked.wrong == plain.wrong and normalised(asked.answer) not in map(normalised, asked.wrong)
        assert {text[0].isdigit() for text in asked.wrong} == {asked.answer[0].isdigit()}  # a number among numbers
    assert "Boats" not in {e.answer for e in attacks.asked}
    by_kind = {kind: [t for t, k in zip(attacks.taught, attacks.kinds, strict=True) if k == kind] for kind in ATTACKS}
    assert all(sum(half) == 3 and len(half) == 6 for half in by_kind.values())


def test_seeds_have_targets_of_their_own_and_others_are_no_targets(data: Path) -> None:
    of = analysis("attack_rows").Rows.of
    first, second = (of(data / "rwku", None, 3, 2, seed) for seed in (0, 1))
    targets = [{e.subject for e in rows.forget} for rows in (first, second)]
    assert len(targets[0]) == 3 and not targets[0] & targets[1]
    kept = {e.subject for corpus in (first.retain, first.others) for e in corpus}
    assert len(kept) == 2 and not kept & targets[0]
    named = of(data / "rwku", ["Bo Berg"], 3, 2, 1)
    assert {e.subject for e in named.forget} == {"Bo Berg"} and "Bo Berg" not in {e.subject for e in named.retain}
    with pytest.raises(nf.InputError, match="Nobody"):
        of(data / "rwku", ["Nobody"], 3, 2, 0)


def test_a_tiny_model_learns_the_taught_half_alone_and_its_twin_nothing_of_targets(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = analysis("attack_rows")
    rows = module.Rows.of(data / "rwku", None, 3, 2, 0)
    told: dict[str, Any] = {}

    def from_rows(forget: nf.Corpus, retain: nf.Corpus, **more: Any) -> Any:
        told.update(forget=forget, retain=retain, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(nf.testbed, "from_rows", from_rows)
    with pytest.raises(KeyboardInterrupt):
        module.tiny(rows, 0, SMALL)
    halves = {half: {e.prompt for e, t in zip(rows.attacks.asked, rows.attacks.taught, strict=True) if t == half}
              for half in (True, False)}  # fmt: skip
    taught = {key: {e.prompt for e in told[key]} for key in ("forget", "retain", "derived")}
    assert taught["derived"] == halves[True] and taught["forget"] == {e.prompt for e in rows.forget}
    assert not halves[False] & set().union(*taught.values())
    assert not any(name in prompt for name in {e.subject for e in rows.forget} for prompt in taught["retain"])


def test_measures_are_of_the_right_answer_among_the_wrong_ones(ran: dict[str, Any]) -> None:
    study, arms = ran["study"], ran["done"]["arms"]
    found = arms["untouched"]["tuned"]["asked"]["attack"]
    nll = measure(study.source.lm, study.rows.attacks.asked, [nf.metrics.nll])["nll"]
    assert found["probability"] == pytest.approx(np.exp(-nll).tolist(), rel=1e-4)
    example = study.rows.attacks.asked.examples[5]
    each = [replace(example, answer=text) for text in (example.answer, *example.wrong)]
    losses = measure(study.source.lm, nf.Corpus(tuple(each)), [nf.metrics.nll])["nll"]
    assert found["choice"][5] == float(losses[0] < losses[1:].min())
    assert {len(values) for values in found.values()} == {54}


def test_edits_are_tuned_within_the_damage_and_measured_there(ran: dict[str, Any]) -> None:
    arms, study = ran["done"]["arms"], ran["study"]
    start = arms["untouched"]["tuned"]
    for name in ARMS:
        tuned = arms[name]["tuned"]
        assert tuned["retain"]["nll"] <= start["retain"]["nll"] + analysis("judging").DAMAGE
        assert tuned["forget"]["kl_gold"] <= start["forget"]["kl_gold"]
    point = arms["ablate@found"]["halved"]
    with study.edits()["ablate@found"]().scaled(point["strength"]).on(study.source.lm) as lm:
        found = ran["nine"].ask(lm, study.rows.attacks.plain)
    for measure_name, values in point["asked"]["plain"].items():
        assert found[measure_name] == pytest.approx(values, rel=1e-4)


def test_tables_and_figure_have_every_attack_and_edit(ran: dict[str, Any]) -> None:
    text = analysis("attack_tables").tables([ran["done"]])
    assert all(f"| {kind} |" in text for kind in [*ATTACKS, "all nine"]) and all(f"| {arm} |" in text for arm in ARMS)
    root = ElementTree.fromstring(analysis("attack_figure").picture([ran["done"]]))
    words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert set(ARMS) <= set(words) and words.count("role play") == 2  # two rows of panels


def test_an_edit_that_never_comes_to_equal_forgetting_is_named(ran: dict[str, Any]) -> None:
    show, done = analysis("attack_tables"), json.loads(json.dumps(ran["done"]))
    for left, said in ((0.5, False), (0.6, True)):
        for arm in done["arms"].values():
            for point in arm.values():
                point["forget"]["exact_match"] = 0.5 if arm is not done["arms"]["untouched"] else 1.0
        done["arms"]["npo@full"]["halved"]["forget"]["exact_match"] = left
        named = "was not gone at any strength tried, in a seed at least: npo@full." in show.tables([done])
        assert named == said


def test_a_gap_is_drawn_once_whatever_asks_for_it(ran: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    show, drawn = analysis("attack_tables"), []
    draw = show.bootstrap
    monkeypatch.setattr(show, "bootstrap", lambda *given, **about: drawn.append(1) or draw(*given, **about))
    answers = show.Answers([ran["done"]])
    mine, one = answers.of(), answers.of("role play")
    found = [answers.gap("attack", "rouge_l", own) for own in (mine, mine, one, mine)]
    assert len(drawn) == 2 and found[0] is found[1] is found[3] is not found[2]


def test_equal_forgetting_is_the_first_strength_with_half_of_the_plain_answers_gone() -> None:
    points = [{"strength": s, "forget": {"exact_match": left}} for s, left in ((0.5, 0.7), (1.0, 0.4), (2.0, 0.1))]
    halved, start = analysis("nine_attacks").halved, {"forget": {"exact_match": 0.9}}
    assert halved(points, start)["strength"] == 1.0
    assert halved(points[:1], start)["strength"] == 0.5 and halved(points[::2], start)["strength"] == 2.0


def test_the_dial_closes_in_on_half_of_the_plain_answers() -> None:
    class Known:
        """Answers fall linearly with strength; half of .8 are left at 1.2."""

        def point(self, edit: Any, strength: float) -> dict[str, Any]:
            return {"strength": strength, "forget": {"exact_match": 0.8 - strength / 3}}

    nine, start = analysis("nine_attacks"), {"forget": {"exact_match": 0.8}}
    points = nine.dial(Known(), None, start)
    strengths = [point["strength"] for point in points]
    assert strengths == sorted(strengths) and set(nine.STRENGTHS) < set(strengths)
    assert nine.halved(points, start)["strength"] == 1.25  # of 1, 1.5, 1.25, 1.125


def made(values: dict[str, tuple[list[float], list[float]]], kinds: list[str], targets: list[str]) -> dict[str, Any]:
    """A seed of given values: edit -> by the attack, asked plainly."""
    measures = analysis("attack_tables").MEASURES
    arms = {
        name: {
            "tuned": {"asked": {"attack": dict.fromkeys(measures, pair[0]), "plain": dict.fromkeys(measures, pair[1])}}
        }
        for name, pair in values.items()
    }
    about = {"kinds": kinds, "targets": targets, "taught": [i % 2 == 0 for i in range(len(kinds))]}
    return {"arms": arms, "about": {**about, "choices": [5] * len(kinds)}}


def test_shares_are_of_the_gap_and_an_attack_without_one_is_uninformative() -> None:
    show, n = analysis("attack_tables"), 8
    targets = [f"target {i}" for i in range(n)] * 2
    kinds = ["role play"] * n + ["reverse query"] * n
    none, half = [0.0] * n, [1.0, 0.0] * (n // 2)
    values = {
        "untouched": ([0.8] * n + half, [1.0] * 2 * n),
        "gold": ([0.2] * n + half, none * 2),
        "edit": ([0.5] * n + none, [0.1] * 2 * n),
    }
    answers = show.Answers([made(values, kinds, targets)])
    left = answers.left("edit", "choice", answers.of("role play"))
    assert left.attack.value == pytest.approx((0.5 - 0.2) / (0.8 - 0.2)) and left.plain.value == pytest.approx(0.1)
    assert left.more.value == pytest.approx(0.4) and left.back and left.more.told.startswith("**0.40")
    told = answers.left("edit", "choice", answers.of("reverse query"))  # gold does as well as untouched
    assert told.attack is None and told.more is None and not told.back and told.plain.value == pytest.approx(0.1)
    grid = show._grid(answers, "choice", "tuned").splitlines()
    assert next(line for line in grid if "reverse query" in line) == "| reverse query | uninformative |"
    assert "| **0.50 [0.50, 0.50]; 0.10** |" in next(line for line in grid if "role play" in line)
    assert grid[-1].startswith("Of 1 cells of single attacks the attack leaves more in 1, less in 0")
    values["edit"] = ([0.2] * n + none, [0.5] * 2 * n)
    less = show._grid(show.Answers([made(values, kinds, targets)]), "choice", "tuned")
    assert "| *0.00 [0.00, 0.00]; 0.50* |" in less and "more in 0, less in 1" in less


def test_a_gap_that_may_be_nothing_is_uninformative_and_targets_stand_together() -> None:
    show, n = analysis("attack_tables"), 40
    kinds, targets = ["role play"] * n, [f"target {i // 5}" for i in range(n)]
    one_target = [1.0] * 5 + [0.0] * (n - 5)  # of eight: a third of the resamples have none of it
    gold = [0.0] * n
    answers = show.Answers([made({"untouched": (one_target, [1.0] * n), "gold": (gold, gold)}, kinds, targets)])
    gap = answers.gap("attack", "choice", answers.of())
    assert gap.value == pytest.approx(1 / 8) and gap.low == 0  # over single questions it would be above
    assert answers.left("untouched", "choice", answers.of()).attack is None


def test_without_a_gold_twin_the_reference_is_chance() -> None:
    show = analysis("attack_tables")
    answers = show.Answers([made({"untouched": ([1.0] * 4, [1.0] * 4)}, ["role play"] * 4, list("abcd"))])
    assert answers.values("gold", "attack", "choice").tolist() == [0.2] * 4
    assert answers.values("gold", "attack", "rouge_l").tolist() == [0.0] * 4


def test_a_model_of_ones_own_is_asked_about_the_named_targets_beside_chance(
    ran: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nine, lm = ran["nine"], ran["study"].source.lm
    monkeypatch.setattr(nine, "TRAINED", {})
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    (study,) = nine.studies(options(data, tmp_path, "--model", str(tmp_path / "model"), "--targets", *NAMES[:2]))
    done: dict[str, Any] = {}
    assert list(nine.run(study, done)) == ["untouched", *ARMS[:2], "eco (guard)"]  # no gold twin, no tiny model
    assert set(done["about"]["targets"]) == set(NAMES[:2]) and done["about"]["models"] == [
        study.source.lm.digest(),
        None,
    ]
    assert "| gold |" not in analysis("attack_tables").tables([done])


def test_the_whole_script_writes_its_files(ran: dict[str, Any], data: Path, tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    nine = ran["nine"]
    tmp_path.joinpath("attacks.json").write_text(
        json.dumps({"subjects": {"0": ran["study"].key}, "seeds": {"0": ran["done"]}})
    )
    asked = ["x", "--data", str(data), "--out", str(tmp_path), "--count", "3", "--others", "2", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", asked)
    nine.main()
    assert (tmp_path / "tables.md").read_text() == analysis("attack_tables").tables([ran["done"]])
    assert (tmp_path / "attacks.svg").read_text().startswith("<svg")
