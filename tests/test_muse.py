"""MUSE on small models: every number against a computation of its own, and what was not measured is said."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commanding import run

import neuronforget as nf
from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError
from neuronforget.generation import Decoding, generate
from neuronforget.metrics.membership import auc, resampled_auc
from neuronforget.models import LM
from neuronforget.suites.muse import leak, muse

VERBS = ("was born", "works", "is", "comes", "sings", "reads")
PEOPLE = ("Anna Berg {} in Oslo town.", "Tomas Lund {} in Velm town.")
FORGET, HOLDOUT = ([PEOPLE[(i + side) % 2].format(verb) for i, verb in enumerate(VERBS)] for side in (0, 1))
QUESTIONS = [{"question": f"Where is {who}?", "answer": place} for who, place in (("Anna", "Oslo"), ("Tomas", "Velm"))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """MUSE's parts in the three forms that are read; a brace among the examples shown."""
    folder = tmp_path / "muse"
    passages = [{"prompt": text[:12], "gt": text[12:] + " It is so." * 60} for text in FORGET]
    put(folder, "verbmem/forget.jsonl", passages)
    for part in ("forget_qa", "retain_qa"):
        put(folder, f"knowmem/{part}.json", QUESTIONS)
        put(folder, f"knowmem/{part}_icl.json", [{"question": "What is {x}?", "answer": "A {baker}"}])
    put(folder, "privleak/forget.json", FORGET)
    (folder / "privleak/holdout.jsonl.gz").write_bytes(
        gzip.compress("\n".join(json.dumps({"text": text}) for text in HOLDOUT).encode())
    )
    return folder


def put(folder: Path, name: str, rows: list[Any]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))


def roomy(lm: LM) -> LM:
    lm.model.config.max_position_embeddings = 1024
    return lm


def longest_common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by trying what comes first."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def words(text: str) -> list[str]:
    from nltk.stem.porter import PorterStemmer

    found = "".join(c if c.isalnum() and c.isascii() else " " for c in text.lower()).split()
    return [PorterStemmer().stem(word) if len(word) > 3 else word for word in found]


def test_verbatim_memory_is_the_rouge_f1_of_128_tokens(lm: LM, data: Path) -> None:
    found = muse(roomy(lm), data, progress=False)
    rows = [json.loads(line) for line in (data / "verbmem/forget.jsonl").read_text().splitlines()]
    corpus = Corpus(tuple(Example(row["prompt"], "x") for row in rows))
    values = []
    for row, text in zip(rows, generate(lm, corpus, Decoding(128, ()), progress=False), strict=True):
        ids = lm.tokenizer(row["gt"], add_special_tokens=False)["input_ids"]
        assert len(ids) > 128  # so that cutting the true continuation counts
        here, there = words(text), words(lm.tokenizer.decode(ids[:128]))
        common = longest_common(here, there)
        values.append(2 * common / (len(here) + len(there)) if common else 0.0)
    assert found.value("model", "verbatim", "rouge_l_f1") == pytest.approx(np.mean(values))


def test_knowledge_is_asked_after_the_examples_shown(lm: LM, data: Path) -> None:
    found = muse(roomy(lm), data, progress=False)
    shown = "Question: What is {x}?\nAnswer: A {baker}\n\n"
    asked = Corpus(tuple(Example(f"{shown}Question: {row['question']}\nAnswer:", "x") for row in QUESTIONS))
    texts = generate(lm, asked, Decoding(32, ("\n\n", "\nQuestion", "Question:")), progress=False)
    hits = [row["answer"].lower() in text.lower().split() for row, text in zip(QUESTIONS, texts, strict=True)]
    for key in ("knowledge, forget", "knowledge, retain"):
        assert found.value("model", key, "rouge_l") == np.mean(hits)
        assert found.value("best constant", key, "exact") == 0.5


def test_privacy_is_the_share_of_pairs_and_the_leak_compares_it_with_gold(lm: LM, data: Path) -> None:
    taught = LM(copy.deepcopy(lm.model), lm.tokenizer)
    optimizer = torch.optim.AdamW(taught.model.parameters(), lr=3e-3)
    for _ in range(40):
        for text in FORGET:
            ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
            taught.model(ids, labels=ids).loss.backward()
            optimizer.step(), optimizer.zero_grad()
    found = muse(roomy(taught), data, gold=roomy(lm), progress=False)

    def score(model: LM, text: str) -> float:
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"][0]
        with torch.no_grad():
            logp = model.model(ids[None]).logits[0, :-1].double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        return float(logp.sort().values[: max(1, int(0.4 * len(logp)))].mean())

    share = {}
    for who, model in (("model", taught), ("gold", lm)):
        here, there = ([score(model, text) for text in side] for side in (FORGET, HOLDOUT))
        share[who] = np.mean([(a > b) + 0.5 * (a == b) for a in here for b in there])
        assert found.value(who, "forget, holdout", "min_k@40%") == pytest.approx(share[who])
    assert share["model"] == 1 and 0 < share["gold"] < 1
    expected = ((1 - share["model"]) - (1 - share["gold"])) / (1 - share["gold"])
    assert found.value("model", "forget, holdout", "privacy_leak") == pytest.approx(expected) == pytest.approx(-1)
    assert {row["edit"] for row in found.rows} == {"model", "gold", "best constant"} and not found.info["missing"]
    assert len(found.rows) == len({(row["edit"], row["corpus"], row["metric"]) for row in found.rows})


def test_the_leak_by_hand_and_its_sign() -> None:
    assert leak(0.5, 0.5) == 0 and leak(1.0, 0.5) == -1 and leak(0.25, 0.5) == 0.5
    assert np.isnan(leak(0.5, 1.0)) and np.isnan(leak(np.nan, 0.5))
    assert leak(np.array([0.5, 1.0]), np.array([0.5, 0.75])).tolist() == [0, -1]


def test_one_seed_draws_the_same_texts_of_every_model() -> None:
    draw = np.random.default_rng(0)
    here, there = draw.normal(1, 1, 20), draw.normal(0, 1, 15)
    drawn = resampled_auc(here, there, 3, resamples=50)
    assert (drawn == resampled_auc(2 * here, 2 * there, 3, resamples=50)).all()  # the order is the same, so are all
    assert auc(here, there, 3, resamples=50) == (drawn[0], *np.quantile(drawn[1:], [0.025, 0.975]))


def test_what_was_not_measured_is_said(lm: LM, data: Path, tmp_path: Path) -> None:
    (data / "privleak/holdout.jsonl.gz").unlink()
    (data / "knowmem/retain_qa.json").unlink()
    found = muse(roomy(lm), data, n=1, progress=False)
    assert set(found.info["missing"]) == {"privacy_leak", "forget, holdout", "knowledge, retain"}
    assert found.info["missing"]["forget, holdout"] == "no privleak/holdout"
    assert {row["n"] for row in found.rows} == {1}
    with pytest.raises(InputError, match="none of MUSE's parts"):
        muse(lm, tmp_path, progress=False)
    with pytest.raises(InputError, match="no such folder"):
        muse(lm, tmp_path / "nowhere", progress=False)
    (data / "privleak/forget.json").write_text("{")
    with pytest.raises(InputError, match=r"forget.json: cannot be read as JSON"):
        muse(lm, data, progress=False)


def test_muse_runs_from_the_command_line(
    lm: LM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy(lm).save(tmp_path / "model")
    words_ = ["evaluate", "muse", "--model", tmp_path / "model", "--data", data, "--n", 2, "--out", tmp_path / "out"]
    assert run(monkeypatch, *words_) == 0
    said = capsys.readouterr().out
    assert "not measured: privacy_leak: it compares with a model that never saw" in said
    assert nf.Results.load(tmp_path / "out").value("model", "verbatim", "rouge_l_f1") >= 0
