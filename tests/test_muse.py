"""MUSE on small models: every number against a computation of its own, and what was not measured is said."""

from __future__ import annotations

import copy
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commanding import run
from families import build

import neuronforget as nf
from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.metrics.membership import auc, resampled_auc
from neuronforget.models import LM
from neuronforget.suites.muse import PARTS, _privacy, _rows, leak, muse

SHARED = Path(os.environ.get("NEURONFORGET_SHARED", "../shared"))
BOOKS, STORIES = SHARED / "data/muse_books_knowmem", SHARED / "data/text_corpus/tinystories.jsonl.gz"

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


def teach(lm: LM, texts: list[str]) -> LM:
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=3e-3)
    for _ in range(40):
        for text in texts:
            ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
            lm.model(ids, labels=ids).loss.backward()
            optimizer.step(), optimizer.zero_grad()
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


def rouge_f1(text: str, right: str) -> float:
    here, there = words(text), words(right)
    common = longest_common(here, there)
    return 2 * common / (len(here) + len(there)) if common else 0.0


def test_verbatim_memory_is_the_rouge_f1_of_128_tokens(lm: LM, data: Path) -> None:
    rows = [json.loads(line) for line in (data / "verbmem/forget.jsonl").read_text().splitlines()]
    found = muse(teach(roomy(lm), [row["prompt"] + row["gt"][:60] for row in rows]), data, progress=False)
    corpus = Corpus(tuple(Example(row["prompt"], "x") for row in rows))
    values = []
    for row, text in zip(rows, generate(lm, corpus, Decoding(128, ()), progress=False), strict=True):
        ids = lm.tokenizer(row["gt"], add_special_tokens=False)["input_ids"]
        assert len(ids) > 128  # so that cutting the true continuation counts
        values.append(rouge_f1(text, lm.tokenizer.decode(ids[:128])))
    assert 0.1 < np.mean(values) < 1  # it remembers a part
    assert found.value("model", "verbatim", "rouge_l_f1") == pytest.approx(np.mean(values))


def test_knowledge_is_asked_after_the_examples_shown(lm: LM, data: Path) -> None:
    put(data, "knowmem/retain_qa.json", [{**row, "answer": "Bergen, by the sea"} for row in QUESTIONS])
    shown = "Question: What is {x}?\nAnswer: A {baker}\n\n"
    prompts = [f"{shown}Question: {row['question']}\nAnswer:" for row in QUESTIONS]
    learnt = [f"{p} {row['answer']} now,\nnot Bergen\n\nOslo" for p, row in zip(prompts, QUESTIONS, strict=True)]
    found = muse(teach(roomy(lm), learnt), data, progress=False)
    asked = Corpus(tuple(Example(prompt, "x") for prompt in prompts))
    texts = generate(lm, asked, Decoding(32, ("\n\n", "\nQuestion", "Question:")), progress=False)
    assert texts == [f"{row['answer']} now,\nnot Bergen" for row in QUESTIONS]
    assert found.value("model", "knowledge, forget", "rouge_l_f1") == pytest.approx(2 * 1 / (4 + 1))
    assert found.value("model", "knowledge, forget", "rouge_l") == 1  # recall: more text is no mistake
    assert found.value("model", "knowledge, forget", "f1") == pytest.approx(2 * 1 / (4 + 1))
    retained = found.value("model", "knowledge, retain", "rouge_l_f1")
    assert retained == pytest.approx(rouge_f1(texts[0], "Bergen, by the sea")) == pytest.approx(2 * 1 / (4 + 4))
    assert found.value("best constant", "knowledge, forget", "exact") == 0.5


def test_privacy_is_the_share_of_pairs_and_the_leak_compares_it_with_gold(lm: LM, data: Path) -> None:
    taught = teach(LM(copy.deepcopy(lm.model), lm.tokenizer), FORGET)
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


#: Figure 4 (AUC, two decimals) and table 3 (leak in percent) of the paper, on News; the retrained model's AUC has four
#: decimals in the authors' code (Min-40%).
RETRAINED = 0.4772
PUBLISHED = {"target": (0.00, -99.8), "GA": (0.50, 5.2), "GA GDR": (0.99, 108.1), "NPO": (0.59, 24.4),
             "NPO GDR": (0.98, 105.8), "NPO KLR": (0.02, -95.8), "WHP": (1.00, 109.6)}  # fmt: skip


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_leak_is_the_published_one(method: str) -> None:
    area, percent = PUBLISHED[method]
    rounding = 0.005 / RETRAINED
    assert abs(100 * leak(1 - area, 1 - RETRAINED) - percent) <= 100 * rounding + 0.05


def test_the_leaks_interval_draws_texts_for_both_models_at_once() -> None:
    draw = np.random.default_rng(1)
    scores = {who: [draw.normal(up, 1, 30), draw.normal(0, 1, 25)] for who, up in (("model", 1.5), ("gold", 0.2))}
    rows = {(row["edit"], row["metric"]): row for row in _privacy(scores, "model", 5)[0]}
    again, found = np.random.default_rng(5), []
    for _ in range(1000):
        here, there = again.integers(30, size=30), again.integers(25, size=25)
        a, base = (
            np.mean([(x < y) + 0.5 * (x == y) for x in sides[0][here] for y in sides[1][there]])
            for sides in (scores["model"], scores["gold"])
        )
        found.append((a - base) / base)
    row = rows["model", "privacy_leak"]
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(found, [0.025, 0.975]))
    assert row["low"] < row["value"] < row["high"] < 0 and row["n"] == row["units"] == 55


def test_one_seed_draws_the_same_texts_of_every_model() -> None:
    draw = np.random.default_rng(0)
    here, there = draw.normal(1, 1, 20), draw.normal(0, 1, 15)
    drawn = resampled_auc(here, there, 3, resamples=50)
    assert (drawn == resampled_auc(2 * here, 2 * there, 3, resamples=50)).all()  # the order is the same, so are all
    assert drawn[0] == auc(here, there)[0] and drawn[1:].std() > 0


def test_what_was_not_measured_is_said(lm: LM, data: Path, tmp_path: Path) -> None:
    (data / "privleak/holdout.jsonl.gz").unlink()
    (data / "knowmem/retain_qa.json").unlink()
    found = muse(roomy(lm), data, n=1, progress=False)
    assert set(found.info["missing"]) == {"privacy_leak", "forget, holdout", "knowledge, retain"}
    (data / "knowmem/forget_qa_icl.json").unlink()
    found = muse(lm, data, n=1, progress=False)
    assert found.info["missing"]["knowledge, forget, after examples"] == "no knowmem/forget_qa_icl: it is asked without"
    assert found.info["missing"]["forget, holdout"] == "no privleak/holdout"
    assert {row["n"] for row in found.rows} == {1}
    with pytest.raises(InputError, match="none of MUSE's parts"):
        muse(lm, tmp_path, progress=False)
    with pytest.raises(InputError, match="no such folder"):
        muse(lm, tmp_path / "nowhere", progress=False)
    (data / "privleak/forget.json").write_text("{")
    with pytest.raises(InputError, match=r"forget.json: cannot be read as JSON"):
        muse(lm, data, progress=False)


@pytest.mark.parametrize(
    ("part", "rows", "said"),
    [
        ("verbmem/forget.jsonl", [{"prompt": "Anna"}], "no field 'gt'"),
        ("verbmem/forget.jsonl", [{"prompt": "Anna", "gt": " "}], "verbmem/forget, row 0: no text 'gt'"),
        ("knowmem/retain_qa.json", [*QUESTIONS, {"question": "Who?", "answer": 3}], "row 2: no text 'answer'"),
        ("knowmem/retain_qa.json", [{"question": "Who? " * 900, "answer": "x"}], "the model takes 1024"),
        ("privleak/forget.json", [HOLDOUT[0]], "share 1 examples"),
        ("privleak/forget.json", ["Anna Berg " * 900], "the model takes 1024"),
        ("privleak/forget.json", {"text": "Anna"}, "not a list of rows"),
    ],
)
def test_bad_rows_are_refused_before_the_first_pass(
    lm: LM, data: Path, monkeypatch: pytest.MonkeyPatch, part: str, rows: Any, said: str
) -> None:
    put(data, part, rows)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(lm.model), "forward", never)
    with pytest.raises(InputError, match=said):
        muse(roomy(lm), data, progress=False)
    monkeypatch.undo()


def test_bad_settings_are_refused(lm: LM, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gold", "best constant"):
        with pytest.raises(InputError, match=f"'{name}' is the name of a reference"):
            muse(roomy(lm), data, name=name, progress=False)
    with pytest.raises(InputError, match="n must be a whole number >= 1, found 0"):
        muse(lm, data, n=0, progress=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="give a folder with MUSE's parts"):
        muse(lm, "muse-bench/MUSE-News", progress=False)
    small = LM(build("qwen2", vocab_size=len(lm.tokenizer)), lm.tokenizer)
    with pytest.raises(InputError, match="the model takes 64"):  # the twin is checked before anything is asked
        muse(lm, data, gold=small, progress=False)


def test_the_hub_and_a_folder_give_equal_results(lm: LM, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def stored(hub_id: str, config: str, *, split: str, streaming: bool) -> Any:
        assert hub_id == "muse-bench/MUSE-News" and f"{config}/{split}" in PARTS
        rows = _rows(data, f"{config}/{split}", None)
        return iter(rows) if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", stored)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    put(data, "knowmem/forget_qa_icl.json", [{"question": f"Which {x}?", "answer": x} for x in "abc"])
    asked = []
    for n in (2, None):
        found = [muse(roomy(lm), path, n=n, progress=False) for path in (data, "muse-bench/MUSE-News")]
        assert found[0].rows == found[1].rows and found[0].info["data"] == found[1].info["data"]
        asked.append(found[0].info["data"]["knowledge, forget"])
    assert asked[0] == asked[1]  # two questions, after all three examples


@pytest.mark.skipif(
    not (BOOKS.is_dir() and STORIES.is_file() and (SHARED / "models/stories260k").is_dir()),
    reason="no folder with stories260k, its text and the questions of MUSE-Books",
)
def test_real_questions_and_stories(tmp_path: Path) -> None:
    """stories260k was trained on such stories; with its weights shuffled it goes on with fewer of their words."""
    for part in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
        rows = [json.loads(line) for line in (BOOKS / f"{part}.jsonl").read_text().splitlines()]
        put(tmp_path, f"knowmem/{part}.json", [{**row, "question": row["question"][:60]} for row in rows[:2]])
    with gzip.open(STORIES, "rt") as file:
        stories = [json.loads(next(file))["text"][:400] for _ in range(16)]
    put(tmp_path, "verbmem/forget.json", [{"prompt": text[:120], "gt": text[120:]} for text in stories[:8]])
    put(tmp_path, "privleak/forget.json", stories[:8])
    put(tmp_path, "privleak/holdout.json", stories[8:])
    lm = nf.load(SHARED / "models/stories260k")
    twin = LM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        for i, own in enumerate(twin.model.parameters()):
            order = torch.randperm(own.numel(), generator=torch.Generator().manual_seed(i))
            own.copy_(own.flatten()[order].view_as(own))
    found = muse(lm, tmp_path, gold=twin, progress=False)
    assert found.value("model", "verbatim", "rouge_l_f1") > found.value("gold", "verbatim", "rouge_l_f1") + 0.1
    assert np.isfinite([row["value"] for row in found.rows]).all() and not found.info["missing"]


def test_muse_runs_from_the_command_line(
    lm: LM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roomy(lm).save(tmp_path / "model")
    words_ = ["evaluate", "muse", "--model", tmp_path / "model", "--data", data, "--n", 2, "--out"]
    assert run(monkeypatch, *words_, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "not measured: privacy_leak: it compares with a model that never saw" in said
    assert nf.Results.load(tmp_path / "out").value("model", "verbatim", "rouge_l_f1") >= 0
    edit = nf.erase.ablate(lm, nf.Neurons(frozenset({(0, i) for i in range(20)}), (0, 1), lm.shape[1]))
    edit.save(tmp_path / "edit.safetensors")
    words_ += [tmp_path / "edited", "--gold", tmp_path / "model", "--edit", tmp_path / "edit.safetensors"]
    assert run(monkeypatch, *words_) == 0
    assert "not measured" not in capsys.readouterr().out
    with edit.on(lm):
        here = muse(lm, data, n=2, batch_size=32, progress=False)  # the edit lies on the model, not on its twin
    found = nf.Results.load(tmp_path / "edited")
    for corpus, metric in (("verbatim", "rouge_l_f1"), ("forget, holdout", "min_k@40%")):
        assert found.value("model", corpus, metric) == pytest.approx(here.value("model", corpus, metric))
    before = nf.Results.load(tmp_path / "out")
    assert found.value("gold", "verbatim", "words") == before.value("model", "verbatim", "words")
    assert run(monkeypatch, *words_[:7], tmp_path / "nowhere", "--out", tmp_path / "c") == 2
