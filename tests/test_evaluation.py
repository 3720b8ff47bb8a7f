"""Metrics by hand and by real decoding, intervals, matched damage, and the results that come of them."""

from __future__ import annotations

import copy
import tracemalloc
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from beds import bed
from scipy.stats import binomtest

import neuronforget as nf
from neuronforget.corpora import Batch, Corpus, encode
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.evaluation import match_damage, measuring
from neuronforget.evaluation.measuring import Before, measure, preferred
from neuronforget.metrics import Prediction, exact_match, kl_gold, nll, probability, rank, token_accuracy
from neuronforget.results import Results, tidy_row
from neuronforget.results.intervals import bootstrap, difference, of_rate, resampled


def one(
    logits: list[list[float]], ids: list[int], answer: list[bool], gold: list[list[float]] | None = None
) -> Prediction:
    """A prediction on one example."""
    batch = Batch(
        torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), torch.tensor([answer]), torch.tensor([0]), (0,)
    )
    return Prediction(torch.tensor([logits]), batch, None if gold is None else torch.tensor([gold]))


def test_metrics_of_a_case_worked_by_hand() -> None:
    """Answer tokens 2 and 0, predicted from rows 0 and 1: probabilities 1/2 and 1/4, ranks 1 and 2."""
    half = [np.log(1), np.log(1), np.log(2)]
    quarter = [np.log(1), np.log(2), np.log(1)]
    p = one([half, quarter, [9.0, 9, 9]], [1, 2, 0], [False, True, True])
    assert nll(p).item() == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert probability(p).item() == pytest.approx(8**-0.5)
    assert (exact_match(p).item(), token_accuracy(p).item(), rank(p).item()) == (0.0, 0.5, 2.0)


def test_kl_from_gold_is_zero_for_gold_and_worked_by_hand_otherwise() -> None:
    gold, model = [[np.log(3), 0.0], [0.0, 0.0]], [[0.0, 0.0], [5.0, 0.0]]
    assert kl_gold(one(gold, [0, 1], [False, True], gold)).item() == pytest.approx(0, abs=1e-6)
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert kl_gold(one(model, [0, 1], [False, True], gold)).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="gold="):
        kl_gold(one(model, [0, 1], [False, True]))


@pytest.mark.parametrize("metric", [exact_match, token_accuracy, nll, probability, rank])
def test_a_broken_model_has_not_forgotten(metric: nf.metrics.Metric) -> None:
    assert torch.isnan(metric(one([[torch.nan, 0.0], [0.0, 0.0]], [0, 1], [False, True]))).all()


def test_exact_match_is_what_greedy_decoding_writes() -> None:
    lm, forget = bed().lm, bed().forget
    answers = [e.answer for e in forget]  # two phrasings of a fact are neighbours: every other fact gets a wrong one
    corpus = forget.with_answers([answers[i // 4 * 4] for i in range(len(answers))], "half wrong")
    found = measure(lm, corpus, [exact_match])["exact_match"]
    decoded = []
    for row in encode(corpus, lm.tokenizer):
        prompt, answer = torch.tensor([row.ids[: row.answer_start]]), row.ids[row.answer_start :]
        out = lm.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=len(answer), do_sample=False, pad_token_id=0
        )
        decoded.append(tuple(out[0, row.answer_start :].tolist()) == answer)
    assert 0 < sum(decoded) < len(decoded)
    assert found.tolist() == [float(x) for x in decoded]


def test_measured_values_come_in_the_corpus_order_whatever_the_batch_size() -> None:
    lm, corpus = bed().lm, bed().retain.head(23)
    alone = [measure(lm, Corpus((e,)), [nll])["nll"][0] for e in corpus]
    for size in (1, 7, 64):
        np.testing.assert_allclose(measure(lm, corpus, [nll], batch_size=size)["nll"], alone, rtol=1e-3, atol=1e-6)


def test_the_bootstrap_interval_is_seeded_holds_the_mean_and_covers_it_about_as_often_as_it_says() -> None:
    values = np.random.default_rng(0).normal(size=80)
    mean, low, high = bootstrap(values, 1)
    assert mean == pytest.approx(values.mean()) and low < mean < high
    assert bootstrap(values, 1) == (mean, low, high) != bootstrap(values, 2)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 80**0.5, rel=0.15)
    draws = (bootstrap(np.random.default_rng(i).normal(size=50), i, resamples=300) for i in range(200))
    assert 0.88 < np.mean([low < 0 < high for _, low, high in draws]) < 0.99


def test_of_a_rate_that_is_all_0_or_all_1_the_interval_is_exact() -> None:
    for value in (0, 1):
        exact = binomtest(6 * value, 6).proportion_ci()
        found = of_rate(np.array([float(value)] * 11 + [np.nan]), 0, units=np.array([*range(6), *range(6)]))
        assert found == pytest.approx((value, exact.low, exact.high))
    some, units = np.array([0.0, 1.0, 0.5, 0.5]), np.arange(4)
    assert of_rate(some, 3, units=units) == bootstrap(some, 3, units=units)
    assert np.isnan(of_rate(np.zeros(3), 0, units=np.zeros(3))[1:]).all()  # of one subject there is none
    names = {"edit": "e", "metric": "exact_match"}
    assert tidy_row(names, np.zeros(20), units=np.arange(20), seed=0)["high"] == pytest.approx(0.168, abs=1e-3)
    assert tidy_row(names | {"metric": "nll"}, np.zeros(20), units=np.arange(20), seed=0)["high"] == 0


def test_examples_without_a_value_are_left_out_and_nothing_is_made_of_none() -> None:
    assert bootstrap(np.array([1.0, np.nan, 3.0]), 0)[0] == 2.0
    assert np.isnan(bootstrap(np.array([np.nan]), 0)).all()


@pytest.fixture(scope="module")
def edits() -> dict[str, Edit]:
    lm = bed().lm
    neurons = nf.select.per_layer(nf.attribute(lm, bed().forget, bed().retain, progress=False), 0.06)
    trained = nf.erase.finetune(lm, bed().forget, loss=nf.losses.ga, steps=10, progress=False)
    return {"ablate": nf.erase.ablate(lm, neurons), "ga": trained}


@pytest.fixture(scope="module")
def results(edits: dict[str, Edit]) -> Results:
    before = {name: p.detach().clone() for name, p in bed().lm.parameters.items()}
    found = nf.evaluate(bed().lm, edits, bed().forget, bed().retain, gold=bed().gold, strengths=(0.5,), progress=False)
    assert all(torch.equal(before[name], p) for name, p in bed().lm.parameters.items())
    return found


def test_matched_damage_is_the_budget_and_not_more(edits: dict[str, Edit]) -> None:
    lm, retain = bed().lm, bed().retain
    start = measure(lm, retain, [nll])["nll"].mean()
    strength = match_damage(lm, edits["ga"], retain, 0.05)
    assert 0 < strength < 1
    with edits["ga"].scaled(strength).on(lm):
        rise = measure(lm, retain, [nll])["nll"].mean() - start
    assert 0.04 < rise <= 0.05
    assert match_damage(lm, edits["ablate"], retain, 100.0) == 1.0


def test_edits_are_matched_by_how_far_predictions_moved_on_retain(edits: dict[str, Edit]) -> None:
    lm, retain = bed().lm, bed().retain
    found = nf.evaluate(
        lm, edits, bed().forget, retain, strengths=(0.5,), damage=None, divergence=0.02, progress=False
    )  # fmt: skip
    plain = copy.deepcopy(lm.model).eval()

    def far(model: torch.nn.Module) -> list[float]:
        """Example by example, in fp64, from the untouched copy."""
        values = []
        for row in encode(retain, lm.tokenizer):
            ids = torch.tensor([row.ids])
            with torch.no_grad():
                p, q = (m(ids).logits[0, row.answer_start - 1 : -1].double().softmax(-1) for m in (plain, model))
            values.append(float((p * (p / q).log()).sum(-1).mean()))
        return values

    for name, edit in edits.items():
        rows = [r for r in found.rows if r["edit"] == name and r["point"] == "matched KL"]
        assert {r["corpus"] for r in rows} == {"forget", "forget unseen", "retain", "retain unseen"}
        with edit.scaled(rows[0]["strength"]).on(lm):
            values = far(lm.model)
        assert 0 < rows[0]["strength"] < 1 and 0.017 < np.mean(values) <= 0.0201
        own = [e["value"] for e in found.examples if (e["edit"], e["point"]) == (name, "matched KL")
               and (e["corpus"], e["metric"]) == ("retain", "kl_untouched")]  # fmt: skip
        np.testing.assert_allclose(own, values, atol=1e-5)
    assert found.value("untouched", "retain", "kl_untouched") == pytest.approx(0, abs=1e-6)
    assert found.info["divergence_budget"] == 0.02 and not any(r["point"] == "matched" for r in found.rows)
    assert {r["corpus"] for r in found.rows if r["metric"] == "kl_untouched"} == {"retain"}


def test_a_killed_evaluation_goes_on_and_measures_nothing_twice(
    edits: dict[str, Edit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"strengths": (0.5,), "divergence": 0.02, "batch_size": 8, "progress": False}
    retain = bed().retain.head(40)
    given = (bed().lm, edits, bed().forget, retain)
    whole = nf.evaluate(*given, **settings)
    passes = 0
    forward = type(bed().lm.model).forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == stop:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(type(bed().lm.model), "forward", counted)
    stop = 0
    nf.evaluate(*given, **settings)
    all_of_it, passes, stop = passes, 0, 20
    with pytest.raises(KeyboardInterrupt):
        nf.evaluate(*given, **settings, kept=tmp_path)
    passes, stop = 0, 0
    again = nf.evaluate(*given, **settings, kept=tmp_path)
    assert again.rows == whole.rows and again.examples == whole.examples
    once = -(-len(retain) // 8)  # what the untouched model predicts on retain is asked anew
    assert passes <= all_of_it - 19 + once
    passes = 0
    assert nf.evaluate(*given, **settings, kept=tmp_path).rows == whole.rows and passes == once


def test_kept_values_are_of_this_model_this_metric_and_this_corpus_alone(
    edits: dict[str, Edit], tmp_path: Path
) -> None:
    lm, corpus = bed().lm, bed().forget

    def twice(factor: float) -> Any:
        def loss(p: nf.metrics.Prediction) -> torch.Tensor:
            return factor * p.nll

        return loss

    def measured(metric: Any, of: nf.Corpus = corpus) -> np.ndarray:
        return measure(lm, of, [metric], kept=tmp_path)[metric.__name__]

    first = measured(twice(1.0))
    np.testing.assert_allclose(measured(twice(2.0)), 2 * first, rtol=1e-6)
    assert len(measured(twice(1.0), corpus.head(3))) == 3
    with edits["ablate"].on(lm):
        assert not np.allclose(measured(twice(1.0)), first)
    assert len(list(tmp_path.iterdir())) == 4
    assert (measured(twice(1.0)) == first).all() and len(list(tmp_path.iterdir())) == 4


def test_of_equally_likely_tokens_the_first_is_written(lm: LM, corpus: nf.Corpus) -> None:
    (batch,) = nf.corpora.batches(nf.corpora.encode(corpus, lm.tokenizer), 64, lm.pad_id)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (*batch.input_ids.shape, 9), generator=draw).float()  # many ties
    logits = torch.cat([logits, torch.full((*batch.input_ids.shape, lm.model.config.vocab_size - 9), -5.0)], -1)
    found = nf.metrics.Prediction(logits, replace(batch, input_ids=batch.input_ids % 9)).hits
    wanted = (logits.argmax(-1)[:, :-1] == (batch.input_ids % 9)[:, 1:]) & batch.answer_mask[:, 1:]
    assert torch.equal(found, wanted) and 0 < int(wanted.sum()) < int(batch.answer_mask.sum())


@pytest.mark.parametrize(
    ("gives", "reason"),
    [
        (lambda p: p.nll.mean(), r"a tensor of shape \(\)"),
        (lambda p: torch.stack([p.nll, p.nll], 1), r"a tensor of shape \(\d+, 2\)"),
        (lambda p: p.nll[:1], r"a tensor of shape \(1,\)"),
        (lambda p: p.nll.tolist(), "it returned list"),
    ],
)
def test_a_metric_gives_a_value_an_example(gives: Any, reason: str) -> None:
    def mine(p: nf.metrics.Prediction) -> Any:
        return gives(p)

    with pytest.raises(nf.InputError, match=f"metric 'mine' must return .*{reason}"):
        measure(bed().lm, bed().forget, [mine])


def test_every_edit_has_rows_at_full_strength_on_the_frontier_and_at_matched_damage(results: Results) -> None:
    frame = results.frame
    for name in ("ablate", "ga"):
        points = frame[(frame["edit"] == name) & (frame["corpus"] == "forget") & (frame["metric"] == "exact_match")]
        assert set(points["point"]) == {"full", "frontier", "matched"}
    assert set(frame["corpus"]) == {"forget", "forget unseen", "retain", "retain unseen"}
    assert set(frame[frame["edit"] == "gold"]["point"]) == {"full"}
    assert (frame["low"] <= frame["value"] + 1e-9).all() and (frame["value"] <= frame["high"] + 1e-9).all()
    assert set(frame["nan"]) == {0} and results.value("gold", "forget", "kl_gold") == pytest.approx(0, abs=1e-6)


def test_rows_are_the_means_of_their_examples(results: Results) -> None:
    for row in results.rows:
        if row["point"] != "frontier":
            names = ("edit", "point", "corpus", "metric")
            own = [e["value"] for e in results.examples if all(e[k] == row[k] for k in names)]
            assert len(own) == row["n"] and np.mean(own) == pytest.approx(row["value"])


def test_a_table_has_one_metric_of_every_edit_on_every_corpus_and_a_notebook_shows_it(results: Results) -> None:
    for point in ("full", "matched"):
        table = results.table("nll", point)
        assert list(table.index)[:2] == ["untouched", "gold"] and table.columns[0] == "forget"
        for edit in table.index:
            at = "full" if edit in ("untouched", "gold") else point
            assert all(table.loc[edit, c] == results.value(edit, c, "nll", at) for c in table.columns)
    with pytest.raises(InputError, match="not measured"):
        results.table("nll", "matched KL")
    shown = results._repr_html_()
    assert all(f"<th>{edit}</th>" in shown for edit in table.index) and results.rows[0]["metric"] in shown
    matched = Results(tuple(row for row in results.rows if row["point"] == "matched"), (), {})
    assert "matched</p>" in matched._repr_html_() and "Results(0 rows" in Results((), (), {})._repr_html_()


def test_a_point_that_several_strengths_share_has_no_table(results: Results) -> None:
    half = [row for row in results.rows if row["point"] == "frontier"]
    frontier = Results((*half, *(row | {"strength": 0.75} for row in half)), (), {})
    with pytest.raises(InputError, match="several strengths of an edit at 'frontier'"):
        frontier.table("exact_match", "frontier")
    assert frontier._repr_html_().startswith("<p>Results(") and "<table" not in frontier._repr_html_()


def test_paired_differences_are_tighter_than_their_intervals_apart(results: Results) -> None:
    value, low, high = results.paired("ablate", "untouched", "forget", "nll")
    assert value == pytest.approx(
        results.value("ablate", "forget", "nll") - results.value("untouched", "forget", "nll")
    )
    assert low < value < high
    assert results.paired("ga", "ga", "forget") == (0, 0, 0)
    with pytest.raises(InputError, match="same examples"):
        results.paired("ablate", "nonesuch", "forget")


def test_results_are_saved_and_read_back(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "results")
    again = Results.load(tmp_path / "results")
    assert again.rows == results.rows and again.info == results.info
    assert again.paired("ablate", "ga", "retain") == results.paired("ablate", "ga", "retain")
    assert results.info["data"] == {c.name: c.digest() for c in (bed().forget, bed().retain)}
    parts = {"forget": bed().forget, "retain": bed().retain}
    assert results.info["corpora"] == {role: {"name": c.name, "digest": c.digest()} for role, c in parts.items()}
    with pytest.raises(InputError, match="no results"):
        Results.load(tmp_path)


def test_what_cannot_be_evaluated_is_refused(edits: dict[str, Edit], results: Results) -> None:
    lm, forget, retain = bed().lm, bed().forget, bed().retain
    with pytest.raises(InputError, match="names of references"):
        nf.evaluate(lm, {"gold": edits["ga"]}, forget, retain, progress=False)
    with pytest.raises(InputError, match="share"):
        nf.evaluate(lm, edits, forget, replace(forget, name="again"), progress=False)
    with pytest.raises(InputError, match="does not fit"):
        nf.evaluate(bed().gold, edits, forget, retain, progress=False)
    with pytest.raises(InputError, match="no such row"):
        results.value("ablate", "forget", "nonesuch")
    for damage in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="evaluate: damage must be a number"):
            nf.evaluate(lm, edits, forget, retain, damage=damage, progress=False)
    with pytest.raises(InputError, match="evaluate: divergence must be a number > 0, found 0"):
        nf.evaluate(lm, edits, forget, retain, divergence=0.0, progress=False)


def test_a_gold_twin_of_another_vocabulary_is_refused_before_anything_is_measured(lm: nf.LM) -> None:
    with pytest.raises(InputError, match="gold is of another vocabulary"):
        nf.evaluate(bed().lm, {}, bed().forget, bed().retain, gold=lm, progress=False)


def test_the_model_itself_is_no_gold_twin() -> None:
    made = bed()
    edit = nf.erase.ablate(made.lm, made.planted)
    for gold in (made.lm, nf.LM(made.lm.model, made.lm.tokenizer)):
        for ask in (nf.audit, nf.evaluate):
            with pytest.raises(InputError, match="gold is the model itself"):
                ask(made.lm, {"a": edit} if ask is nf.evaluate else edit, made.forget, made.retain, gold=gold)  # type: ignore


def test_a_model_in_training_mode_is_measured_in_evaluation_mode_and_left_in_training() -> None:
    made = bed()
    dropped = nf.LM(copy.deepcopy(made.lm.model), made.lm.tokenizer)
    for layer in dropped.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    dropped.model.train()
    found = measure(dropped, made.forget, [nll])["nll"]
    assert dropped.model.training and all(p.requires_grad for p in dropped.model.parameters())
    np.testing.assert_allclose(found, measure(made.lm, made.forget, [nll])["nll"], rtol=1e-6)


def test_the_activation_shift_is_the_rms_over_tokens_and_neurons(edits: dict[str, Edit]) -> None:
    lm, corpus = bed().lm, bed().forget.head(5)
    tap, squares, count = nf.taps.TorchHooks(lm), np.zeros(2), 0
    for row in encode(corpus, lm.tokenizer):
        batch = {"input_ids": torch.tensor([row.ids])}
        with torch.no_grad():
            before = tap(batch).acts
            with edits["ga"].on(lm):
                after = tap(batch).acts
        squares += [float(((after[i] - before[i]) ** 2).sum()) for i in range(2)]
        count += before[0][..., 0].numel() * lm.shape[1]
    np.testing.assert_allclose(
        nf.metrics.activation_shift(lm, edits["ga"], corpus), np.sqrt(squares / count), rtol=1e-4
    )


@pytest.mark.parametrize(("count", "level"), [(5, 0.95), (5, 0.999), (10, 0.95), (40, 0.95)])
def test_intervals_of_differences_hold_for_few_subjects_too(count: int, level: float) -> None:
    draw, held = np.random.default_rng(0), 0
    units = np.repeat(np.arange(count), 4)
    for i in range(300):
        gap = np.repeat(draw.normal(size=count), 4) + draw.normal(size=4 * count)
        _, low, high = difference(gap, i, units=units, level=level)
        held += low <= 0 <= high
    assert held / 300 > level - 0.035


def test_a_difference_of_one_subject_has_no_interval_and_of_equal_ones_no_width() -> None:
    value, low, high = difference(np.array([0.5, 0.1]), 0, units=np.array([3, 3]))
    assert value == 0.3 and np.isnan([low, high]).all()
    assert difference(np.full(6, 0.5), 0) == (0.5, 0.5, 0.5) and np.isnan(difference(np.full(6, np.nan), 0)).all()


def test_many_examples_are_drawn_a_part_at_a_time_and_give_what_they_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=37)
    whole = np.random.default_rng(3).integers(37, size=(1000, 37))
    monkeypatch.setattr("neuronforget.results.intervals.DRAWN", 37 * 7 + 5)
    drawn = resampled(values, 3)
    assert np.array_equal(drawn, values[whole].sum(1) / 37.0)


def test_ten_thousand_samples_of_many_examples_need_little_memory() -> None:
    tracemalloc.start()
    difference(np.arange(4000.0), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_the_preferred_of_equal_answers_is_chosen_by_chance() -> None:
    assert [preferred(own) for own in ([1, 2, 3], [2, 1, 3], [1.0, 1.0 + 1e-8, 1.0, 1.0], [2, 2, 1], [1])] == [
        1, 0, 0.25, 0, 1,
    ]  # fmt: skip
    assert np.isnan(preferred([1, float("nan")])) and preferred([np.inf, np.inf]) == 0.5


def test_subjects_are_drawn_whole() -> None:
    """Forty examples of four subjects that agree within themselves are four observations, not forty."""
    values, units = np.repeat([0.0, 1.0, 1.0, 0.0], 10), np.repeat([7, 3, 5, 1], 10)
    mean, low, high = bootstrap(values, 0, units=units, resamples=20000)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    every = [np.mean([values[u * 10] for u in pick]) for pick in np.ndindex(4, 4, 4, 4)]
    uneven = bootstrap(np.array([0.0, 1.0, 1.0]), 0, units=np.array([0, 1, 1]), resamples=20000)
    assert np.quantile(every, 0.975) == 1.0 and uneven[0] == pytest.approx(2 / 3)
    assert bootstrap(values, 0)[2] - bootstrap(values, 0)[1] < 0.35
    assert np.isnan(bootstrap(values, 0, units=np.zeros(40))[1:]).all() and np.isnan(bootstrap(np.ones(1), 0)[1:]).all()


def test_metrics_of_one_name_and_negative_seeds_are_refused(edits: dict[str, Edit]) -> None:
    lm, forget, retain = bed().lm, bed().forget, bed().retain
    with pytest.raises(InputError, match="two metrics are called '<lambda>'"):
        nf.evaluate(lm, edits, forget, retain, metrics=[lambda p: p.nll, lambda p: -p.nll], progress=False)
    with pytest.raises(InputError, match="seed"):
        nf.evaluate(lm, edits, forget, retain, seed=-1, progress=False)


def test_results_say_how_each_edit_was_made(results: Results) -> None:
    made = results.info["edits"]["ga"]
    assert (made["method"], made["steps"], made["lr"], made["seed"]) == ("finetune:ga", 10, 3e-4, 0)
    assert made["values"] > 0 and made["values_lost_to_dtype"] == 0 and "torch" not in made


def test_predictions_that_do_not_fit_what_is_free_are_refused_before_any(
    lm: nf.LM, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = sum(row.numel() for row in Before.of(lm, corpus).rows.values()) * 4
    monkeypatch.setattr(measuring, "free_bytes", lambda _device: need)
    assert Before.of(lm, corpus).rows
    monkeypatch.setattr(measuring, "free_bytes", lambda _device: need - 1)
    monkeypatch.setattr(measuring, "predicted", None)
    with pytest.raises(InputError, match="the predictions on corpus 'facts' take"):
        Before.of(lm, corpus)
