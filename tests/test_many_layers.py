"""memit() and alpha_edit(): the normal equations by a plain solver, what retain text keeps, each layer's share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from beds import bed
from families import build
from torch import Tensor

from neuronforget import erase
from neuronforget.corpora import Batch, Corpus, Example, batches, encode
from neuronforget.edits import Edit
from neuronforget.erase.least_change import null_change
from neuronforget.errors import InputError
from neuronforget.evaluation import evaluate
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.taps import TorchHooks


@pytest.fixture
def facts(corpus: Corpus) -> Corpus:
    first, second, third = corpus.examples[:3]
    return Corpus((Example(first.prompt, first.answer, subject="Anna Berg"), second, third), "facts")


@pytest.fixture
def retain(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[3:], "retain")


def deep(tokenizer: Any, family: str = "llama", layers: int = 4) -> LM:
    depth = {"n_layer": layers} if family == "gpt2" else {"num_hidden_layers": layers}
    return LM(build(family, vocab_size=len(tokenizer), **depth), tokenizer)


def work(lm: LM, corpus: Corpus) -> Batch:
    (batch,) = batches(encode(corpus, lm.tokenizer), 64, lm.pad_id)
    return batch


def keys(lm: LM, corpus: Corpus, layer: int) -> Tensor:
    """Activations at each fact's key, [fact, neuron], by an independent hook."""
    batch = work(lm, corpus)
    with torch.no_grad():
        acts = TorchHooks(lm)(batch.inputs).acts[layer]
    return acts[torch.arange(len(acts)), batch.subject_end].double()


def hidden(lm: LM, corpus: Corpus, layer: int) -> Tensor:
    """The hidden state after a block where each fact's subject ends, from transformers' own output."""
    batch = work(lm, corpus)
    with torch.no_grad():
        out = lm.model(**batch.inputs, output_hidden_states=True).hidden_states[layer + 1]
    return out[torch.arange(len(out)), batch.subject_end].double()


def text(lm: LM, corpus: Corpus, layer: int) -> Tensor:
    """All activations on the corpus' tokens, [token, neuron]."""
    found = []
    for row in encode(corpus, lm.tokenizer):
        (batch,) = batches([row], 1, lm.pad_id)
        with torch.no_grad():
            found.append(TorchHooks(lm)(batch.inputs).acts[layer][0].double())
    return torch.cat(found)


def delta(lm: LM, edit: Edit, layer: int) -> Tensor:
    """What the edit adds to one layer's write weights, [neuron of the model, d_model]."""
    site = next(s for s in lm.sites if s.layer == layer)
    out = torch.zeros(lm.shape[1], site.d_model, dtype=torch.float64)
    for change in edit.changes:
        if change.name == site.write.name:
            moved = change.after.double() - change.before.double()  # type: ignore[union-attr]
            out[change.index] = moved.T if change.dim == 1 else moved
    return out


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("restricted", [False, True])
def test_each_layer_solves_memits_normal_equation_for_its_share_of_what_is_missing(
    family: str, restricted: bool, tokenizer: Any, facts: Corpus, retain: Corpus
) -> None:
    """(lambda C_SS + K_S K_S^T) dW = K_S R by numpy's lstsq, with the last layer's R for the target found before it."""
    lm, strength = deep(tokenizer, family), 2.0
    chosen = {layer: torch.arange(0, 40, 2 if restricted else 1) for layer in (0, 1)}
    some = Neurons(frozenset((k, int(j)) for k, index in chosen.items() for j in index), (0, 1, 2, 3), 40)
    where: dict[str, Any] = {"neurons": some} if restricted else {"layers": (0, 1)}
    edit = erase.memit(lm, facts, retain, **where, preserve=strength, steps=3)
    first, second = (Edit(tuple(c for c in edit.changes if f".{layer}." in c.name)) for layer in (0, 1))
    shares = []
    for layer, below in ((0, None), (1, first)):
        moments = text(lm, retain, layer)
        own = chosen[layer]
        c = (moments.T @ moments / len(moments))[own][:, own]
        c = c + 1e-4 * c.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)
        if below is not None:
            below.apply(lm)
        k = keys(lm, facts, layer)[:, own]
        if below is not None:
            below.undo(lm)
        found = delta(lm, edit, layer)
        assert not found[[j for j in range(40) if j not in own.tolist()]].any()
        # From dW back to the R that it solves, and forward again by another solver.
        left = strength * c + k.T @ k
        wanted = np.linalg.lstsq(k.T.numpy(), (left @ found[own]).numpy(), rcond=None)[0]
        again = np.linalg.lstsq(left.numpy(), k.T.numpy() @ wanted, rcond=None)[0]
        np.testing.assert_allclose(found[own].numpy(), again, rtol=1e-3, atol=1e-5)
        shares.append(torch.from_numpy(wanted))
    before = hidden(lm, facts, 1)
    with first.on(lm):
        between = hidden(lm, facts, 1)
    # Half of the way at the first layer, all that is then missing at the second: before + 2 R_0 = between + R_1.
    torch.testing.assert_close(before + 2 * shares[0], between + shares[1], rtol=1e-3, atol=1e-4)
    assert float(shares[0].norm()) > 0.1 and len(second.changes) == 1


def test_the_last_layers_hidden_state_moves_to_what_was_found(tokenizer: Any, facts: Corpus, retain: Corpus) -> None:
    """Without lambda and with one layer the hidden state moves by R, at most `clamp` of its norm."""
    lm = deep(tokenizer, "gpt2")
    one = Corpus(facts.examples[:1], "one")
    edit = erase.memit(lm, one, retain, layers=[1], preserve=0.0, target=" violin", clamp=0.5)
    before = hidden(lm, one, 1)
    with edit.on(lm):
        moved = hidden(lm, one, 1) - before
    assert float((moved - keys(lm, one, 1) @ delta(lm, edit, 1)).norm()) < 1e-4
    assert float(moved.norm()) == pytest.approx(0.5 * float(before.norm()), rel=0.02)


def test_alpha_edit_by_brute_force_in_float64() -> None:
    """`dW^T = R K^T P (P K K^T P + lambda c I)^-1` on the full width, the minimum of AlphaEdit's objective."""
    draw = torch.Generator().manual_seed(0)
    width, out = 12, 5
    text = torch.randn(40, width, generator=draw, dtype=torch.float64) @ torch.diag(
        torch.tensor([3.0] * 7 + [1e-3] * 5, dtype=torch.float64)
    )
    text = text @ torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q
    second = text.T @ text / len(text)
    k, r = (torch.randn(3, n, generator=draw, dtype=torch.float64) for n in (width, out))
    found = null_change(k, r, second, 0.7, cut=1e-4)
    values, vectors = np.linalg.eigh(second.numpy())
    p = vectors[:, :5] @ vectors[:, :5].T
    assert values[:5].sum() < 1e-4 * values.sum() < values[:6].sum()
    kp, scale = k.numpy() @ p, 0.7 * float(second.diagonal().mean())
    expected = np.linalg.solve(kp.T @ kp + scale * np.eye(width), kp.T @ r.numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(p @ found.numpy(), found.numpy(), atol=1e-12)
    free = torch.linalg.lstsq(torch.from_numpy(vectors[:, :5]), found).solution.requires_grad_()
    change = torch.from_numpy(vectors[:, :5]) @ free
    objective = (k @ change - r).square().sum() + scale * change.square().sum()
    assert float(torch.autograd.grad(objective, free)[0].abs().max()) < 1e-9 * float(objective)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("restricted", [False, True])
def test_alpha_edit_leaves_the_outputs_of_retained_keys_as_they_are(
    family: str, restricted: bool, tokenizer: Any, facts: Corpus, corpus: Corpus
) -> None:
    """Fewer retained tokens than neurons: with cut=0 they keep every output up to rounding, and the facts move."""
    lm, retain = deep(tokenizer, family), Corpus(corpus.examples[5:], "retain")
    some = Neurons(frozenset((k, j) for k in (0, 1) for j in range(3, 38)), (0, 1, 2, 3), 40)
    where: dict[str, Any] = {"neurons": some} if restricted else {"layers": (0, 1)}
    edit = erase.alpha_edit(lm, facts, retain, **where, cut=0.0, preserve=0.1, steps=5)
    for layer in (0, 1):
        kept, asked = text(lm, retain, layer), keys(lm, facts, layer)
        change = delta(lm, edit, layer)
        assert float((kept @ change).norm(dim=1).max()) < 1e-5 * float((asked @ change).norm(dim=1).max())
    other = erase.memit(lm, facts, retain, **where, preserve=0.1, steps=5)
    shift = (text(lm, retain, 0) @ delta(lm, other, 0)).norm(dim=1).max()
    assert float(shift) > 1e-4 * float((keys(lm, facts, 0) @ delta(lm, other, 0)).norm(dim=1).max())


def test_facts_go_and_retain_stays_on_a_trained_model() -> None:
    made = bed()
    assert made.truth is not None
    edits = {
        "memit": erase.memit(made.lm, made.forget, made.retain),
        "alpha_edit": erase.alpha_edit(made.lm, made.forget, made.retain, cut=0.05),
        "memit@truth": erase.memit(made.lm, made.forget, made.retain, neurons=made.truth),
    }
    assert edits["memit@truth"].info["layers"] == [0]  # the last layer's outputs there reach no answer
    results = evaluate(made.lm, edits, made.forget, made.retain, strengths=(), damage=None, progress=False)
    for name in edits:
        before, after = (results.value(edit, "forget", "probability") for edit in ("untouched", name))
        assert after < 0.7 * before, name
        kept = [results.value(edit, "retain", "exact_match") for edit in ("untouched", name)]
        assert kept[0] - kept[1] < 0.1, name


def test_bad_input_is_refused_and_the_model_stays(lm: LM, facts: Corpus, retain: Corpus) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    some = Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])
    for operator in (erase.memit, erase.alpha_edit):
        with pytest.raises(InputError, match="not both"):
            operator(lm, facts, retain, neurons=some, layers=[0])
        with pytest.raises(InputError, match=r"no neurons in layer 7"):
            operator(lm, facts, retain, layers=[0, 7])
        with pytest.raises(InputError, match="empty"):
            operator(lm, facts, retain, layers=[])
        with pytest.raises(InputError, match="share"):
            operator(lm, facts, facts)
        with pytest.raises(InputError, match="preserve is lambda"):
            operator(lm, facts, retain, preserve=-1.0)
        with pytest.raises(InputError, match="steps >= 1"):
            operator(lm, facts, retain, steps=0)
        with pytest.raises(InputError, match="reaches an answer"):  # past the subject's end nothing reads layer 1
            operator(lm, Corpus(facts.examples[:1], "one"), retain, layers=[1], steps=1)
    with pytest.raises(InputError, match="cut is a share"):
        erase.alpha_edit(lm, facts, retain, cut=1.0)
    with pytest.raises(InputError, match="no direction of these 1 neurons"):
        erase.alpha_edit(lm, facts, retain, neurons=some, steps=1)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
