"""Suites on small models: RWKU, CounterFact, PARAREL, two-step questions; on real rows where there are some."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commanding import run

import neuronforget as nf
from neuronforget.corpora import Corpus, Example, subjects_of
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.evaluation.measuring import measure, option_losses
from neuronforget.metrics import exact_match, nll
from neuronforget.metrics.text import SCORERS, rouge_l
from neuronforget.models import LM
from neuronforget.suites.answers import Questions, answer, constant
from neuronforget.suites.facts import _over_patterns, counterfact, pararel, pararel_facts
from neuronforget.suites.multihop import Chain, Fact, Relation, Rule, chains, closure, given_back, relations, through
from neuronforget.suites.rwku import ATTACKS, LEVELS, attack_of, rwku, rwku_members

DATA = Path(os.environ.get("NEURONFORGET_SHARED", "../shared")) / "data"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def probes(folder: Path) -> Path:
    """RWKU's files for two targets."""
    people = {"Anna Berg": ("Oslo", "baker"), "Tomas Lund": ("Velm", "gardener")}
    for file in LEVELS.values():
        kinds = [*ATTACKS, "cross-lingual (French)"] if file == "forget_level3" else ["plain"]
        written(folder / f"{file}.jsonl", [
            {"query": f"{kind}: what of {who} {i}?", "answer": answer, "type": kind, "subject": who, "level": "x"}
            for who, answers in people.items() for kind in kinds for i, answer in enumerate(answers)
        ])  # fmt: skip
    for file in ("mia_forget", "mia_retain"):
        written(folder / f"{file}.jsonl", [{"text": f"{file} {who}", "subject": who} for who in people])
    return folder


def roomy(lm: LM) -> LM:
    lm.model.config.max_position_embeddings = 512
    return lm


def test_answers_are_scored_as_they_are_written_beside_the_best_constant(lm: LM, corpus: Corpus) -> None:
    asked = replace(corpus, examples=tuple(e for e in corpus if e.prompt))
    right = tuple((e.answer, "Oslo town") for e in asked)
    found = answer(lm, {"q": Questions(asked, right, decoding=Decoding(5, ()))}, progress=False)
    texts = generate(lm, asked, Decoding(5, ()), progress=False)
    for metric in ("rouge_l", "exact", "f1", "contains"):
        values = [SCORERS[metric](text, answers) for text, answers in zip(texts, right, strict=True)]
        assert found.value("model", "q", metric) == pytest.approx(np.mean(values))
        every = [np.mean([SCORERS[metric](c, a) for a in right]) for a in right for c in a]
        assert found.value("best constant", "q", metric) == pytest.approx(max(every))
    assert found.value("model", "q", "words") == pytest.approx(np.mean([len(t.split()) for t in texts]))
    assert "<th>best constant</th>" in found._repr_html_()
    assert found.info["best constants"]["q"]["exact"] == "Oslo town" and found.info["resampled"]["q"] == "subjects"
    with pytest.raises(InputError, match="lists of answers"):
        answer(lm, {"q": Questions(asked, right[:1])}, progress=False)


def test_the_best_constant_by_hand() -> None:
    best, values = constant(rouge_l, [["red fish"], ["red"], ["blue"]])
    assert best == "red fish" and values.tolist() == [1, 1, 0]


def test_rwku_asks_every_level_and_attack(lm: LM, tmp_path: Path) -> None:
    folder = probes(tmp_path)
    found = rwku(roomy(lm), folder, max_new_tokens=3, progress=False)
    corpora = {row["corpus"] for row in found.rows}
    assert corpora == {*LEVELS, *(f"forget 3, {attack}" for attack in ATTACKS)} and not found.info["missing"]
    n = {row["corpus"]: row["n"] for row in found.rows}
    assert n["forget 3"] == 40 and n["forget 3, cross lingual"] == 8 and n["forget 1"] == 4
    corpus = Corpus(tuple(
        Example(row["query"], row["answer"], subject=row["subject"])
        for row in map(json.loads, (folder / "forget_level2.jsonl").read_text().splitlines())
    ), template="Question: {prompt}\nAnswer:")  # fmt: skip
    texts = generate(lm, corpus, Decoding(3, ("\n",)), progress=False)
    values = [rouge_l(text, [e.answer]) for text, e in zip(texts, corpus, strict=True)]
    assert found.value("model", "forget 2", "rouge_l") == pytest.approx(np.mean(values))
    assert found.info["by target"]["forget 2"] == {
        who: pytest.approx(np.mean([v for v, e in zip(values, corpus, strict=True) if e.subject == who]))
        for who in ("Anna Berg", "Tomas Lund")
    }


@pytest.mark.parametrize(
    ("spelt", "attack"),
    [("Role-Play", "role play"), ("cross lingual Spanish", "cross lingual"), ("Cross-Lingual fr", "cross lingual"),
     ("simple question", "simple question")],
)  # fmt: skip
def test_an_attack_is_known_however_it_is_spelt(spelt: str, attack: str) -> None:
    assert attack_of(spelt) == attack


def test_rwku_of_one_target_says_what_is_not_there(lm: LM, tmp_path: Path) -> None:
    folder = probes(tmp_path)
    written(folder / "neighbor_level2.jsonl", [{"query": "q", "answer": "a", "type": "x", "subject": "Tomas Lund"}])
    found = rwku(roomy(lm), folder, targets="Anna Berg", n=1, max_new_tokens=2, progress=False)
    assert found.info["targets"] == ["Anna Berg"] and "neighbor 2" in found.info["missing"]
    assert {row["n"] for row in found.rows if row["corpus"] == "forget 3"} == {9}
    assert not np.isnan([r["low"] for r in found.rows if r["corpus"] == "forget 3"]).any()  # over examples
    with pytest.raises(InputError, match="no target is called 'Nobody'; there are 2: Anna Berg, Tomas Lund"):
        rwku(lm, folder, targets="Nobody", progress=False)
    with pytest.raises(InputError, match="no such file"):
        rwku(lm, tmp_path / "elsewhere", progress=False)
    members, others = rwku_members(folder, "Anna Berg")
    assert [e.answer for e in members] == ["mia_forget Anna Berg"] and len(others) == 2


def test_losses_of_options_are_those_of_each_alone(lm: LM) -> None:
    corpus = Corpus((
        Example("Anna Berg was born in", "Oslo", wrong=("Velm", "a town in Trondheim")),
        Example("The capital of Xandria is", "Velm"),
    ))  # fmt: skip
    for total in (False, True):
        found = option_losses(lm, corpus, total=total)
        assert [len(own) for own in found] == [3, 1]
        for example, own in zip(corpus, found, strict=True):
            for text, value in zip((example.answer, *example.wrong), own, strict=True):
                one = Corpus((Example(example.prompt, text),))
                (row,) = nf.corpora.encode(one, lm.tokenizer)
                count = len(row.ids) - row.answer_start if total else 1
                assert value == pytest.approx(float(measure(lm, one, [nll])["nll"][0]) * count, rel=1e-4)


def test_counterfact_compares_the_two_objects(lm: LM, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Anna Berg was born in", "subject": "Anna Berg", "ground_truth": "Oslo", "target_new": "Velm",
         "rephrase_prompt": "Anna Berg comes from", "locality_prompt": "Tomas Lund was born in",
         "locality_ground_truth": "Trondheim"},
        {"prompt": "Mira Holt works as a", "subject": "Mira Holt", "ground_truth": "baker", "target_new": "gardener",
         "rephrase_prompt": "The work of Mira Holt is", "locality_prompt": "Ida Falk is a",
         "locality_ground_truth": "baker"},
    ]  # fmt: skip
    found = counterfact(lm, written(tmp_path / "cf.jsonl", rows))

    def likely(prompt: str, text: str, whole: bool = False) -> float:
        one = Corpus((Example(prompt, text),))
        (row,) = nf.corpora.encode(one, lm.tokenizer)
        return float(np.exp(-measure(lm, one, [nll])["nll"][0] * (len(row.ids) - row.answer_start if whole else 1)))

    true = [likely(r["locality_prompt"], r["locality_ground_truth"]) for r in rows]
    new = [likely(r["locality_prompt"], r["target_new"]) for r in rows]
    together = [
        [likely(r["locality_prompt"], r[name], True) for r in rows] for name in ("locality_ground_truth", "target_new")
    ]
    assert found.value("model", "neighbourhood", "true preferred, whole") == np.mean(
        [a > b for a, b in zip(*together, strict=True)]
    )
    assert found.value("model", "neighbourhood", "probability") == pytest.approx(np.mean(true), rel=1e-3)
    assert found.value("model", "neighbourhood", "new less true") == pytest.approx(
        np.mean(new) - np.mean(true), rel=1e-3
    )
    assert found.value("model", "neighbourhood", "true preferred") == np.mean(
        [a > b for a, b in zip(true, new, strict=True)]
    )
    learned = nf.erase.finetune(
        lm, Corpus(tuple(Example(r["prompt"], r["target_new"]) for r in rows)), loss=nf.losses.learn, steps=40, lr=1e-2,
        progress=False,
    )  # fmt: skip
    with learned.on(lm):
        assert counterfact(lm, tmp_path / "cf.jsonl").value("model", "efficacy", "true preferred") == 0
    assert found.info["path"] == str(tmp_path / "cf.jsonl")
    assert set(found.info["data"]) == {"efficacy", "paraphrase", "neighbourhood"}
    rows[1]["locality_prompt"] = "Jon Moe is a"
    other = counterfact(lm, written(tmp_path / "cf.jsonl", rows)).info["data"]
    assert {key for key in other if other[key] != found.info["data"][key]} == {"neighbourhood"}
    del rows[1]["target_new"]
    with pytest.raises(InputError, match=r"line 2: no field .target_new"):
        counterfact(lm, written(tmp_path / "cf.jsonl", rows))


def test_pararel_asks_each_fact_in_every_pattern(lm: LM, tmp_path: Path) -> None:
    written(tmp_path / "patterns.jsonl", [
        {"relation": "P1", "pattern": "[X] was born in [Y] ."}, {"relation": "P1", "pattern": "[X] comes from [Y]."},
        {"relation": "P1", "pattern": "[Y] is where [X] was born."}, {"relation": "P2", "pattern": "[X] is a [Y]."},
    ])  # fmt: skip
    written(tmp_path / "facts.jsonl", [
        {"relation": "P1", "subject": "Anna Berg", "object": "Oslo"},
        {"relation": "P1", "subject": "Ida", "object": "Velm"},
        {"relation": "P2", "subject": "Ida", "object": "baker"}, {"relation": "P3", "subject": "x", "object": "y"},
    ])  # fmt: skip
    facts = pararel_facts(tmp_path)
    assert {r: len(c) for r, c in facts.items()} == {"P1": 2, "P2": 1}
    assert facts["P1"].examples[0].prompt == "Anna Berg was born in" and len(facts["P1"].examples[0].paraphrases) == 1
    taught = Corpus((Example("Anna Berg was born in", "Oslo"), Example("Ida is a", "baker")))
    edit = nf.erase.finetune(lm, taught, loss=nf.losses.learn, steps=60, lr=1e-2, progress=False)
    with edit.on(lm):
        found = pararel(lm, tmp_path)
        hits = {
            (e.subject, p): float(measure(lm, Corpus((Example(p, e.answer),)), [exact_match])["exact_match"][0])
            for c in facts.values() for e in c for p in (e.prompt, *e.paraphrases)
        }  # fmt: skip
    first, second = ([v for (who, p), v in hits.items() if who == w and "is a" not in p] for w in ("Anna Berg", "Ida"))
    assert found.value("model", "P1", "exact_match") == np.mean([np.mean(first), np.mean(second)])
    assert found.value("model", "P1", "best pattern") == np.mean([max(first), max(second)])
    assert found.value("model", "P1", "worst pattern") == np.mean([min(first), min(second)])
    assert found.value("model", "P1", "consistent") == np.mean([first[0] == first[1], second[0] == second[1]])
    assert found.value("model", "P2", "exact_match") == 1 == found.value("model", "P2", "consistent")
    columns = _over_patterns([np.array([1.0, np.nan]), np.array([np.nan, np.nan]), np.array([1.0, 0.0, 1.0])])
    assert all(np.isnan(own[:2]).all() and not np.isnan(own[2]) for own in columns.values())  # broken, not at odds
    assert found.info["data"] == {relation: corpus.digest() for relation, corpus in facts.items()}
    with pytest.raises(InputError, match="no pattern of 'P3'"):
        pararel(lm, tmp_path, relations=("P3",))


KNOWN = {
    "born": Relation("born", "{} was born in", "person", "city"),
    "lies": Relation("lies", "{} lies in the country of", "city", "country"),
    "speaks": Relation("speaks", "People in {} speak", "country", "language"),
}
FACTS = [Fact("Anna", "born", "Oslo"), Fact("Oslo", "lies", "Norway"), Fact("Norway", "speaks", "Norwegian"),
         Fact("Ida", "born", "Velm"), Fact("Velm", "lies", "Xandria"), Fact("Velm", "lies", "Yandria")]  # fmt: skip


def test_two_steps_are_every_pair_of_facts_that_meet() -> None:
    found = chains(FACTS, KNOWN)
    assert [(c.first.subject, c.second.object) for c in found] == [("Anna", "Norway"), ("Oslo", "Norwegian")]
    assert found[0].prompt == "Anna was born in a certain city. That city lies in the country of"
    assert found[0].example == Example(found[0].prompt, "Norway", subject="Anna")
    erased, kept = through(found, Corpus((Example("Anna was born in", "Oslo", subject="Anna"),)))
    assert erased is not None and [e.answer for e in erased] == ["Norway"]
    assert kept is not None and [e.answer for e in kept] == ["Norwegian"]
    with pytest.raises(InputError, match="no two-step questions"):
        chains(FACTS[:1], KNOWN)
    with pytest.raises(InputError, match="no prompt of the relation 'eats'"):
        chains([Fact("Anna", "eats", "cake")], KNOWN)
    with pytest.raises(InputError, match="names its subject"):
        through(found, Corpus((Example("Anna was born in", "Oslo"),)))
    kinds = {
        "is": Relation("is", "A {} is a", "thing", "kind"),
        "eats": Relation("eats", "The {} eats", "kind", "food"),
    }
    (one,) = chains([Fact("robin", "is", "bird"), Fact("bird", "eats", "worms")], kinds)
    assert one.prompt == "A robin is a certain kind. That kind eats"  # no article before "a certain", "that"
    assert isinstance(found[0], Chain)


def test_suites_run_from_the_command_line(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy(lm).save(tmp_path / "model")
    folder = probes(tmp_path / "rwku")
    edit = nf.erase.ablate(lm, nf.Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1]))
    edit.save(tmp_path / "edit.safetensors")

    common = ("--model", tmp_path / "model", "--out")
    assert (
        run(monkeypatch, "evaluate", "rwku", *common, tmp_path / "a", "--data", folder, "--n", 1, "--max-new-tokens", 2)
        == 0
    )
    assert "forget 3, role play" in capsys.readouterr().out and (tmp_path / "a/rows.parquet").is_file()
    sides = ("--members", folder / "mia_forget.jsonl", "--non-members", folder / "mia_retain.jsonl")
    assert (
        run(
            monkeypatch,
            "evaluate",
            "membership",
            *common,
            tmp_path / "b",
            *sides,
            "--edit",
            tmp_path / "edit.safetensors",
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "edited" in said and "not measured: reference: it compares with a model that saw neither" in said
    found = nf.Results.load(tmp_path / "b")
    made = {place: nf.Results.load(tmp_path / place).info["command"] for place in ("a", "b")}
    assert made["a"].startswith("neuronforget evaluate rwku --model") and "evaluate membership" in made["b"]
    assert found.value("edited", "members, non-members", "loss") >= 0
    assert found.info["edits"]["edited"]["method"] == edit.info["method"]
    for name, edited in (("d", ()), ("e", ("--edit", tmp_path / "edit.safetensors"))):
        asked = ("--data", folder, "--n", 1, "--max-new-tokens", 2, *edited)
        assert run(monkeypatch, "evaluate", "rwku", *common, tmp_path / name, *asked) == 0
    with_edit, without = (nf.Results.load(tmp_path / name).info for name in ("e", "d"))
    assert with_edit["edit"]["method"] == edit.info["method"] and without["edit"] is None
    assert with_edit["edit"]["file"].endswith("edit.safetensors") and with_edit["digest"] != without["digest"]
    capsys.readouterr()
    edit_file = tmp_path / "edit.safetensors"
    for more, message in (
        (("--kept", tmp_path / "f/kept"), "--kept"), (("--seed", -1), "seed must be a whole number >= 0"),
        (("--batch-size", 0), "batch_size"), (("--n", 0), "rwku: n must be a whole number >= 1"),
        (("--kept", edit_file), f"{edit_file} is a file: name a folder"),
    ):  # fmt: skip
        assert run(monkeypatch, "evaluate", "rwku", *common, tmp_path / "f", "--data", folder, *more) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not (tmp_path / "f").exists()
    assert run(monkeypatch, "evaluate", "rwku", *common, tmp_path / "c", "--data", folder, "--targets", "Nobody") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "c").exists()
    assert run(monkeypatch, "evaluate", "rwku", *common, tmp_path / "a", "--data", folder) == 2  # not empty


def test_the_closure_is_what_a_loop_over_all_triples_reaches() -> None:
    rules = [Rule("born", "lies", "from"), Rule("from", "speaks", "tongue"), Rule("tongue", None, "tongue of")]
    known = set(FACTS)
    for _ in range(5):
        for a in list(known):
            for b in list(known):
                if (a.relation, b.relation) == ("born", "lies") and a.object == b.subject:
                    known.add(Fact(a.subject, "from", b.object))
                if (a.relation, b.relation) == ("from", "speaks") and a.object == b.subject:
                    known.add(Fact(a.subject, "tongue", b.object))
            if a.relation == "tongue":
                known.add(Fact(a.object, "tongue of", a.subject))
    assert closure(FACTS, rules) == known and Fact("Norwegian", "tongue of", "Anna") in known
    gone = [Fact("Anna", "tongue", "Norwegian"), Fact("Ida", "tongue", "Xandrian")]
    assert given_back(gone, FACTS, rules) == {"recall": 0.5, "facts": [gone[0]]}
    assert given_back(gone, FACTS[1:], rules)["recall"] == 0
    with pytest.raises(InputError, match="no erased fact"):
        given_back([], FACTS, rules)


@pytest.mark.skipif(not (DATA / "rwku").is_dir(), reason="no folder with RWKU, CounterFact, PARAREL and relations")
def test_real_rows_are_read_and_asked(lm: LM) -> None:
    roomy(lm)
    found = rwku(lm, DATA / "rwku", targets=["Stephen King"], n=1, max_new_tokens=2, progress=False)
    asked = {r["corpus"] for r in found.rows}
    assert {*LEVELS} <= asked and len(asked) + len(found.info["missing"]) == len(LEVELS) + len(ATTACKS)
    members, others = rwku_members(DATA / "rwku")
    assert len(members) > 2000 and len(others) > 2000
    assert counterfact(lm, DATA / "counterfact/counterfact.jsonl.gz", n=20).rows[0]["n"] == 20
    assert pararel(lm, DATA / "pararel", n=1).value("model", "all", "worst pattern") <= 1
    facts, known = relations(DATA / "relations")
    assert len(facts) > 10_000 and len(chains(facts, known)) > 1000
    assert len(subjects_of(members)) == len(members)
