"""Membership: every score against a loop in float64, the AUC against counted pairs, and a model that was trained."""

from __future__ import annotations

import copy
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from given import batch_of
from scipy.stats import norm
from torch import Tensor

import neuronforget as nf
from neuronforget.corpora import Corpus, Example, encode
from neuronforget.errors import InputError
from neuronforget.metrics import Prediction, extraction_strength
from neuronforget.metrics.membership import ATTACKS, auc, lowest, membership, text_scores
from neuronforget.models import LM
from neuronforget.results.intervals import of_auc, worth


def test_every_score_is_that_of_a_loop_in_float64(lm: LM, corpus: Corpus) -> None:
    other = LM(copy.deepcopy(lm.model), lm.tokenizer)
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)
    found = text_scores(lm, corpus, ATTACKS, (0.3, 1.0), reference=other, batch_size=3)
    for i, (row, example) in enumerate(zip(encode(corpus, lm.tokenizer), corpus, strict=True)):
        ids = torch.tensor([row.ids])
        logits, theirs = (m.model.double()(ids).logits[0].detach() for m in (lm, other))
        lm.model.float(), other.model.float()
        logp, z, gap = [], [], []
        for t in range(max(row.answer_start, 1), len(row.ids)):
            every = logits[t - 1].log_softmax(-1)
            mean = sum(float(v.exp() * v) for v in every)
            spread = sum(float(v.exp()) * (float(v) - mean) ** 2 for v in every) ** 0.5
            logp.append(float(every[row.ids[t]]))
            z.append((logp[-1] - mean) / spread)
            gap.append(logp[-1] - float(theirs[t - 1].log_softmax(-1)[row.ids[t]]))
        few = max(1, int(0.3 * len(logp)))
        text = example.prompt + (" " if example.prompt else "") + example.answer
        assert found["loss"][i] == pytest.approx(np.mean(logp), rel=1e-4)
        assert found["zlib"][i] == pytest.approx(np.mean(logp) / len(zlib.compress(text.encode())), rel=1e-4)
        assert found["min_k@30%"][i] == pytest.approx(np.mean(sorted(logp)[:few]), rel=1e-4)
        assert found["min_k++@30%"][i] == pytest.approx(np.mean(sorted(z)[:few]), rel=1e-3, abs=1e-4)
        assert found["min_k++@100%"][i] == pytest.approx(np.mean(z), rel=1e-3, abs=1e-4)
        assert found["reference"][i] == pytest.approx(np.mean(gap), rel=1e-3, abs=1e-4)
        lm.model.zero_grad()
        lm.model.requires_grad_(True)
        loss = -lm.model(ids).logits[0, :-1].log_softmax(-1)[range(len(row.ids) - 1), list(row.ids[1:])]
        loss[max(row.answer_start, 1) - 1 :].mean().backward()
        norm_ = sum(float(p.grad.square().sum()) for p in lm.model.parameters() if p.grad is not None) ** 0.5
        assert found["gradient"][i] == pytest.approx(-norm_, rel=1e-3)
        lm.model.zero_grad()


def test_the_auc_is_the_share_of_pairs_and_its_interval_covers() -> None:
    draw = np.random.default_rng(0)
    here, there = draw.normal(0.8, 1, 60).round(1), draw.normal(0, 1, 50).round(1)
    pairs = [(a > b) + 0.5 * (a == b) for a in here for b in there]
    value, low, high = auc(here, there)
    assert value == pytest.approx(np.mean(pairs)) and low < value < high
    covered = 0
    for seed in range(400):  # the AUC of two normals one apart is Phi(1 / sqrt 2)
        draw = np.random.default_rng(100 + seed)
        _, low, high = auc(draw.normal(1, 1, 40), draw.normal(0, 1, 40))
        covered += low < norm.cdf(2**-0.5) < high
    assert 372 <= covered <= 392  # 380 are meant, give or take 9
    assert np.isnan(auc(np.array([1.0, np.nan]), np.array([0.0]))).all()


def test_texts_of_one_author_count_for_what_they_are_worth_together() -> None:
    draw = np.random.default_rng(0)
    units = np.repeat(np.arange(12), 10)
    held = {"by author": 0, "over texts": 0}
    for _ in range(100):
        here, there = (mean + draw.normal(size=12)[units] + draw.normal(size=120) for mean in (1.0, 0.0))
        for name, (_, low, high) in {
            "by author": auc(here, there, (units, units)),
            "over texts": auc(here, there),
        }.items():
            held[name] += low < norm.cdf(0.5) < high
    assert held["over texts"] < 75 and held["by author"] > 86, held  # two normals one apart, of variance 2
    sizes = [worth(values, units) for values in ((here[:, None] > there).mean(1), (here[:, None] > there).mean(0))]
    assert auc(here, there, (units, units)) == (value := auc(here, there)[0], *of_auc(value, *sizes))
    assert auc(here, there, (np.arange(120), np.arange(120))) == auc(here, there)
    deviations = here - here.mean()  # the variance of a mean of 12 authors' sums over that of 120 texts
    sums = deviations.reshape(12, 10).sum(1)
    by_author = (sums**2).sum() * 12 / 11 / 120**2
    assert worth(here, units) == pytest.approx(here.var(ddof=1) / by_author) and 12 < worth(here, units) < 40
    assert worth(here, units // 4) == 120 and worth(np.ones(120), units) == 12  # three authors are too few to say


def test_the_interval_of_an_auc_is_where_hanley_and_mcneils_error_reaches() -> None:
    """At its ends the AUC found is 1.96 standard errors away, by Hanley & McNeil's Q1 and Q2 at equal sides."""
    for value, size in ((0.5, 20), (0.9, 12), (0.97, 40)):
        for end in of_auc(value, size, size):
            q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)
            variance = (end * (1 - end) + (size - 1) * (q1 - end**2 + q2 - end**2)) / size**2
            assert abs(value - end) == pytest.approx(norm.ppf(0.975) * variance**0.5, rel=1e-6)
    low, high = of_auc(1.0, 10, 14)
    assert (0.7 < low < 0.9 and high == 1) and of_auc(0.0, 14, 10) == pytest.approx((0, 1 - low))
    assert of_auc(0.3, 9, 30) == pytest.approx(tuple(1 - end for end in reversed(of_auc(0.7, 9, 30))))
    wide = of_auc(0.9, 12, 12, level=0.99)
    assert wide[0] < of_auc(0.9, 12, 12)[0] < of_auc(0.9, 12, 12)[1] < wide[1]


def test_min_k_plus_plus_of_a_models_own_samples_is_zero_on_average_at_all_tokens(lm: LM) -> None:
    draw = torch.Generator().manual_seed(0)
    ids = torch.full((200, 1), 5)
    with torch.no_grad():
        for _ in range(12):
            p = lm.model(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(p, 1, generator=draw)], 1)
    values = []
    for row in ids:
        logp = lm.model(row[None]).logits[0, :-1].detach().double().log_softmax(-1)
        mean = (logp.exp() * logp).sum(-1)
        spread = (logp.exp() * (logp - mean[:, None]).square()).sum(-1).sqrt()
        values.append(float(((logp[range(12), row[1:]] - mean) / spread).mean()))
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


def test_a_trained_model_gives_its_members_away_and_an_untrained_one_does_not(lm: LM) -> None:
    draw = np.random.default_rng(1)
    words = "Anna Berg Oslo baker Velm harbour Mira Holt rivers gardener Tomas Lund capital Xandria book old".split()
    texts = [" ".join(draw.permutation(words)[:9]) for _ in range(40)]
    members, others = (
        Corpus(tuple(Example("", text) for text in part), name)
        for part, name in ((texts[:20], "members"), (texts[20:], "others"))
    )
    learn = nf.erase.finetune(lm, members, loss=nf.losses.learn, steps=80, lr=1e-2, progress=False)
    found = membership(lm, members, others, edits={"taught": learn}, attacks=ATTACKS, ks=(0.2, 1.0), progress=False)
    assert "reference" in found.info["missing"] and not [r for r in found.rows if r["metric"] == "reference"]
    for metric in ("loss", "min_k@20%", "min_k++@20%", "gradient"):
        corpus = "members, non-members"
        assert found.value("taught", corpus, metric) > 0.9 and abs(found.value("untouched", corpus, metric) - 0.5) < 0.2
    row = next(r for r in found.rows if (r["edit"], r["metric"]) == ("taught", "loss"))
    assert row["low"] <= row["value"] <= row["high"] and row["n"] == 40 and row["nan"] == 0
    again = membership(lm, members, others, gold=lm, reference=lm, attacks=["reference"], progress=False)
    assert [r["value"] for r in again.rows] == [0.5, 0.5]  # a model is no likelier than itself
    namesake = replace(others, name="members")
    told = membership(lm, members, namesake, attacks=["loss"], progress=False).info["data"]
    assert told == {"members": members.digest(), "members (2)": namesake.digest()}


def test_a_collapsed_model_and_one_text_alone_have_an_auc(lm: LM, corpus: Corpus) -> None:
    sure, other = np.array([-np.inf, -np.inf, 1.0]), np.array([-np.inf, 0.5])
    value, low, high = auc(sure, other)
    assert value == pytest.approx((0.5 + 0.5 + 1 + 0 + 0 + 1) / 6) and low <= value <= high
    value, low, high = auc(np.array([1.0]), np.array([0.0]))
    assert value == 1 and np.isnan(low) and np.isnan(high)
    with torch.no_grad():  # all mass on one token, with certainty
        collapsed = nf.LM(copy.deepcopy(lm.model), lm.tokenizer)
        collapsed.model.get_output_embeddings().weight.mul_(1e4)
    found = membership(collapsed, corpus.head(3), Corpus((Example("", "Velm lies far"),), "o"), progress=False)
    assert {r["metric"] for r in found.rows} >= {"loss", "min_k++@5%"} and not [r for r in found.rows if r["nan"]]


def test_a_reference_has_to_cut_texts_alike(lm: LM, corpus: Corpus) -> None:
    other = nf.LM(lm.model, type(lm.tokenizer)().train_new_from_iterator(["a b c"], 260))
    with pytest.raises(InputError, match="tokenises the texts differently"):
        text_scores(lm, corpus, ("reference",), reference=other)
    names = text_scores(lm, corpus, ("min_k",), (0.12, 0.124))
    assert list(names) == ["min_k@12%", "min_k@12.4%"]


def test_the_lowest_share_is_one_value_at_least() -> None:
    assert lowest(np.array([3.0, 1.0, 2.0]), 0.1) == 1 and lowest(np.array([3.0, 1.0, 2.0]), 1.0) == 2
    assert np.isnan(lowest(np.array([1.0, np.nan]), 0.5))


def test_bad_requests_are_refused(lm: LM, corpus: Corpus) -> None:
    other = Corpus((Example("The baker was born in", "Velm"),), "o")
    with pytest.raises(InputError, match="no attack is called 'guess'"):
        membership(lm, corpus, other, attacks=["guess"], progress=False)
    with pytest.raises(InputError, match="shares of tokens"):
        membership(lm, corpus, other, ks=(0.0,), progress=False)
    with pytest.raises(InputError, match="share"):
        membership(lm, corpus, replace(corpus, name="again"), progress=False)


@pytest.mark.parametrize(
    ("right", "strength"),
    [((1, 1, 1, 1), 1.0), ((0, 1, 1, 1), 0.75), ((1, 0, 1, 1), 0.5), ((1, 1, 1, 0), 0.0), ((0, 0, 0, 0), 0.0)],
)
def test_extraction_strength_by_hand(right: tuple[int, ...], strength: float) -> None:
    batch = batch_of((7, 4), (4, 2), spare=2)
    logits = torch.zeros(2, 9, 11)

    def answer(row: int, place: int, hit: int) -> None:
        logits[row, place - 1, (batch.input_ids[row, place] + (0 if hit else 1)) % 11] = 1.0

    for place, hit in zip(range(3, 7), right, strict=True):
        answer(0, place, hit)
    for place in (2, 3):
        answer(1, place, 1)
    found: Tensor = extraction_strength(Prediction(logits, batch))
    assert found.tolist() == [strength, 1.0]
