"""revs() and concept_vector(): what the edited weights say in the vocabulary, read back from the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

from neuronforget import erase
from neuronforget.corpora import Corpus
from neuronforget.edits.changes import Change
from neuronforget.erase.words import token_ids
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")


def some(lm: LM) -> Neurons:
    return Neurons(frozenset((layer, j) for layer in (0, 1) for j in (1, 7, 3, 30)), (0, 1), lm.shape[1])


def said(lm: LM) -> dict[tuple[int, int], Tensor]:
    """Each chosen neuron's logits over the vocabulary, one by one, from the model's weights as they are."""
    head = lm.model.get_output_embeddings().weight.detach().double()
    found = {}
    for layer, j in some(lm):
        site = lm.sites[layer]
        found[layer, j] = head @ lm.parameters[site.write.name].detach().select(site.write.dim, j).double()
    return found


def rank(logits: Tensor, token: int) -> int:
    """How many tokens stand above it, by sorting."""
    order = logits.argsort(descending=True).tolist()
    return sum(1 for other in order if float(logits[other]) > float(logits[token]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_token_really_stands_at_the_asked_rank_or_below(family: str, dtype: torch.dtype, tokenizer: Any) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)).to(dtype), tokenizer)
    before, tokens = said(lm), [40, 87, 120]
    assert any(rank(logits, t) < 150 for logits in before.values() for t in tokens)
    edit = erase.revs(lm, some(lm), tokens, rank=150)
    with edit.on(lm):
        after = said(lm)
    assert all(rank(logits, token) >= 150 for logits in after.values() for token in tokens)
    assert edit.info["units"] == "live"


def test_a_neuron_that_has_them_there_already_is_left_alone(lm: LM) -> None:
    before = said(lm)
    (_, easy) = min((rank(logits, 40), neuron) for neuron, logits in before.items())
    low = max((rank(logits, 40), neuron) for neuron, logits in before.items())
    edit = erase.revs(lm, some(lm), [40], rank=low[0])
    with edit.on(lm):
        after = said(lm)
    assert torch.equal(after[low[1]], before[low[1]]) and not torch.equal(after[easy], before[easy])
    assert rank(after[easy], 40) >= low[0]


def test_one_tokens_change_is_the_pseudo_inverses_and_the_least(tokenizer: Any) -> None:
    """On centred logits `w' = w - c U^+ e_t`: of all changes that lower the token as far, it moves the logits least."""
    lm = LM(build("llama", vocab_size=len(tokenizer)), tokenizer)
    one = Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])
    head = lm.model.get_output_embeddings().weight.detach().double()
    centred = head - head.mean(0)
    token = int((head @ lm.parameters[lm.sites[0].write.name].detach()[:, 1].double()).argmax())
    (change,) = erase.revs(lm, one, [token], rank=100).changes
    assert change.before is not None
    moved = (change.after - change.before)[:, 0].double()
    inverse = torch.linalg.pinv(centred)[:, token]
    torch.testing.assert_close(moved / moved.norm(), -inverse / inverse.norm(), rtol=1e-4, atol=1e-5)
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(len(moved), generator=draw, dtype=torch.float64)
        other = moved + 0.1 * (other - centred[token] * (other @ centred[token]) / centred[token].square().sum())
        assert float(other @ centred[token]) == pytest.approx(float(moved @ centred[token]))
        assert (centred @ other).norm() > (centred @ moved).norm()


def test_a_zero_neuron_says_nothing_and_stays(lm: LM) -> None:
    dead = Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])
    erase.ablate(lm, dead).apply(lm)
    edit = erase.revs(lm, some(lm), [40], rank=150)
    with edit.on(lm):
        assert not said(lm)[0, 1].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_concept_projected_out_gives_its_tokens_the_mean_logit(family: str, tokenizer: Any) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    tokens, before = [40, 87, 120], said(lm)
    edit = erase.concept_vector(lm, some(lm), tokens)
    with edit.on(lm):
        after = said(lm)
    for neuron, logits in after.items():
        torch.testing.assert_close(logits[tokens], logits.mean().expand(3), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before[neuron][tokens], before[neuron].mean().expand(3), atol=1e-2)


def test_it_is_the_least_change_that_does_so(lm: LM) -> None:
    """Plain projection by numpy's way: w less its least-squares fit in the tokens' centred rows."""
    head = lm.model.get_output_embeddings().weight.detach().double()
    rows = (head - head.mean(0))[[40, 87]].T
    edit = erase.concept_vector(lm, some(lm), [40, 87])
    for change in edit.changes:
        before = change.before.double()  # type: ignore[union-attr]
        expected = before - rows @ torch.linalg.lstsq(rows, before).solution
        torch.testing.assert_close(change.after.double(), expected, rtol=1e-4, atol=1e-5)


def test_noise_stays_in_the_span_of_the_tokens_and_has_its_spread(tokenizer: Any) -> None:
    lm = LM(build("llama", vocab_size=len(tokenizer)), tokenizer)
    many = Neurons(frozenset((layer, j) for layer in (0, 1) for j in range(40)), (0, 1), 40)
    edit = erase.concept_vector(lm, many, [40, 87, 120], mode="noise", sigma=0.5, seed=3)
    head = lm.model.get_output_embeddings().weight.detach().double()
    axes = torch.linalg.qr((head - head.mean(0))[[40, 87, 120]].T).Q

    def moved(change: Change) -> Tensor:
        return change.after.double() - change.before.double()  # type: ignore[union-attr]

    all_of_it = torch.cat([moved(c) for c in edit.changes], 1)
    along = axes.T @ all_of_it
    torch.testing.assert_close(axes @ along, all_of_it, rtol=1e-3, atol=1e-5)
    assert float(along.std()) == pytest.approx(0.5, rel=4 / (2 * along.numel()) ** 0.5)
    again = erase.concept_vector(lm, many, [40, 87, 120], mode="noise", sigma=0.5, seed=3)
    assert all(torch.equal(a.after, b.after) for a, b in zip(edit.changes, again.changes, strict=True))


def test_tokens_are_ids_texts_or_the_answers_of_a_corpus(lm: LM, corpus: Corpus) -> None:
    assert token_ids(lm, [7, 3, 7]) == [3, 7]
    oslo = lm.tokenizer(" Oslo", add_special_tokens=False).input_ids
    assert (
        token_ids(lm, " Oslo")
        == token_ids(lm, [" Oslo"])
        == sorted(set(oslo))
        == token_ids(lm, Corpus(corpus.examples[:1], "one"))
    )


def test_the_most_promoted_tokens_are_kept(lm: LM) -> None:
    tokens = list(range(20, 60))
    mean = {t: sum(rank(logits, t) for logits in said(lm).values()) / len(some(lm)) for t in tokens}
    kept = sorted(tokens, key=lambda t: mean[t])[:3]
    few = erase.concept_vector(lm, some(lm), tokens, most=3)
    given = erase.concept_vector(lm, some(lm), kept)
    assert all(torch.equal(a.after, b.after) for a, b in zip(few.changes, given.changes, strict=True))


def test_bad_input_is_refused(lm: LM, corpus: Corpus) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    size = lm.model.get_output_embeddings().weight.shape[0]
    for wrong in ([], [size], [-1]):
        for operator in (erase.revs, erase.concept_vector):
            with pytest.raises(InputError, match="tokens must be ids below"):
                operator(lm, some(lm), wrong)
    for wrong_rank in (0, size):
        with pytest.raises(InputError, match="rank is how many tokens"):
            erase.revs(lm, some(lm), [4], rank=wrong_rank)
    with pytest.raises(InputError, match="span all 16 directions"):
        erase.concept_vector(lm, some(lm), list(range(20)))
    with pytest.raises(InputError, match="cannot be lowered one by one in 16 directions"):
        erase.revs(lm, some(lm), list(range(20)))
    with pytest.raises(InputError, match="most is the number"):
        erase.revs(lm, some(lm), [4], most=0)
    with pytest.raises(InputError, match="revs cannot bring tokens"):
        erase.revs(lm, some(lm), list(range(15)), rank=size - 15)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
