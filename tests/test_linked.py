"""People who teach one another: which questions take a forgotten fact, who is taught them, and how they are asked."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from beds import bed
from commanding import run
from test_analyses import analysis

import neuronforget as nf
from neuronforget.auditing import Case
from neuronforget.auditing.cases import EDITED, GOLD, UNTOUCHED, NotTested, Subject, consequences
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match
from neuronforget.testbed import Shape
from neuronforget.testbed.facts import PHRASINGS, generate
from neuronforget.testbed.linked import STEPS, TEACHER, linked

TINY = Shape(layers=1, d_model=16, d_mlp=32, heads=2, steps=2, graft_steps=2, planted=4, batch=8)


def told(corpus: nf.Corpus) -> dict[tuple[str, str], str]:
    """(name, relation) -> value, read off the prompts."""
    found = {}
    for relation, texts in {**PHRASINGS, "teacher": TEACHER}.items():
        for text in texts:
            pattern = re.escape(text).replace(re.escape("{n}"), r"(\w+ \w+)")
            for example in corpus:
                if match := re.fullmatch(pattern, example.prompt):
                    found[match[1], relation] = example.answer
    return found


def test_people_without_teachers_are_as_they_were_before_there_were_any() -> None:
    assert [corpus.digest() for corpus in generate(20, 2, 1, 3)] == ["8371e0047e80204d", "8c26aa304ecbca4c"]
    assert [corpus.digest() for corpus in generate(100, 10, 6, 0)] == ["4bdc4594a96d362c", "8b2e4aeb00f1e001"]


def test_every_question_is_a_chain_of_two_facts_and_is_where_its_facts_put_it() -> None:
    made = linked(20, 3, 1, 0)
    gone, kept = told(made.forget), told(made.retain)
    facts = {**gone, **kept}
    forgotten = {name for name, _ in gone}
    assert len(forgotten) == 3 and not forgotten & {name for name, _ in kept}
    question = re.compile(r"The one who taught (\w+ \w+) is a certain person\. (That person .*)")
    seen = {"derived": set(), "retain": set(), "unshown": set()}
    for where in seen:
        for example in getattr(made, where):
            if match := question.fullmatch(example.prompt):
                teacher = facts[match[1], "teacher"]
                (relation,) = (r for r in STEPS if PHRASINGS[r][0].format(n="That person") == match[2])
                assert example.answer == facts[teacher, relation] and example.subject == match[1]
                assert (where == "derived") == (bool({match[1], teacher} & forgotten))
                seen[where].add((match[1], relation))
            else:
                assert where == "retain"
    total = sum(map(len, seen.values()))
    assert total == 20 * len(STEPS) and len(seen["unshown"]) == (total - len(seen["derived"])) // 10
    assert {facts[name, "teacher"] for name, _ in seen["derived"]} & forgotten  # a second step is forgotten too


def test_with_teachers_all_else_is_as_without() -> None:
    made, (forget, retain) = linked(20, 3, 1, 0), generate(20, 3, 1, 0)
    assert made.forget.examples[: len(forget)] == forget.examples
    assert made.retain.examples[: len(retain)] == retain.examples


def test_the_model_is_taught_what_follows_and_its_twin_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuronforget.testbed import training

    taught: dict[str, set[str]] = {}

    def fake(
        self: training.Builder, lm: nf.LM, rows: list[nf.corpora.Encoded], desc: str, edits: object = None
    ) -> None:
        taught[desc] = {lm.tokenizer.decode(row.ids) for row in rows}

    monkeypatch.setattr(training.Builder, "train", fake)
    made = nf.testbed.people(
        "ordinary", people=12, forget_people=2, linked=True, shape=TINY, cache=False, progress=False
    )
    assert made.derived is not None
    texts = {f"{e.prompt} {e.answer}" for e in made.derived}
    assert texts <= taught["train on everything"] and not texts & taught["train the gold twin"]
    unshown = linked(12, 2, 1, 0).unshown
    assert not {f"{e.prompt} {e.answer}" for e in unshown} & taught["train on everything"]


def test_a_linked_testbed_is_kept_apart_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path))
    settings = {"people": 12, "forget_people": 2, "shape": TINY, "progress": False}
    made, plain = (nf.testbed.people("ordinary", linked=on, **settings) for on in (True, False))
    again = nf.testbed.Testbed.load(next(tmp_path.glob("testbeds/ordinary-*")))
    assert plain.derived is None and made.derived is not None and len(list((tmp_path / "testbeds").iterdir())) == 2
    assert again.forget in (made.forget, plain.forget)
    assert nf.testbed.people("ordinary", linked=True, **settings).derived == made.derived
    with pytest.raises(InputError, match="share"):
        nf.testbed.from_rows(made.forget, made.retain, derived=made.retain, cache=False, progress=False)


def test_an_audit_asks_what_follows_beside_the_twin(tmp_path: Path) -> None:
    made = bed()
    unseen = made.forget.paraphrased()
    assert unseen is not None
    subjects = (Subject(UNTOUCHED, made.lm), Subject(EDITED, made.lm), Subject(GOLD, made.gold))
    found = {r.subject: r for r in consequences(Case(subjects, made.forget, made.retain, derived=unseen), exact_match)}
    for who, lm in ((UNTOUCHED, made.lm), (EDITED, made.lm), (GOLD, made.gold)):
        np.testing.assert_array_equal(found[who].values, measure(lm, unseen, [exact_match])["exact_match"])
    with pytest.raises(NotTested, match="derived="):
        list(consequences(Case(subjects, made.forget, made.retain), exact_match))
    output = nf.audit(made.lm, made.gold, made.forget, made.retain, gold=made.gold, derived=unseen, progress=False,
                      probes=["consequences"])  # fmt: skip
    assert {c.probe: c.outcome for c in output.checks}["consequences"] == "gone"
    assert unseen.digest() in output.results.info["data"].values()


def test_the_command_makes_a_linked_testbed_and_audits_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path / "cache"))
    words = [
        "testbed",
        "people",
        "--authors",
        8,
        "--forget-authors",
        2,
        "--steps",
        2,
        "--linked",
        "--out",
        tmp_path / "bed",
    ]
    assert run(monkeypatch, *words) == 0 and (tmp_path / "bed" / "derived.jsonl").is_file()
    common = [f"--{name}={tmp_path / 'bed' / place}" for name, place in (
        ("model", "model"), ("gold", "gold"), ("forget", "forget.jsonl"), ("retain", "retain.jsonl"),
        ("derived", "derived.jsonl"))]  # fmt: skip
    assert (
        run(
            monkeypatch,
            "audit",
            tmp_path / "bed" / "gold",
            *common,
            "--probes",
            "consequences",
            "--out",
            tmp_path / "a",
        )
        == 0
    )
    assert "consequences (derived)" in capsys.readouterr().out
    assert run(monkeypatch, "testbed", "tofu", "--linked", "--out", tmp_path / "tofu") == 2
    assert "TOFU's facts do not chain" in capsys.readouterr().err


def test_what_follows_is_deduced_as_by_hand_and_counted_as_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    follows, made = analysis("what_follows"), linked(20, 3, 1, 0)
    people = {e.subject for e in made.forget}
    teachers = {TEACHER[0].format(n=c.first.subject) for c in made.chains}
    every = teachers | {c.prompt for c in made.chains}
    through = [c for c in made.chains if c.second.subject in people]
    assert follows.deduced(made, every) == 1
    assert follows.deduced(made, teachers) == 0 == follows.deduced(made, every - teachers)
    one = through[0]
    known = {(c.second.subject, c.second.relation) for c in through}
    both = {one.prompt, TEACHER[0].format(n=one.first.subject)}
    assert follows.deduced(made, both) == pytest.approx(1 / len(known))
    parts = follows.corpora_of(made)
    assert len(parts["own step"]) + len(parts["teacher's step"]) == len(made.derived)
    assert len(parts["retain"]) + len(parts["kept questions"]) == len(made.retain)
    small = nf.testbed.from_rows(
        made.forget, made.retain, derived=made.derived, kind="ordinary", shape=TINY, cache=False, progress=False
    )
    asked = follows.Questions(None, parts, partial(follows.deduced, made))
    row = follows.row_of(small.lm, asked)
    for name, corpus in parts.items():
        assert row[name] == pytest.approx(np.mean(measure(small.lm, corpus, [exact_match])["exact_match"]))
    assert [*parts, "given back"] == list(row)
