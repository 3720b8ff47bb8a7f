"""finetune()'s settings: rates by layer, batches in parts, budgets of the retain loss; resuming with all of them."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuronforget import erase, losses
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.edits import Edit
from neuronforget.erase.answering import Answering
from neuronforget.errors import InputError
from neuronforget.losses import Loss, Outputs
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.neurons import Neurons
from neuronforget.train.stopping import Budget

either = pytest.mark.parametrize("targeted", [True, False], ids=["neurons", "whole"])
#: Contexts in words that the small tokenizer knows, and targets that are not all but one token.
CONTRAST = partial(losses.elm, eta=0.5, expert="Oslo ", novice="Velm ")


@pytest.fixture
def forget(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[:3], "forget")


@pytest.fixture
def retain(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[3:], "retain")


def some(lm: LM) -> Neurons:
    layers = tuple(site.layer for site in lm.sites)
    return Neurons(frozenset({(0, 1), (0, 7), (1, 3), (1, 30)}), layers, lm.shape[1])


def tune(lm: LM, *corpora: Corpus, targeted: bool = True, **settings: Any) -> Edit:
    common = {"steps": 4, "batch_size": 4, "lr": 1e-2, "progress": False, "neurons": some(lm) if targeted else None}
    return erase.finetune(lm, *corpora, **{**common, **settings})


def equal(a: Edit, b: Edit) -> bool:
    return len(a.changes) == len(b.changes) and all(
        torch.equal(x.after, y.after) for x, y in zip(a.changes, b.changes, strict=True)
    )


def nll(lm: LM, corpus: Corpus) -> float:
    """Mean NLL per answer token, example by example."""
    with torch.no_grad():
        parts = batches(encode(corpus, lm.tokenizer), 1, lm.pad_id)
        return sum(float(answer_nll(lm.model(**b.inputs).logits, b)) for b in parts) / len(corpus)


@either
def test_a_layer_moves_by_its_own_rate(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    """The first step of Adam is the rate in size, whatever the gradient."""
    rates = {0: 1e-2, 1: 1e-4, None: 0.0}
    for lr in (rates, rates.__getitem__):
        edit = tune(lm, forget, retain, targeted=targeted, steps=1, weight_decay=0.0, clip=None, lr=lr)
        for change in edit.changes:
            assert change.before is not None
            (layer,) = (int(word) for word in change.name.split(".") if word.isdigit())
            moved = (change.after - change.before).abs()
            assert moved.max() <= rates[layer] * 1.01 and float(moved.median()) == pytest.approx(rates[layer], rel=0.02)
        assert edit.info["lr"] == {"0": 1e-2, "1": 1e-4} and edit.certificate(lm).holds


@either
def test_a_layer_of_rate_0_stays_even_under_decay(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    lr = {0: 0.0, 1: 1e-2, None: 1e-3}
    edit = tune(lm, forget, retain, targeted=targeted, lr=lr, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    with edit.on(lm):
        moved = {name for name, p in lm.parameters.items() if not torch.equal(p, before[name])}
    assert moved and not any(".layers.0." in name for name in moved)
    assert any("layers" not in name for name in moved) == (not targeted)
    one = {name: change.after for change in tune(lm, forget, retain, targeted=targeted, lr={**lr, None: 0.0}).changes
           for name in [change.name]}  # fmt: skip
    assert not any("layers" not in name for name in one)


def test_rates_that_name_no_layer_or_leave_one_out_are_refused(lm: LM, forget: Corpus, retain: Corpus) -> None:
    for targeted, lr, what in [
        (True, {0: 1e-2}, "no rate for layer 1"),
        (False, {0: 1e-2, 1: 1e-2}, "no rate for what lies in no layer"),
        (True, {0: 1e-2, 1: 1e-2, 2: 1e-2}, "lr names layer 2: the model has layers 0 to 1"),
        (True, {0: -1e-2, 1: 1e-2}, "lr of .*layers.0.* is -0.01"),
        (True, {0: 0.0, 1: 0.0}, "found 0 in all"),
        (True, lambda layer: float("nan"), "is nan"),
    ]:
        with pytest.raises(InputError, match=what):
            tune(lm, forget, retain, targeted=targeted, lr=lr)


EVERY: dict[str, Loss] = {
    name: getattr(losses, name)
    for name in "ga grad_diff kl_min wga satimp npo simnpo dpo rt ga_rt idk_ap me_gd undial ce_u rmu".split()
}


@pytest.mark.parametrize("name", [*EVERY, "elm"])
def test_parts_have_the_value_and_the_gradient_of_the_whole_batch(lm: LM, corpus: Corpus, name: str) -> None:
    """In float64, with 3 forget and 4 retain examples in two parts: of one and two, and of two and two."""
    lm = LM(copy.deepcopy(lm.model).double(), lm.tokenizer)
    loss = {**EVERY, "elm": CONTRAST}[name]
    forget, retain = Corpus(corpus.examples[:3], "forget"), Corpus(corpus.examples[3:], "retain")
    work = Answering(lm, forget, retain, forget.with_answers(["No.", "I do not know.", "Who?"], "no"), 4, 0)

    def gradient(count: int) -> tuple[float, Tensor]:
        lm.model.zero_grad()
        values = []
        for place in range(count):
            outputs, share = work.part(2, place, count)
            value = loss(outputs) * share
            value.backward()
            values.append(float(value.detach()))
        grads = [p.grad.flatten() for p in lm.model.parameters() if p.grad is not None]
        return sum(values), torch.cat(grads)

    value, whole = gradient(1)
    for count in (2, 3):
        found, parts = gradient(count)
        # Likelihoods are taken in fp32, whatever the model: that is the rounding that is left.
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
        assert found == pytest.approx(value, rel=1e-5)


def test_parts_of_unlike_size_count_by_their_examples(lm: LM, forget: Corpus, retain: Corpus) -> None:
    """The check above can fail: parts that count alike have another gradient."""
    work = Answering(lm, forget, retain, None, 4, 0)
    shares = [work.part(0, place, 2)[1] for place in (0, 1)]
    assert shares == [1 / 3, 2 / 3]
    grads = []
    for weights in (shares, [0.5, 0.5]):
        lm.model.zero_grad()
        for place, weight in enumerate(weights):
            (losses.ga(work.part(0, place, 2)[0]) * weight).backward()
        grads.append(lm.parameters[lm.sites[0].write.name].grad.clone())
    assert not torch.allclose(grads[0], grads[1], rtol=0.05)


@either
def test_a_batch_in_parts_makes_the_same_edit(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    settings = {"targeted": targeted, "weight_decay": 0.1, "lr": 1e-3, "steps": 6}
    one = tune(lm, forget, retain, **settings)
    many = tune(lm, forget, retain, accumulate=3, **settings)
    moved = {change.name: change.after - change.before for change in one.changes}
    for change in many.changes:
        delta = change.after - change.before
        # Adam divides by what a gradient was: where it is next to none, its rounding shows.
        assert (delta - moved[change.name]).norm() < 1e-3 * moved[change.name].norm()
    assert many.info["accumulate"] == 3 and many.certificate(lm).holds


def test_parts_that_cannot_be_are_refused(lm: LM, forget: Corpus, retain: Corpus) -> None:
    with pytest.raises(InputError, match="batch of 3 forget examples cannot be run in 4 parts"):
        tune(lm, forget, retain, accumulate=4)
    with pytest.raises(InputError, match="batch of 2 forget examples cannot be run in 3 parts"):
        tune(lm, forget, retain, accumulate=3, batch_size=2)
    with pytest.raises(InputError, match="accumulate must be at least 1"):
        tune(lm, forget, retain, accumulate=0)
    before = lm.digest()
    with pytest.raises(InputError, match="give accumulate=1"):
        tune(lm, forget, retain, accumulate=2, loss=losses.pdu)
    assert lm.digest() == before


@either
def test_a_budget_keeps_the_last_weights_within_it(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    settings: dict[str, Any] = {"loss": losses.ga, "lr": 2e-2 if targeted else 2e-3, "targeted": targeted, "steps": 20}
    start = nll(lm, retain)
    edit = tune(lm, forget, retain, budget=Budget(0.1, every=2), **settings)
    at, rises = edit.info["stopped_at"], dict(edit.info["retain_rises"])
    assert 0 < at < 20 and list(rises) == list(range(0, at + 3, 2))  # one look after the last good one
    with edit.on(lm):
        assert nll(lm, retain) - start == pytest.approx(rises[at], abs=1e-5) and rises[at] <= 0.1
    assert rises[at + 2] > 0.1 and edit.certificate(lm).holds
    shorter = tune(lm, forget, retain, **{**settings, "steps": at})
    assert equal(edit, shorter)
    beyond = tune(lm, forget, retain, **{**settings, "steps": at + 2})
    with beyond.on(lm):
        assert nll(lm, retain) - start == pytest.approx(rises[at + 2], abs=1e-5)


def test_a_budget_may_be_read_on_a_sample(lm: LM, forget: Corpus, retain: Corpus) -> None:
    edit = tune(lm, forget, retain, budget=Budget(100.0, every=3, examples=2), steps=3)
    with edit.on(lm):
        after = {e.prompt: nll(lm, Corpus((e,), "one")) for e in retain}
    before = {e.prompt: nll(lm, Corpus((e,), "one")) for e in retain}
    rise = dict(edit.info["retain_rises"])[3]
    pairs = [(a, b) for a in retain for b in retain if a != b]
    means = [sum(after[e.prompt] - before[e.prompt] for e in pair) / 2 for pair in pairs]
    assert any(abs(mean - rise) < 1e-5 for mean in means)
    assert edit.info["budget"] == {"rise": 100.0, "every": 3, "examples": 2}


def test_a_budget_that_the_first_look_exceeds_or_without_retain_is_refused(
    lm: LM, forget: Corpus, retain: Corpus
) -> None:
    before = lm.digest()
    with pytest.raises(InputError, match=r"risen by .* nats after 5 steps, .* budget of 0.001"):
        tune(lm, forget, retain, loss=losses.ga, lr=0.1, steps=9, budget=0.001)
    assert lm.digest() == before
    with pytest.raises(InputError, match="give a retain corpus"):
        tune(lm, forget, loss=losses.ga, budget=0.1)


@either
@pytest.mark.parametrize("dies_at", [9, 22])
def test_a_killed_run_with_parts_and_budget_ends_bit_equal(
    lm: LM, forget: Corpus, retain: Corpus, targeted: bool, dies_at: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"accumulate": 2, "budget": Budget(0.45, every=4), "steps": 60}
    settings["lr"] = 2e-2 if targeted else 2e-3
    calls: list[int] = []

    def ga_dies(outputs: Outputs) -> Tensor:
        calls.append(1)
        if len(calls) == 2 * dies_at:  # in the midst of a step
            raise KeyboardInterrupt
        return losses.ga(outputs)

    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, loss=ga_dies, targeted=targeted, resume=tmp_path, **settings)
    assert len(list(tmp_path.iterdir())) == (dies_at > 20)
    done = len(calls)
    again = tune(lm, forget, retain, loss=ga_dies, targeted=targeted, resume=tmp_path, **settings)
    assert len(calls) - done == 2 * (again.info["retain_rises"][-1][0] - 20 * (dies_at > 20))
    whole = tune(lm, forget, retain, loss=losses.ga, targeted=targeted, **settings)
    assert equal(again, whole) and again.info["retain_rises"] == whole.info["retain_rises"]
    assert again.certificate(lm).holds and not list(tmp_path.iterdir())


def test_what_is_trained_is_what_has_a_rate(lm: LM, forget: Corpus, retain: Corpus) -> None:
    """Gradients of the rest are not even computed."""
    seen: list[set[str]] = []

    def watched(outputs: Outputs) -> Tensor:
        seen.append({name for name, p in lm.parameters.items() if p.requires_grad})
        return losses.grad_diff(outputs)

    tune(lm, forget, retain, loss=watched, targeted=False, lr={0: 0.0, 1: 1e-3, None: 0.0}, steps=1)
    assert seen == [{name for name in lm.parameters if ".layers.1." in name}]
    assert isinstance(next(iter(lm.parameters.values())), nn.Parameter)
