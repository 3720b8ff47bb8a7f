"""TOFU: every formula by hand and by a plain loop, the authors' logs, a model run over the four sets."""

from __future__ import annotations

import gzip
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commanding import run
from families import build
from scipy.stats import ks_2samp

import neuronforget as nf
from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding, generate
from neuronforget.metrics import tofu as formulas
from neuronforget.metrics.text import rouge_l
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.results import Results
from neuronforget.suites.tofu import results, tofu
from neuronforget.suites.tofu_logs import BLOCKS, Block, aggregates, read_log, scores
from neuronforget.suites.tofu_questions import Protocol, questions

SHARED = Path(os.environ.get("NEURONFORGET_SHARED", "../shared")) / "data/tofu"
MODEL = "models/stories260k"
COUNTS = {"retain": (7, 5), "forget": (9, 5), "real_authors": (6, 3), "real_world": (4, 3)}


def published(seed: int, shift: float = 0.0) -> dict[str, Any]:
    """A log as the authors write it: {block: {quantity: {row: value}}}."""
    draw, log = np.random.default_rng(seed), {}
    for name, (rows, wrong) in COUNTS.items():
        log[BLOCKS[name]] = {
            "avg_gt_loss": {str(i): float(draw.uniform(0.1, 4)) for i in range(rows)},
            "average_perturb_loss": {str(i): (shift + draw.uniform(0.1, 4, wrong)).tolist() for i in range(rows)},
            "avg_paraphrased_loss": {str(i): float(draw.uniform(0.1, 4)) for i in range(rows)},
            "rougeL_recall": {str(i): float(draw.uniform()) for i in range(rows)},
            "generated_text": {str(i): ["q", "w", "a"] for i in range(rows)},
        }
    return log


def by_loop(log: dict[str, Any], retain: dict[str, Any], form: str) -> dict[str, float]:
    """The aggregates, one row and one number at a time."""
    found: dict[str, float] = {}
    for name, key in BLOCKS.items():
        block, sums = log[key], {"probability": 0.0, "rouge": 0.0, "truth_ratio": 0.0}
        for row, loss in block["avg_gt_loss"].items():
            wrong = block["average_perturb_loss"][row]
            p = math.exp(-loss)
            whole = 1.0 if "log" in key else p + sum(math.exp(-x) for x in wrong)
            sums["probability"] += p / whole
            sums["rouge"] += block["rougeL_recall"][row]
            if form == "paper":
                odds = sum(math.exp(-x) for x in wrong) / len(wrong) / math.exp(-block["avg_paraphrased_loss"][row])
            else:
                odds = math.exp(block["avg_paraphrased_loss"][row] - sum(wrong) / len(wrong))
            sums["truth_ratio"] += min(odds, 1 / odds) if name == "forget" else max(0.0, 1 - odds)
        found |= {f"{name}_{score}": total / len(block["avg_gt_loss"]) for score, total in sums.items()}
    nine = [value for name, value in found.items() if not name.startswith("forget")]
    ratios = [
        [
            math.exp(sum(wrong) / len(wrong) - b["avg_paraphrased_loss"][row])
            for row, wrong in b["average_perturb_loss"].items()
        ]
        for b in (log["eval_log_forget.json"], retain["eval_log_forget.json"])
    ]
    # The statistic from its definition: the largest gap between the two shares below a point.
    gap = max(
        abs(np.mean([x <= at for x in ratios[0]]) - np.mean([x <= at for x in ratios[1]]))
        for at in [*ratios[0], *ratios[1]]
    )
    p = ks_2samp(*ratios, method="exact").pvalue
    return found | {"model_utility": 9 / sum(1 / x for x in nine), "forget_quality_ks": gap, "forget_quality_p": p}


@pytest.mark.parametrize("form", ["legacy", "paper"])
def test_the_aggregates_are_those_of_a_plain_loop(form: Any, tmp_path: Path) -> None:
    logs = [published(0, 0.7), published(1)]
    for place, log in zip(("model.json", "retain.json"), logs, strict=True):
        (tmp_path / place).write_text(json.dumps(log))
    found = aggregates(read_log(tmp_path / "model.json"), read_log(tmp_path / "retain.json", ("forget",)), form)
    assert found == pytest.approx(by_loop(*logs, form), abs=1e-12) and len(found) == 15


def test_two_rows_by_hand() -> None:
    loss, wrong = np.log([2.0, 4.0]), np.log([[4.0, 16.0], [2.0, 2.0]])  # P = 1/2, 1/4; wrong 1/4 1/16, 1/2 1/2
    assert formulas.probability(loss) == pytest.approx([1 / 2, 1 / 4])
    assert formulas.choice_probability(loss, wrong) == pytest.approx([8 / 13, 1 / 5])
    # paper: (1/4 + 1/16) / 2 / (1/2) and (1/2) / (1/4); legacy: the truth over the geometric mean, 1/8 and 1/2
    assert formulas.truth_ratio(loss, wrong, "paper") == pytest.approx([5 / 16, 2])
    assert formulas.truth_ratio(loss, wrong, "legacy") == pytest.approx([4, 1 / 2])
    for form, forget, kept in (("paper", [5 / 16, 1 / 2], [11 / 16, 0]), ("legacy", [1 / 4, 1 / 2], [3 / 4, 0])):
        assert formulas.truth_score(loss, wrong, forget=True, form=form) == pytest.approx(forget)  # type: ignore[arg-type]
        assert formulas.truth_score(loss, wrong, forget=False, form=form) == pytest.approx(kept)  # type: ignore[arg-type]
    assert formulas.model_utility(dict.fromkeys(formulas.NINE, 1.0) | {"retain_rouge": 1 / 10}) == pytest.approx(1 / 2)
    assert formulas.model_utility(dict.fromkeys(formulas.NINE, 1.0) | {"retain_rouge": 0.0}) == 0
    # {1, 2} against {3, 4}: of the 6 ways to split four values in two pairs, 2 lie as far apart
    assert formulas.forget_quality(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == pytest.approx((1 / 3, 1))


def test_a_row_of_the_authors_own_log() -> None:
    """Row 1 of forget01 in the authors' log of phi, retain99: its summed losses, its tokens, and their truth ratio."""
    paraphrase = np.array([13.689208030700684]) / 19
    wrong = [41.25616455078125, 34.832550048828125, 38.424468994140625, 47.767539978027344, 47.424415588378906]
    found = formulas.truth_ratio(paraphrase, np.array([wrong]) / [19, 20, 20, 21, 19])
    assert 1 / found == pytest.approx([0.24647507071495056], rel=1e-6)  # the log holds the inverse


def test_a_model_that_went_astray_has_scores_all_the_same() -> None:
    loss, wrong = np.array([900.0, 0.0]), np.array([[0.0, 2000.0], [3000.0, 2000.0]])
    for form in ("legacy", "paper"):
        for forget in (True, False):
            found = formulas.truth_score(loss, wrong, forget=forget, form=form)  # type: ignore[arg-type]
            assert ((found >= 0) & (found <= 1)).all()
        assert np.isfinite(formulas.truth_ratio(loss, wrong, form)).all()  # type: ignore[arg-type]
    assert formulas.choice_probability(loss, wrong) == pytest.approx([0, 1])


def test_what_is_no_form_or_lacks_a_number_is_refused(untyped: None) -> None:
    with pytest.raises(InputError, match="'legacy' and 'paper', not 'new'"):
        formulas.truth_ratio(np.ones(2), np.ones((2, 3)), "new")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'retain_rouge' is not given"):
        formulas.model_utility({name: 1.0 for name in formulas.NINE if name != "retain_rouge"})


def test_the_command_reads_published_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, retain, out = tmp_path / "model.json.gz", tmp_path / "retain.json", tmp_path / "out.json"
    model.write_bytes(gzip.compress(json.dumps(published(0)).encode()))
    retain.write_text(json.dumps(published(1)))
    for _ in range(2):  # its own figures may be replaced
        assert run(monkeypatch, "evaluate", "tofu-logs", model, retain, "--out", out) == 0
    found, expected = json.loads(out.read_text()), by_loop(published(0), published(1), "legacy")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert "forget_quality_ks" in capsys.readouterr().out
    assert run(monkeypatch, "evaluate", "tofu-logs", model, retain, "--out", retain) == 2
    assert "not written by this command" in capsys.readouterr().err and json.loads(retain.read_text()) == published(1)


def change(log: dict[str, Any], block: str, key: str | None = None, row: str | None = None, value: Any = None) -> str:
    """The log as JSON with one thing changed; None takes it away."""
    place: Any = log
    *path, last = [x for x in (block, key, row) if x is not None]
    for name in path:
        place = place[name]
    place.pop(last) if value is None else place.update({last: value})
    return json.dumps(log)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("eval_log.json",), "no block 'eval_log.json'"),
        (("eval_log.json", "rougeL_recall"), "no rows of 'rougeL_recall'"),
        (("eval_log_forget.json", "avg_gt_loss", "2"), "row '2' is not in both"),
        (("eval_log_forget.json", "avg_paraphrased_loss", "3", math.nan), "row '3' is nan, not finite"),
        (("eval_log_forget.json", "average_perturb_loss", "3", [1.0, math.inf, 1.0, 1.0, 1.0]), "not finite"),
        (("eval_log_forget.json", "avg_paraphrased_loss", "3", True), "row '3' is True, not finite"),
        (("eval_log_forget.json", "avg_paraphrased_loss", "3", -0.5), "a loss is 0 or more"),
        (("eval_log.json", "rougeL_recall", "3", -400), "a recall from 0 to 1"),
        (("eval_log.json", "rougeL_recall", "3", 1.5), "a recall from 0 to 1"),
        (("eval_log_forget.json", "average_perturb_loss", "3", [1.0, 2.0]), "row '3' is not a list of as many"),
        (("eval_log_forget.json", "average_perturb_loss", "0", 1.0), "row '0' is not a list"),
        (("eval_log_forget.json", "avg_gt_loss", "3", "low"), "row '3' is 'low'"),
        (("eval_log_forget.json", "avg_gt_loss", []), "no rows of 'avg_gt_loss'"),
    ],
)
def test_a_log_that_is_not_whole_is_one_line(
    changed: tuple[Any, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model, retain, out = tmp_path / "model.json", tmp_path / "retain.json", tmp_path / "out.json"
    block, key, row, value = (*changed, None, None, None)[:4]
    if len(changed) == 3 and not isinstance(row, str):
        row, value = None, row
    model.write_text(change(published(0), block, key, row, value))
    retain.write_text(json.dumps(published(1)))
    assert run(monkeypatch, "evaluate", "tofu-logs", model, retain, "--out", out) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def _ratio(block: dict[str, Any], row: str) -> float:
    wrong = block["average_perturb_loss"][row]
    return float(np.exp(sum(wrong) / len(wrong) - block["avg_paraphrased_loss"][row]))


def test_other_rows_are_two_samples_and_no_log_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place, other = tmp_path / "model.json", tmp_path / "retain.json"
    place.write_text(json.dumps(published(0)))
    log = published(1)
    for rows in log["eval_log_forget.json"].values():
        del rows["8"]
    other.write_text(json.dumps(log))
    with pytest.warns(UserWarning, match=r"other rows of the forget set \(9 and 8; row '8'"):
        found = aggregates(read_log(place), read_log(other, ("forget",)))
    assert run(monkeypatch, "evaluate", "tofu-logs", place, other, "--out", tmp_path / "out.json") == 0
    assert "warning: the two models were asked other rows" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out.json").read_text())["warnings"]) == 1
    here, there = (np.array([_ratio(own, row) for row in own["avg_gt_loss"]]) for own in (
        published(0)["eval_log_forget.json"], log["eval_log_forget.json"]))  # fmt: skip
    assert found["forget_quality_ks"] == pytest.approx(ks_2samp(here, there).statistic)
    for content, message in (
        (b"[]", "four blocks, found list"),
        (b"{", "no evaluation log"),
        (b"\x1f\x8b\0", "holds no"),
    ):
        place.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_log(place)
    with pytest.raises(InputError, match="no such file"):
        read_log(tmp_path / "none.json")


def test_rows_are_paired_by_name_in_whatever_order_they_stand(tmp_path: Path) -> None:
    log = published(0)
    (tmp_path / "a.json").write_text(json.dumps(log))
    for block in log.values():
        block["average_perturb_loss"] = dict(reversed(block["average_perturb_loss"].items()))
    (tmp_path / "b.json").write_text(json.dumps(log))
    assert aggregates(read_log(tmp_path / "a.json")) == aggregates(read_log(tmp_path / "b.json"))


# -- a model


def rows_of(name: str, count: int, wrong: int, paraphrased: bool) -> list[dict[str, Any]]:
    found = []
    for i in range(count):
        job, *others = (JOBS[(3 * i + len(name) + j) % len(JOBS)] for j in range(wrong + 1))
        row: dict[str, Any] = {"question": f"Who is {name} {i}?", "answer": f"a {job} {i * 7 % 10}"}
        row["perturbed_answer"] = [f"a {other}, yes" for other in others]
        found.append(row | ({"paraphrased_answer": f"a {job}, yes"} if paraphrased else {}))
    return found


JOBS = ("baker", "gardener", "violin", "harbour", "river", "book", "capital")
FILES = {
    "retain_perturbed": (22, 5, True), "forget01_perturbed": (24, 5, True), "real_authors_perturbed": (5, 3, False),
    "world_facts_perturbed": (6, 3, False),
}  # fmt: skip
SCORES = formulas.SCORES
SHORT = Protocol(decoding=Decoding(6, ()))
NO_EOS = Protocol(eos=False, decoding=Decoding(24, ()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four files of a small TOFU."""
    for name, shape in FILES.items():
        lines = [json.dumps(row) for row in rows_of(name, *shape)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def small(tokenizer: Any) -> LM:
    return LM(build("qwen2", vocab_size=len(tokenizer), max_position_embeddings=128), tokenizer)


@pytest.fixture
def other(tokenizer: Any) -> LM:
    return LM(build("qwen2", seed=5, vocab_size=len(tokenizer), max_position_embeddings=128), tokenizer)


def loss_by_hand(lm: LM, question: str, answer: str) -> float:
    """Mean loss of the answer's tokens and the end of sequence, one text at a time."""
    prompt = f"Question: {question}\nAnswer:"
    given = len(lm.tokenizer(prompt)["input_ids"])
    ids = [*lm.tokenizer(f"{prompt} {answer}")["input_ids"], lm.tokenizer.eos_token_id]
    with torch.no_grad():
        logp = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -float(np.mean([logp[t - 1, ids[t]] for t in range(given, len(ids))]))


def test_a_model_is_asked_as_the_authors_ask(small: LM, folder: Path, tmp_path: Path) -> None:
    weights = small.digest()
    found = tofu(
        small, "forget01", path=folder, protocol=SHORT, batch_size=7, log=tmp_path / "log.json", progress=False
    )
    log = json.loads((tmp_path / "log.json").read_text())
    for name, file in (("eval_log.json", "retain"), ("eval_real_world_wo_options.json", "world_facts")):
        rows_there = rows_of(f"{file}_perturbed", *FILES[f"{file}_perturbed"])
        for i, row in list(enumerate(rows_there))[:3]:
            block, question = log[name], row["question"]
            assert block["avg_gt_loss"][str(i)] == pytest.approx(loss_by_hand(small, question, row["answer"]), abs=1e-5)
            paraphrase = row.get("paraphrased_answer", row["answer"])
            assert block["avg_paraphrased_loss"][str(i)] == pytest.approx(
                loss_by_hand(small, question, paraphrase), abs=1e-5
            )
            wrong = [loss_by_hand(small, question, answer) for answer in row["perturbed_answer"]]
            assert block["average_perturb_loss"][str(i)] == pytest.approx(wrong, abs=1e-5)
            asked = Corpus((Example(question, "x"),), "one", SHORT.template)
            text = generate(small, asked, SHORT.decoding, progress=False)[0]
            assert block["generated_text"][str(i)] == [question, text, row["answer"]]
            assert block["rougeL_recall"][str(i)] == rouge_l(text, [row["answer"]])
    rows = found.frame[found.frame["edit"] == "model"].set_index(["corpus", "metric"])
    assert rows.loc[("forget", "probability"), ["n", "units"]].tolist() == [24, 2]
    assert rows.loc[("real_world", "rouge"), ["n", "units"]].tolist() == [6, 6]
    assert rows.loc[("all", "model_utility"), ["n", "units"]].tolist() == [33, 13]
    assert "forget_quality_p" not in set(found.frame["metric"]) and "give retain_lm" in found.info["forget_quality"]
    assert small.digest() == weights
    answers = [row["answer"] for row in rows_of("world_facts_perturbed", *FILES["world_facts_perturbed"])]
    best = max(np.mean([rouge_l(said, [answer]) for answer in answers]) for said in answers)
    assert 0 < found.value("best constant", "real_world", "rouge") == pytest.approx(best)
    assert found.info["best constants"]["real_world"]["rouge"] in answers


SHAPE = nf.testbed.Shape(layers=2, d_model=64, d_mlp=128, vocab=300, steps=150, batch=64, lr=4e-3)


def taught(folder: Path) -> nf.testbed.Testbed:
    """A model that was taught all four sets, and its twin that never saw the forget set."""
    sets = questions("forget01", folder, None, NO_EOS)
    kept = [e for name in ("retain", "real_authors", "real_world") for e in sets[name].truth]
    retain = replace(sets["retain"].truth, examples=tuple(kept))
    return nf.testbed.from_rows(sets["forget"].truth, retain, shape=SHAPE, cache=False, progress=False)


@pytest.mark.slow
def test_the_log_and_the_model_give_equal_aggregates_and_tell_who_knows(folder: Path, tmp_path: Path) -> None:
    bed, logs = taught(folder), [tmp_path / "own.json.gz", tmp_path / "retain.json"]
    settings: dict[str, Any] = {"path": folder, "protocol": NO_EOS, "progress": False}
    found = tofu(bed.lm, "forget01", retain_lm=bed.gold, log=logs[0], **settings)
    twin = tofu(bed.gold, "forget01", log=logs[1], **settings)
    rows = {(r["corpus"], r["metric"]): r["value"] for r in found.rows if r["edit"] == "model"}
    for form, ending in (("legacy", ""), ("paper", "_paper")):
        read = aggregates(read_log(logs[0]), read_log(logs[1], ("forget",)), form)  # type: ignore[arg-type]
        own = {f"{c}_{m}": rows[c, m] for c in BLOCKS for m in ("probability", "rouge")}
        own |= {f"{c}_truth_ratio": rows[c, f"truth_ratio{ending}"] for c in BLOCKS}
        own |= {name: rows["forget", name] for name in ("forget_quality_p", "forget_quality_ks")}
        assert read == pytest.approx(own | {"model_utility": rows["all", f"model_utility{ending}"]}, rel=1e-12)
    for metric, known in (("probability", 0.9), ("rouge", 0.85)):
        assert rows["forget", metric] > known > 0.6 > found.value("retain_only", "forget", metric)
        assert found.value("retain_only", "forget", metric) == twin.value("model", "forget", metric)
        assert twin.value("model", "retain", metric) > known
    assert rows["forget", "forget_quality_p"] < 0.05 and rows["all", "model_utility"] > 0.1
    assert {r["metric"] for r in found.rows if r["edit"] == "retain_only"} == {
        "probability", "rouge", "truth_ratio", "truth_ratio_paper", "words",
    }  # fmt: skip
    same = tofu(bed.gold, "forget01", retain_lm=bed.gold, **settings)
    assert (
        same.value("model", "forget", "forget_quality_p") == 1
        and same.value("model", "forget", "forget_quality_ks") == 0
    )


def drawn_log(count: int, draw: np.random.Generator) -> dict[str, Block]:
    def block() -> Block:
        wrong, rouge = draw.uniform(0.1, 3, (count, 3)), draw.uniform(size=count)
        return Block(tuple(map(str, range(count))), *draw.uniform(0.1, 3, (2, count)), wrong, rouge)

    return {name: block() for name in BLOCKS}


def utility(log: dict[str, Block]) -> dict[str, Any]:
    return next(row for row in results({"model": log}, 0, {}).rows if row["metric"] == "model_utility")


def test_the_interval_of_the_utility_is_that_of_drawing_again() -> None:
    """Authors of retain and questions of the real sets, drawn with repeats, the whole scored each time."""
    draw, boots = np.random.default_rng(1), []
    few = utility(drawn_log(8, draw))
    assert np.isnan(few["low"]) and np.isnan(few["high"])  # eight questions are of one author: no interval
    log = drawn_log(60, draw)
    row, parts = utility(log), {name: scores(name, block) for name, block in log.items()}
    for _ in range(4000):
        nine = []
        for name in ("retain", "real_authors", "real_world"):
            units = np.arange(60).reshape(3, 20) if name == "retain" else np.arange(60)[:, None]
            chosen = units[draw.integers(len(units), size=len(units))].ravel()
            nine += [parts[name][score][chosen].mean() for score in parts[name]]
        boots.append(9 / sum(1 / x for x in nine))
    low, high = np.quantile(boots, [0.025, 0.975])
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert row["low"] < row["value"] < row["high"]


def test_bad_input_is_said_before_any_pass(small: LM, folder: Path, untyped: None) -> None:
    settings: dict[str, Any] = {"path": folder, "protocol": SHORT, "progress": False}
    small.model.forward = None  # a pass would be another error
    for given, message in (
        ({"split": "forget02"}, "forget01, forget05, forget10; found 'forget02'"),
        ({"split": "forget05"}, "no such file"),
        ({"n": 0}, "n must be a whole number >= 1, found 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"name": "retain_only"}, "name of a reference"),
        ({"protocol": Protocol()}, "200 of answer, but the model takes 128"),
    ):
        with pytest.raises(InputError, match=message):
            tofu(small, **({"split": "forget01"} | settings | given))
    for change, message in (
        ({"question": None}, "row 0: no text 'question'"),
        ({"paraphrased_answer": 3}, "row 0: no text 'paraphrased_answer'"),
        ({"perturbed_answer": "one"}, "row 0: no list of wrong answers"),
        ({"perturbed_answer": []}, "row 0: no list of wrong answers"),
        ({"perturbed_answer": ["a", "b"]}, "row 1: 5 wrong answers, 2 in row 0"),
    ):
        first, second = rows_of("retain_perturbed", 2, 5, True)
        (folder / "retain_perturbed.jsonl").write_text(f"{json.dumps(first | change)}\n{json.dumps(second)}")
        with pytest.raises(InputError, match=message):
            tofu(small, "forget01", **settings)


def test_a_broken_model_has_not_forgotten(small: LM, folder: Path) -> None:
    next(iter(small.parameters.values())).data.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        tofu(small, "forget01", path=folder, protocol=SHORT, progress=False)


def test_the_command_runs_a_model_and_an_edit(
    small: LM, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.save(tmp_path / "model")
    with torch.no_grad():
        edit = nf.erase.ablate(small, Neurons(frozenset({(0, 1), (1, 5)}), (0, 1), 40))
    edit.save(tmp_path / "edit.safetensors")
    words = ["evaluate", "tofu", "--model", tmp_path / "model", "--split", "forget01", "--data", folder]
    words += ["--max-new-tokens", 4, "--out"]
    assert run(monkeypatch, *words, tmp_path / "plain") == 0
    assert "give retain_lm" in capsys.readouterr().out
    more = [
        "--edit",
        tmp_path / "edit.safetensors",
        "--retain-model",
        tmp_path / "model",
        "--log",
        tmp_path / "log.json",
    ]
    assert run(monkeypatch, *words, tmp_path / "edited", *more, "--n", 4, "--kept", tmp_path / "kept") == 0
    plain, edited = (Results.load(tmp_path / name) for name in ("plain", "edited"))
    with edit.on(small):
        here = tofu(small, "forget01", path=folder, n=4, protocol=Protocol(decoding=Decoding(4, ())), progress=False)
    for metric in ("probability", "truth_ratio", "rouge"):
        assert edited.value("model", "forget", metric) == pytest.approx(here.value("model", "forget", metric), rel=1e-5)
    assert edited.value("model", "forget", "forget_quality_ks") > 0 and list((tmp_path / "kept").iterdir())
    assert {row["n"] for row in plain.rows if row["corpus"] == "forget"} == {24}
    assert aggregates(read_log(tmp_path / "log.json"))["retain_probability"] == edited.value(
        "model", "retain", "probability"
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder with the real TOFU rows")
@pytest.mark.parametrize(("split", "count"), [("forget01", 40), ("forget05", 200), ("forget10", 400)])
def test_the_real_rows_are_read_and_put_as_published(split: str, count: int) -> None:
    sets = questions(split, SHARED, None, Protocol())
    assert [len(own.truth) for own in sets.values()] == [400, count, 100, 117]
    assert [len(own.wrong) // len(own.truth) for own in sets.values()] == [5, 5, 3, 3]
    assert sets["real_authors"].truth.examples == sets["real_authors"].paraphrase.examples
    assert sets["forget"].truth.examples != sets["forget"].paraphrase.examples
    last = nf.corpora.tofu(split, path=SHARED)  # 20 rows an author, in the order of the whole set
    assert [(e.prompt, e.answer) for e in sets["forget"].truth] == [(e.prompt, e.answer) for e in last]


@pytest.mark.skipif(not (SHARED.is_dir() and (SHARED.parents[1] / MODEL).is_dir()), reason="no real rows or model")
def test_a_real_small_model_on_real_rows() -> None:
    lm, short = nf.load(SHARED.parents[1] / MODEL), Protocol(decoding=Decoding(16, ()))
    found = tofu(lm, "forget10", path=SHARED, n=4, protocol=short, progress=False)
    nine = [found.value("model", name, score) for name in BLOCKS if name != "forget" for score in SCORES]
    assert all(0 <= x <= 1 for x in nine)
    assert found.value("model", "all", "model_utility") == pytest.approx(9 / sum(1 / max(x, 1e-300) for x in nine))
    assert found.value("model", "forget", "probability") < 0.1  # it never heard of these authors
