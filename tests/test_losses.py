"""Losses against hand-worked cases and float64, and what each does when a corpus is missing."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from given import VOCAB, batch_of, given, normal, outputs
from torch import Tensor

from neuronforget.corpora import Batch
from neuronforget.errors import InputError
from neuronforget.losses import Answer, Answered, Outputs, dpo, ga, grad_diff, npo
from neuronforget.models.likelihood import answer_logp


def logits_for(batch: Batch, seed: int) -> Tensor:
    return normal(seed, *batch.input_ids.shape, VOCAB).requires_grad_()


def by_hand(logits: Tensor, batch: Batch) -> list[list[float]]:
    """Log-probabilities of each example's answer tokens, one loop step at a time in float64."""
    found: list[list[float]] = []
    for row, ids, mask in zip(logits.detach().double(), batch.input_ids, batch.answer_mask, strict=True):
        found.append([])
        for t in range(1, len(ids)):
            if mask[t]:
                scores = row[t - 1].tolist()
                found[-1].append(scores[int(ids[t])] - math.log(sum(math.exp(s) for s in scores)))
    return found


def answered(seed: int, lengths: tuple[int, ...] = (6, 4, 5), answers: tuple[int, ...] = (2, 1, 3)) -> Answered:
    batch = batch_of(lengths, answers, seed)
    return given(batch, logits_for(batch, seed), start=logits_for(batch, seed + 100).detach())


def nll(part: Answered) -> float:
    means = [sum(tokens) / len(tokens) for tokens in by_hand(part.logits, part.batch)]
    return -sum(means) / len(means)


def dlogp(part: Answered) -> list[float]:
    pairs = zip(by_hand(part.logits, part.batch), by_hand(part.start_logits, part.batch), strict=True)
    return [sum(now) - sum(start) for now, start in pairs]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


F, R, P = answered(1), answered(2, (5, 7), (3, 4)), answered(3)


def test_logp_sums_over_the_answer_and_padding_counts_for_nothing() -> None:
    assert answer_logp(F.logits, F.batch).tolist() == pytest.approx(
        [sum(t) for t in by_hand(F.logits, F.batch)], abs=1e-5
    )
    poisoned = F.logits.detach().clone()
    poisoned[~F.batch.attention_mask.bool()] = 1e4
    assert torch.equal(answer_logp(poisoned, F.batch), answer_logp(F.logits.detach(), F.batch))


def test_gradient_ascent_is_minus_the_loss_per_token() -> None:
    assert ga(outputs(F)).item() == pytest.approx(-nll(F), abs=1e-5)


def test_gradient_difference_weighs_both_corpora() -> None:
    both = outputs(F, R)
    assert grad_diff(both).item() == pytest.approx(-nll(F) + nll(R), abs=1e-5)
    assert grad_diff(both, gamma=0.5, alpha=3.0).item() == pytest.approx(-0.5 * nll(F) + 3 * nll(R), abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_npo_by_hand(beta: float) -> None:
    pull = sum(2 / beta * softplus(beta * d) for d in dlogp(F)) / 3  # -log sigma(-x) = softplus(x)
    assert npo(outputs(F, R), beta=beta, alpha=2.0).item() == pytest.approx(pull + 2 * nll(R), abs=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_by_hand(beta: float) -> None:
    margins = [p - f for p, f in zip(dlogp(P), dlogp(F), strict=True)]
    pull = sum(2 / beta * softplus(-beta * m) for m in margins) / 3
    assert dpo(outputs(F, R, P), beta=beta).item() == pytest.approx(pull + nll(R), abs=1e-4)


def gradient(loss: Any, part: Answered) -> Tensor:
    (grad,) = torch.autograd.grad(loss, part.logits)
    return grad


def at_the_start(part: Answered) -> Answered:
    return given(part.batch, part.logits, answer_logp(part.logits.detach(), part.batch))


def test_npo_starts_as_gradient_ascent_on_whole_answers_and_fades_as_it_forgets() -> None:
    start = at_the_start(F)
    ascent = gradient(answer_logp(F.logits, F.batch).mean(), F)
    first = gradient(npo(outputs(start), alpha=0.0), F)
    torch.testing.assert_close(first, ascent)
    forgotten = given(F.batch, F.logits, start.reference + 200.0)  # each answer e^200 less likely than at the start
    assert float(gradient(npo(outputs(forgotten), alpha=0.0), F).norm()) < 1e-6 * float(first.norm())
    # The limit beta -> 0 is gradient ascent at every point (paper, section 3).
    torch.testing.assert_close(gradient(npo(outputs(F), beta=1e-6, alpha=0.0), F), ascent, rtol=1e-4, atol=1e-6)


def test_dpo_pulls_the_preferred_answer_up_and_the_forget_answer_down() -> None:
    up, down = torch.autograd.grad(dpo(outputs(F, None, P), alpha=0.0), (P.logits, F.logits))
    toward = torch.autograd.grad(answer_logp(P.logits, P.batch).sum(), P.logits)[0]
    away = torch.autograd.grad(answer_logp(F.logits, F.batch).sum(), F.logits)[0]
    for i in range(3):
        assert float((up[i] * toward[i]).sum()) < 0 < float((down[i] * away[i]).sum())


@pytest.mark.parametrize("loss", [grad_diff, npo, dpo])
def test_a_retain_term_needs_a_retain_corpus_and_no_term_needs_none(loss: Any) -> None:
    with pytest.raises(InputError, match="give a retain corpus, or set alpha=0"):
        loss(outputs(F, None, P))
    assert torch.isfinite(partial(loss, alpha=0.0)(outputs(F, None, P)))


def test_dpo_without_preferred_answers_says_what_to_give() -> None:
    with pytest.raises(InputError, match="preferred"):
        dpo(outputs(F, R))


def test_each_part_is_computed_when_asked_for_and_once() -> None:
    calls: list[str] = []

    def part(name: str, value: Answered) -> Answer:
        def run() -> Answered:
            calls.append(name)
            return value

        return run

    asked = Outputs(part("forget", F), part("retain", R), part("preferred", P))
    ga(asked)
    assert calls == ["forget"]
    npo(asked), npo(asked), grad_diff(asked)
    assert calls == ["forget", "retain"]


def test_losses_are_read_in_fp32_whatever_the_model_computes_in() -> None:
    half = given(F.batch, F.logits.detach().bfloat16(), F.reference)
    exact = given(F.batch, half.logits.float(), F.reference)
    for loss in (ga, partial(npo, alpha=0.0)):
        assert torch.equal(loss(outputs(half)), loss(outputs(exact)))
