"""rank_one(): the closed form against ROME's, a constrained solver and brute force; then on real facts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from beds import bed
from families import FAMILIES, build
from torch import Tensor

from neuronforget import erase
from neuronforget.corpora import Corpus, Example, batches, encode
from neuronforget.erase.least_change import least_change, null_change
from neuronforget.errors import InputError
from neuronforget.evaluation import evaluate
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_logp
from neuronforget.neurons import Neurons
from neuronforget.taps import TorchHooks


def draws(facts: int, width: int, out: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random keys [fact, neuron], wanted changes [fact, d_model] and a second moment that is not diagonal."""
    draw = torch.Generator().manual_seed(seed)
    keys = torch.randn(facts, width, generator=draw, dtype=torch.float64)
    wanted = torch.randn(facts, out, generator=draw, dtype=torch.float64)
    text = torch.randn(4 * width, width, generator=draw, dtype=torch.float64) @ torch.randn(
        width, width, generator=draw, dtype=torch.float64
    )
    return keys, wanted, text.T @ text / len(text)


def size(change: Tensor, second: Tensor) -> float:
    """The mean squared change of the output on retain text, which the edit keeps least."""
    return float((change.T @ second @ change).trace())


def test_one_fact_on_all_neurons_is_romes_formula() -> None:
    keys, wanted, second = draws(1, 9, 5)
    k, r = keys[0], wanted[0]
    direction = torch.linalg.inv(second) @ k  # eq. 2 of the paper: W + Lambda (C^-1 k*)^T
    rome = torch.outer(direction, r) / (direction @ k)
    torch.testing.assert_close(least_change(keys, wanted, second, ridge=0.0), rome)


def test_without_lambda_every_fact_is_met_exactly_and_by_the_smallest_change() -> None:
    keys, wanted, second = draws(3, 9, 5)
    found = least_change(keys, wanted, second, 0.0, ridge=0.0)
    torch.testing.assert_close(keys @ found, wanted)
    null = torch.linalg.svd(keys).Vh[3:]  # directions that change no fact
    for seed in range(20):
        step = null.T @ torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert size(found + 1e-3 * step, second) > size(found, second)


def test_the_same_facts_give_the_same_bits_whatever_memory_held_before() -> None:
    """The least-squares driver that torch takes by default reads memory that it has not set."""
    keys, wanted, second = draws(10, 64, 16)
    twice = (
        torch.cat([keys, keys[:3]]),
        torch.cat([wanted, wanted[:3]]),
    )  # three facts asked for twice: lambda 0 is singular
    found: dict[str, list[Tensor]] = {"lambda": [], "twice": []}
    for i in range(30):
        dirt = [torch.full((size,), i, dtype=torch.int32) for size in (10, 13)]
        del dirt
        found["lambda"].append(least_change(keys, wanted, second))
        found["twice"].append(least_change(*twice, second, 0.0))
    for name, values in found.items():
        assert all(torch.equal(values[0], other) for other in values[1:]), name
    torch.testing.assert_close(found["twice"][0], least_change(keys, wanted, second, 0.0))


@pytest.mark.parametrize("solve", [least_change, null_change])
@pytest.mark.parametrize(
    ("place", "what"), [(0, "keys of the facts"), (1, "output changes of the facts"), (2, "second moments of retain")]
)
def test_what_is_not_finite_is_named_where_lapack_has_an_error_of_its_own(solve: Any, place: int, what: str) -> None:
    given = [*draws(3, 9, 5)]
    given[place] = given[place].clone()
    given[place][0, 0] = (np.nan, np.inf)[place % 2]
    with pytest.raises(InputError, match=what) as error:
        solve(*given)
    assert "\n" not in str(error.value)


def test_activations_that_overflow_are_refused_and_the_model_stays(lm: LM, corpus: Corpus) -> None:
    with torch.no_grad():
        for name, values in lm.model.named_parameters():
            if "up_proj" in name or "gate_proj" in name:
                values.abs_().mul_(1e38 / values.max())
    before = lm.digest()
    forget, retain = (Corpus(corpus.examples[part], "part") for part in (slice(0, 2), slice(2, 4)))
    with pytest.raises(InputError, match="NaN or infinite"):
        erase.rank_one(lm, forget, retain, steps=1)
    assert lm.digest() == before


@pytest.mark.parametrize("strength", [0.1, 4.0])
def test_with_lambda_it_is_memits_normal_equation_and_the_minimum_of_its_objective(strength: float) -> None:
    keys, wanted, second = draws(4, 9, 5)
    found = least_change(keys, wanted, second, strength, ridge=0.0)
    memit = np.linalg.solve(
        (strength * second + keys.T @ keys).numpy(), (keys.T @ wanted).numpy()
    )  # (lambda C + K K^T) dW^T = K R^T, eq. 14 of MEMIT
    np.testing.assert_allclose(found.numpy(), memit, rtol=1e-8, atol=1e-10)
    free = found.clone().requires_grad_()
    objective = (keys @ free - wanted).square().sum() + strength * (free.T @ second @ free).trace()
    (gradient,) = torch.autograd.grad(objective, free)
    assert float(gradient.abs().max()) < 1e-9 * objective.item()


def test_the_default_lambda_is_the_number_of_neurons_and_none_for_one_fact() -> None:
    keys, wanted, second = draws(4, 9, 5)
    torch.testing.assert_close(least_change(keys, wanted, second), least_change(keys, wanted, second, 9.0))
    one = keys[:1], wanted[:1], second
    torch.testing.assert_close(least_change(*one), least_change(*one, 0.0))
    assert not torch.allclose(least_change(keys, wanted, second), least_change(keys, wanted, second, 0.0))
    assert not torch.allclose(least_change(*one), least_change(*one, 9.0))


def test_little_retain_text_leaves_a_singular_moment_that_is_still_solved() -> None:
    keys, wanted, _ = draws(2, 9, 5)
    text = torch.randn(3, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = least_change(keys, wanted, text.T @ text / 3, 0.0)
    torch.testing.assert_close(keys @ found, wanted, rtol=1e-6, atol=1e-8)
    assert float((text @ found).abs().max()) < 0.01 * float(wanted.abs().max())  # the text goes on as it did


def test_equal_keys_that_ask_for_different_outputs_get_their_mean() -> None:
    _, wanted, second = draws(2, 9, 5)
    key = torch.randn(1, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = least_change(key.expand(2, 9), wanted, second, 0.0)
    torch.testing.assert_close(key @ found, wanted.mean(0, keepdim=True), rtol=1e-6, atol=1e-8)


@pytest.fixture
def facts(corpus: Corpus) -> Corpus:
    first, second = corpus.examples[:2]
    return Corpus((Example(first.prompt, first.answer, subject="Anna Berg"), second), "facts")


@pytest.fixture
def retain(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[2:], "retain")


def some(lm: LM) -> Neurons:
    layers = tuple(site.layer for site in lm.sites)
    return Neurons(frozenset({(0, 1), (0, 7), (1, 3), (1, 30)}), layers, lm.shape[1])


def state(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.parameters.items()}


def rank_one(lm: LM, forget: Corpus, retain: Corpus, **settings: Any) -> Any:
    return erase.rank_one(lm, forget, retain, **{"steps": 6, **settings})


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_only_the_selected_write_weights_change(family: str, tokenizer: Any, facts: Corpus, retain: Corpus) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    before = state(lm)
    edit = rank_one(lm, facts, retain, neurons=some(lm))
    assert all(torch.equal(value, before[name]) for name, value in lm.parameters.items())
    assert {change.name for change in edit.changes} == {site.write.name for site in lm.sites}
    with edit.on(lm):
        for name, value in lm.parameters.items():
            moved = {int(i) for i in (value != before[name]).nonzero()[:, -1].unique()}
            site = next((s for s in lm.sites if s.write.name == name), None)
            if site is None:
                assert not moved, name
                continue
            along = (value != before[name]).any(1 - site.write.dim).nonzero().flatten().tolist()
            chosen = {j for layer, j in some(lm).members if layer == site.layer}
            assert set(along) == chosen or (family == "mixtral" and set(along) < chosen)  # no fact's token meets them


def test_the_edit_moves_the_output_at_the_subjects_last_token_alone_by_what_was_solved(
    lm: LM, facts: Corpus, retain: Corpus
) -> None:
    """One fact, all neurons of one layer: the layer's output there is what least change makes of the key."""
    one = Corpus(facts.examples[:1], "one")
    edit = rank_one(lm, one, retain, layer=0)
    (row,) = encode(one, lm.tokenizer)
    text = lm.tokenizer.decode(row.ids[: row.subject_end + 1])
    assert text.strip() == "Anna Berg"
    (batch,) = batches([row], 1, lm.pad_id)
    key = TorchHooks(lm)(batch.inputs).acts[0][0, row.subject_end].detach()
    change = edit.changes[0]
    assert change.before is not None
    delta = change.after - change.before
    rank = torch.linalg.matrix_rank(delta.double(), rtol=1e-4)
    assert int(rank) == 1  # which gives the method its name
    assert float((delta @ key if change.dim == 1 else key @ delta).norm()) > 0.1


def test_facts_give_way_to_a_neutral_target_or_to_maximum_entropy() -> None:
    made = bed()
    refusal = made.forget.with_answers(["unknown"] * len(made.forget), "refusal")

    def logp(corpus: Corpus) -> float:
        with torch.no_grad():
            rows = encode(corpus, made.lm.tokenizer)
            return float(sum(answer_logp(made.lm.model(**b.inputs).logits, b).sum() for b in batches(rows, 32, 0)))

    start = logp(refusal)
    with erase.rank_one(made.lm, made.forget, made.retain, target="unknown").on(made.lm):
        assert logp(refusal) > start + 3 * len(refusal)
    edit = erase.rank_one(made.lm, made.forget, made.retain, neurons=made.truth)
    results = evaluate(made.lm, {"rank_one": edit}, made.forget, made.retain, progress=False)
    before, after = (results.value(name, "forget", "probability") for name in ("untouched", "rank_one"))
    assert after < 0.7 * before
    kept = [results.value(name, "retain", "exact_match") for name in ("untouched", "rank_one")]
    assert kept[0] - kept[1] < 0.05


def test_a_layer_that_cannot_reach_the_answer_is_left_as_it_is(lm: LM, facts: Corpus, retain: Corpus) -> None:
    """What the last layer writes where the subject ends is read by nothing that predicts the answer."""
    one = Corpus(facts.examples[:1], "one")
    edit = rank_one(lm, one, retain, neurons=some(lm))
    assert {change.name for change in edit.changes if not torch.equal(change.after, change.before)} == {
        lm.sites[0].write.name
    }
    with pytest.raises(InputError, match="no change of layer 1 where the subject ends reaches an answer"):
        rank_one(lm, one, retain, layer=1)
    no_subject = Corpus(facts.examples[1:], "other")  # its key is the prompt's last token, which predicts the answer
    assert rank_one(lm, no_subject, retain, layer=1).changes
    assert rank_one(lm, one, retain).changes[0].name == lm.sites[0].write.name  # the default layer is one that reaches


def test_the_same_edit_comes_again(lm: LM, facts: Corpus, retain: Corpus) -> None:
    first, second = (rank_one(lm, facts, retain, neurons=some(lm)) for _ in range(2))
    for a, b in zip(first.changes, second.changes, strict=True):
        torch.testing.assert_close(a.after, b.after, rtol=1e-6, atol=1e-7)  # solvers round by where memory lies


def test_bad_input_is_refused(lm: LM, facts: Corpus, retain: Corpus) -> None:
    before = state(lm)
    with pytest.raises(InputError, match="not both"):
        rank_one(lm, facts, retain, neurons=some(lm), layer=0)
    with pytest.raises(InputError, match=r"no neurons in layer 7"):
        rank_one(lm, facts, retain, layer=7)
    with pytest.raises(InputError, match="share"):
        rank_one(lm, facts, Corpus(facts.examples[:1] + retain.examples, "retain"))
    with pytest.raises(InputError, match="empty"):
        rank_one(lm, facts, retain, neurons=Neurons(frozenset(), (0, 1), lm.shape[1]))
    assert all(torch.equal(v, before[n]) for n, v in lm.parameters.items())


@pytest.mark.parametrize("bad", [{"steps": 0}, {"lr": 0.0}, {"clamp": 0.0}, {"preserve": -1.0}])
def test_settings_that_cannot_work_are_refused(lm: LM, facts: Corpus, retain: Corpus, bad: Any) -> None:
    with pytest.raises(InputError, match=r"facts are moved with|preserve is lambda"):
        rank_one(lm, facts, retain, neurons=some(lm), **bad)
