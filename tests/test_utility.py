"""Utility: lm-eval on the model in memory against our own numbers; perplexity, fluency; scorers test themselves."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commanding import run

from neuronforget.corpora import Corpus, Example, encode
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.evaluation.measuring import option_losses
from neuronforget.metrics.text import SCORERS, exact, f1
from neuronforget.models import LM
from neuronforget.suites import selftest
from neuronforget.suites.local_tasks import constants, truths
from neuronforget.suites.utility import _columns, fluency, ngram_entropy, perplexity, utility

DATA = Path(os.environ.get("NEURONFORGET_SHARED", "../shared")) / "data"


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def roomy(lm: LM) -> LM:
    lm.model.config.max_position_embeddings = 256
    return lm


def test_local_tasks_give_what_our_own_passes_give(roomy: LM, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    lm = roomy
    questions = [("Anna Berg was born in", ["Oslo", "Oslo town"]), ("The capital of Xandria is", ["Velm"])]
    trivia = written(tmp_path / "t.jsonl", [{"question": q, "answers": a} for q, a in questions])
    names, wrong = ["Mira", "Anna", "Ida", "Tomas"], ("Velm", "a town in Trondheim")
    mmlu: list[dict[str, Any]] = [{"question": f"Who wrote book {i}?", "choices": names, "answer": i} for i in range(3)]
    truth = [{"question": q, "best_answer": "Oslo", "incorrect_answers": list(wrong)} for q, _ in questions]
    files = {"mmlu": written(tmp_path / "m.jsonl", mmlu), "truthfulqa": written(tmp_path / "h.jsonl", truth)}
    found = utility(lm, local={"triviaqa": trivia, **files})
    asked = Corpus(tuple(Example(f"Question: {q}\nAnswer:", a[0]) for q, a in questions))
    texts = generate(lm, asked, Decoding(32, ("\n",)), progress=False)
    ours = np.mean([f1(text, a) for text, (_, a) in zip(texts, questions, strict=True)])
    assert found.value("model", "triviaqa", "f1") == pytest.approx(ours)
    rows = []
    for row in mmlu:
        text = "\n".join(
            [row["question"], *(f"{x}. {c}" for x, c in zip("ABCD", row["choices"], strict=True)), "Answer:"]
        )
        letters = ["ABCD"[row["answer"]], *(x for x in "ABCD" if x != "ABCD"[row["answer"]])]
        rows.append(Example(text, letters[0], wrong=tuple(letters[1:])))
    losses = option_losses(lm, Corpus(tuple(rows)), total=True)
    assert found.value("model", "mmlu", "acc") == pytest.approx(np.mean([own[0] < min(own[1:]) for own in losses]))
    asked = Corpus(tuple(Example(f"Q: {q}\nA:", "Oslo", wrong=wrong) for q, _ in questions))
    losses = option_losses(lm, asked, total=True)
    assert found.value("model", "truthfulqa", "acc") == pytest.approx(
        np.mean([own[0] < min(own[1:]) for own in losses])
    )
    assert next(r["n"] for r in found.rows if r["corpus"] == "mmlu") == 3
    assert found.value("model", "triviaqa", "words") == np.mean([len(text.split()) for text in texts])
    broken = LM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(torch.nan)
    for kind, path in {"triviaqa": trivia, **files}.items():
        with pytest.raises(InputError, match="the model returns NaN while a task is asked"):
            utility(broken, local={kind: path})


def test_a_constant_answer_stands_beside_the_scores_of_ones_own_rows_and_a_hash_of_them(
    roomy: LM, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    answers = [["Oslo", "Oslo town"], ["Velm"], ["oslo"]]
    trivia = [{"question": f"Where is {i}?", "answers": own} for i, own in enumerate(answers)]
    bbh = [{"input": f"Is {i} even?", "target": target} for i, target in enumerate(["Yes", "No", "No", "No"])]
    mmlu = [{"question": f"{i}?", "choices": ["Mira", "Anna", "Ida", "Jon"], "answer": i % 2} for i in range(3)]
    rows = {"triviaqa": trivia, "bbh": bbh, "mmlu": mmlu}
    files = {kind: written(tmp_path / f"{kind}.jsonl", own) for kind, own in rows.items()}
    found = utility(roomy, local=files)
    best = {(r["corpus"], r["metric"]): r["value"] for r in found.rows if r["edit"] == "best constant"}
    assert best["triviaqa", "exact"] == pytest.approx(2 / 3)  # "Oslo", or "oslo"
    assert best["triviaqa", "f1"] == pytest.approx(2 / 3)
    assert {best["bbh", metric] for metric in ("option", "exact", "f1", "contains")} == {3 / 4}
    assert best["mmlu", "acc"] == pytest.approx(2 / 3) and found.info["best constants"]["mmlu"]["acc"] == "option 1"
    assert not {"words"} & {metric for _, metric in best} and found.value("model", "bbh", "f1") >= 0
    assert set(found.info["data"]) == set(rows)
    bbh[1]["target"] = "Yes"
    again = utility(roomy, local={**files, "bbh": written(tmp_path / "other.jsonl", bbh)}).info["data"]
    assert {kind for kind in rows if again[kind] != found.info["data"][kind]} == {"bbh"}
    with pytest.raises(InputError, match="'best constant' is the name of a reference"):
        utility(roomy, local=files, name="best constant")


def test_an_option_may_be_named_by_its_letter() -> None:
    """lm-eval takes it so."""
    by_place, by_letter = (
        [{"doc_id": i, "doc": {"choices": [*"wxyz"], "answer": answer}} for i, answer in enumerate(answers)]
        for answers in ([1, 1, 0], ["B", "B", "A"])
    )
    (text, values), (again, same) = (constants("mmlu", documents)["acc"] for documents in (by_place, by_letter))
    assert (text, again) == ("option 2", "option 2") and values.tolist() == same.tolist() == [1, 1, 0]


def test_a_task_of_several_filters_has_a_row_of_each() -> None:
    """They were put together: 2 n documents, whose mean was of neither."""
    documents = [
        {"doc_id": i, "filter": chosen, "metrics": ["exact_match"], "exact_match": float(chosen == "flexible")}
        for chosen in ("strict", "flexible")
        for i in (1, 0)
    ]
    one = [{**d, "filter": "none"} for d in documents[:2]]
    own = {"bbh": documents, "triviaqa": one, "triviaqa_local": one}
    found = {(task, metric): values.tolist() for task, metric, values, _ in _columns(own)}
    assert found == {
        ("bbh", "exact_match, strict"): [0, 0],
        ("bbh", "exact_match, flexible"): [1, 1],
        ("triviaqa", "exact_match"): [0, 0],
        ("triviaqa_local", "exact_match"): [0, 0],
    }


def test_the_order_of_options_does_not_tell_which_is_true() -> None:
    rows = [{"best_answer": f"truth {i}", "incorrect_answers": [f"{x} {i}" for x in "xyz"]} for i in range(40)]
    places = [truths(row).index(row["best_answer"]) for row in rows]
    assert set(places) == {0, 1, 2, 3} and places.count(0) < 20


def test_bad_tasks_are_refused(roomy: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(InputError, match="no task is given"):
        utility(roomy)
    with pytest.raises(InputError, match="no task on local rows is called 'gsm8k'"):
        utility(roomy, local={"gsm8k": tmp_path})
    with pytest.raises(InputError, match=r"no field .answers"):
        utility(roomy, local={"triviaqa": written(tmp_path / "t.jsonl", [{"question": "q"}])})
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'neuronforget\[eval\]'"):
        utility(roomy, ["triviaqa"])


def test_rows_of_ones_own_do_not_wait_for_the_tasks_of_the_hub(
    roomy: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_tasks = pytest.importorskip("lm_eval.tasks", reason="lm-eval is not installed")
    asked, manager = [], lm_tasks.TaskManager
    monkeypatch.setattr(lm_tasks, "TaskManager", lambda **given: asked.append(given) or manager(**given))
    rows = written(tmp_path / "t.jsonl", [{"question": "Who?", "answers": ["Oslo"]}])
    assert utility(roomy, local={"triviaqa": rows}).value("model", "triviaqa", "exact") in (0, 1)
    assert asked == [{"include_defaults": False}]


def test_perplexity_is_that_of_a_loop(lm: LM, corpus: Corpus) -> None:
    nats, tokens, said = 0.0, 0, 0
    for row in encode(corpus, lm.tokenizer):
        with torch.no_grad():
            logp = lm.model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        places = range(max(row.answer_start, 1), len(row.ids))
        nats -= sum(float(logp[t - 1, row.ids[t]]) for t in places)
        tokens += len(places)
        said += len(lm.tokenizer.decode([row.ids[t] for t in places]).encode())
    found = perplexity(lm, corpus, batch_size=2)
    assert found["token"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["byte"] == pytest.approx(nats / math.log(2) / said, rel=1e-4)


def test_ngram_entropy_by_hand(lm: LM) -> None:
    # pairs: ab ba ab ba (two of each: 1 bit); triples: aba bab aba (2 to 1: .918 bits)
    triples = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * triples) / 2)
    assert ngram_entropy("a a a a") == 0 == ngram_entropy("")
    assert fluency(lm, ["Anna", "The capital"], max_new_tokens=5, progress=False).shape == (2,)


def test_every_scorer_passes_its_own_test_on_every_form_of_answer() -> None:
    found = selftest.check()
    assert {(row["data"], row["scorer"]) for row in found} == {(d, s) for d in selftest.GENERATED for s in SCORERS}
    by = {(row["data"], row["scorer"]): row for row in found}
    assert by["options", "option"]["best_constant"] == 0.5 and by["options", "option"]["constant"] == "(A)"
    assert by["options", "option"]["run_on"] == 1 and by["names", "exact"]["run_on"] == 0


def test_a_scorer_that_is_wrong_fails_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_letter(text: str, answers: Any) -> float:
        """The published defect: a string is taken for a list, letter by letter."""
        return float(np.mean([c in text for answer in answers for c in answer]))

    def mild(text: str, answers: Any) -> float:
        return 0.5 + 0.5 * float(text == answers[0])

    def deaf(text: str, answers: Any) -> float:
        return 0.9 * float(text == answers[0])

    monkeypatch.setitem(SCORERS, "mine", by_letter)
    row = next(r for r in selftest.self_test({"o": [["(A)"], ["(B)"], ["(A)"]]}) if r["scorer"] == "mine")
    assert row["best_constant"] > 0.85  # the constant "(A)" all but passes

    def forgiving(text: str | None, answers: Any) -> float:
        """Another published defect: an answer that could not be written counts as forgotten."""
        return 0.0 if text is None else float(text == answers[0])

    def generous(text: str, answers: Any) -> float:
        return float(len(text) > 0)

    def first_letter(text: str, answers: Any) -> float:
        return float(max(text[:1] == answer[:1] for answer in answers))

    for scorer in (mild, deaf, forgiving, generous):
        monkeypatch.setitem(SCORERS, "mine", scorer)
        with pytest.raises(InputError, match="scorer tests fail; first: mine on names"):
            selftest.check()
    for scorer in (first_letter, by_letter, lambda text, answers: exact(text.lstrip("-"), [answers[0].lstrip("-")])):
        monkeypatch.setitem(SCORERS, "exact", scorer)
        monkeypatch.delitem(SCORERS, "mine", raising=False)
        with pytest.raises(InputError, match="first: exact on"):
            selftest.check()
    with pytest.raises(InputError, match="n must be a whole number >= 1, found -5"):
        selftest.real_rows(DATA, -5)


def test_a_model_that_fails_stops_the_questions(lm: LM) -> None:
    from neuronforget.suites.answers import Questions, answer

    calls = []

    def die(*_: object) -> None:
        calls.append(1)
        if len(calls) > 6:
            raise MemoryError("out of memory")

    handle = lm.model.register_forward_pre_hook(die)
    asked = Corpus(tuple(Example(f"question {i} is", "x") for i in range(4)))
    with pytest.raises(MemoryError):
        answer(lm, {"q": Questions(asked, decoding=Decoding(4, ()))}, batch_size=1, progress=False)
    handle.remove()


@pytest.mark.skipif(not (DATA / "bbh").is_dir(), reason="no folder with BBH, TriviaQA, MMLU, TruthfulQA and RWKU")
def test_every_scorer_passes_on_real_rows() -> None:
    found = selftest.check(selftest.real_rows(DATA, 15))
    assert {row["data"] for row in found} >= {"bbh", "triviaqa", "mmlu", "truthfulqa", "rwku 1"}
    assert all(row["best_constant"] < 0.9 for row in found)


def test_the_self_test_runs_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for word in ("--self-test", "self-test"):
        assert run(monkeypatch, "evaluate", word) == 0
        assert capsys.readouterr().out.count("\n") == 2 + len(selftest.GENERATED) * len(SCORERS)
