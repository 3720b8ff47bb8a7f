"""Learned gates: their arithmetic, their gradients, and what they find on a testbed whose neurons are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from beds import bed

import neuronforget as nf
from neuronforget import scores, select
from neuronforget.corpora import Corpus, encode
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.scores import learned
from neuronforget.scores.learned import hard_concrete_gate, hard_concrete_open
from neuronforget.train import Plan


@pytest.fixture
def pair(corpus: Corpus) -> tuple[Corpus, Corpus]:
    return replace(corpus, examples=corpus.examples[:4]), replace(corpus, examples=corpus.examples[4:])


def test_a_gate_is_a_stretched_sigmoid_cut_at_0_and_1() -> None:
    x = torch.tensor([[0.0, 1.0, -9.0, 9.0]], dtype=torch.float64)
    u = torch.tensor([[0.5, 0.25, 0.5, 0.5]], dtype=torch.float64)
    by_hand = 1.2 / (1 + math.exp(-(math.log(0.25 / 0.75) + 1) / (2 / 3))) - 0.1
    torch.testing.assert_close(hard_concrete_gate(x, u), torch.tensor([[0.5, by_hand, 0.0, 1.0]], dtype=torch.float64))


def test_the_penalty_is_the_share_of_draws_whose_gate_is_open() -> None:
    x = torch.tensor([[-3.0, -1.0, 0.0, 0.7, 2.0]], dtype=torch.float64)
    u = torch.rand((200_000, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    share = (hard_concrete_gate(x.expand_as(u), u) > 0).double().mean(0)
    torch.testing.assert_close(hard_concrete_open(x)[0], share, atol=4e-3, rtol=0)


@pytest.mark.parametrize("objective", ["erase", "keep"])
def test_the_gradient_of_the_gates_is_that_of_finite_differences(lm: LM, pair: Any, objective: Any) -> None:
    lm.model.double()
    work = learned._Gating(lm, objective, 0.5, 2.0, Plan(seed=0), 4, False)
    rows = [encode(c, lm.tokenizer) for c in pair][: 2 if objective == "erase" else 1]
    u = torch.rand(lm.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6 + 0.2
    loss = work.loss(lambda x, _step: (hard_concrete_gate(x, u), hard_concrete_open(x)), rows)
    x = torch.zeros(lm.shape, dtype=torch.float64, requires_grad=True)
    with frozen(lm):
        (slope,) = torch.autograd.grad(loss(x, 0), x)
        direction, eps = torch.randn(lm.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 1e-2
        with torch.no_grad():
            ahead, behind = (float(loss(x + sign * eps * direction, 0)) for sign in (1, -1))
    # log-likelihoods and the model's norms run in fp32, which bounds the agreement
    assert float((slope * direction).sum()) == pytest.approx((ahead - behind) / (2 * eps), rel=2e-3)


def test_an_erasing_gate_is_pushed_no_further_than_a_guess(lm: LM, pair: Any) -> None:
    work = learned._Gating(lm, "erase", 0.0, 0.0, Plan(seed=0), 4, False)
    rows = [encode(pair[0], lm.tokenizer)]
    guess = math.log(lm.model.get_output_embeddings().weight.shape[0])
    x = torch.ones(lm.shape, requires_grad=True)
    nll = work.nll(x, rows[0], 0, 0)
    value = work.loss(lambda x, _step: (x, x), rows)(x, 0)
    assert nll.max() > guess  # a random model is worse than a guess somewhere, so that the bound is met
    assert float(value.detach()) == pytest.approx(-float(nll.detach().clamp(max=guess).mean()), rel=1e-5)


@pytest.mark.parametrize("score", [scores.hard_concrete, scores.slimming])
def test_learning_gates_is_deterministic_and_leaves_the_model_as_it_was(lm: LM, pair: Any, score: Any) -> None:
    lm.model.train()
    before = {name: (p.detach().clone(), p.requires_grad, p.grad) for name, p in lm.parameters.items()}
    one, two, other = (
        nf.attribute(lm, *pair, score=score, steps=4, seed=seed, batch_size=2, progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(one.values, two.values) and not torch.equal(one.values, other.values)
    assert one.info["objective"] == "erase" and one.info["retain"]["data"] == pair[1].digest()
    assert lm.model.training
    for name, (value, flag, grad) in before.items():
        p = lm.parameters[name]
        assert torch.equal(p, value) and p.requires_grad == flag and p.grad is grad


def test_slimming_stays_between_0_and_1_and_keeping_subtracts_what_retain_needs(lm: LM, pair: Any) -> None:
    settings: dict[str, Any] = {"objective": "keep", "steps": 5, "lr": 0.5, "progress": False}
    alone = [scores.slimming(lm, c, **settings).values for c in pair]
    assert all(float(v.min()) >= 0 and float(v.max()) <= 1 and v.std() > 0 for v in alone)
    torch.testing.assert_close(scores.slimming(lm, *pair, **settings).values, alone[0] - alone[1])


@pytest.mark.parametrize(
    ("score", "objective", "least"),
    [
        ("hard_concrete", "erase", 0.6),
        pytest.param("slimming", "erase", 0.5, marks=pytest.mark.slow),
        pytest.param("hard_concrete", "keep", 0.3, marks=pytest.mark.slow),
    ],
)
def test_learned_gates_find_the_grafted_neurons(score: str, objective: Any, least: float) -> None:
    """Chance is 0.09; these bounds lie well under what was seen on several seeds."""
    made = bed()
    assert made.truth is not None
    found = nf.attribute(
        made.lm, made.forget, made.retain, score=getattr(scores, score), objective=objective, progress=False
    )
    assert select.per_layer(found, 12).recall(made.truth) > least


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_learned_is_refused_before_training(lm: LM, pair: Any) -> None:
    for settings, message in (
        ({"objective": "destroy"}, "'erase' or 'keep'"),
        ({"sparsity": -1.0}, "weights of 0 or more"),
        ({"alpha": math.inf}, "weights of 0 or more"),
        ({"steps": 0}, "steps >= 1"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(InputError, match=message):
            scores.hard_concrete(lm, *pair, progress=False, **settings)
