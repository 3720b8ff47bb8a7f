"""leace(): after it no linear reader tells forget from retain; the folded weights do what the eraser does."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from torch import Tensor

from neuronforget import erase
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")


@pytest.fixture
def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    return Corpus(corpus.examples[:3], "forget"), Corpus(corpus.examples[3:], "retain")


def some(lm: LM) -> Neurons:
    return Neurons(frozenset((layer, j) for layer in (0, 1) for j in (1, 4, 9, 16, 25, 36)), (0, 1), lm.shape[1])


def seen(lm: LM, halves: tuple[Corpus, Corpus], layer: int, inputs: bool) -> tuple[Tensor, Tensor]:
    """What goes into, or comes out of, a layer's output projection at each token, and its corpus (1: forget)."""
    found: list[Tensor] = []
    module = lm.model.get_submodule(lm.sites[layer].path)
    handle = module.register_forward_hook(lambda _m, args, out: found.append((args[0] if inputs else out)[0].detach()))
    labels = []
    for label, corpus in ((1.0, halves[0]), (0.0, halves[1])):
        for row in encode(corpus, lm.tokenizer):
            (batch,) = batches([row], 1, lm.pad_id)
            with torch.no_grad():
                lm.model(**batch.inputs)
            labels.append(torch.full((len(row.ids),), label, dtype=torch.float64))
    handle.remove()
    return torch.cat(found).double(), torch.cat(labels)


def explained(x: Tensor, z: Tensor) -> float:
    """Share of the label's variance that the best linear reader with a bias explains, by least squares (numpy)."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1).numpy()
    fit = np.linalg.lstsq(design, z.numpy(), rcond=1e-6)[0]
    return 1 - float(((z.numpy() - design @ fit) ** 2).sum() / ((z - z.mean()) ** 2).sum())


def logistic(x: Tensor, z: Tensor) -> float:
    """Balanced accuracy of a logistic probe, a little regularised, trained and tested on the same tokens."""
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-9)
    w, b = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True), torch.zeros(1, dtype=x.dtype, requires_grad=True)
    weight = torch.where(z == 1, 0.5 / z.mean(), 0.5 / (1 - z.mean()))
    optimizer = torch.optim.LBFGS([w, b], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(x @ w + b, z, weight) + 1e-2 * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    guess = (x @ w + b).detach().sigmoid()
    # Ties count half: an eraser leaves every guess at the same value, up to rounding.
    above = torch.where((guess - 0.5).abs() < 1e-3, 0.5, (guess > 0.5).double())
    return float((above[z == 1].mean() + (1 - above[z == 0]).mean()) / 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_probes_fall_to_chance_on_the_outputs(
    family: str, tokenizer: Any, halves: tuple[Corpus, Corpus]
) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    edit = erase.leace(lm, *halves)
    for layer in (0, 1):
        before, z = seen(lm, halves, layer, inputs=False)
        with edit.on(lm):
            after, _ = seen(lm, halves, layer, inputs=False)
        assert explained(before, z) > 0.05 and logistic(before, z) > 0.6
        assert explained(after, z) < 1e-4 and logistic(after, z) == pytest.approx(0.5, abs=0.02)
        if layer == 0:  # the second sees what the first's change makes of its inputs
            torch.testing.assert_close(after.mean(0), before.mean(0), rtol=1e-3, atol=1e-4)
    assert edit.info["units"] == "live" and edit.info["erased_from"] == "outputs"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fold_equals_applying_the_eraser(family: str, tokenizer: Any, halves: tuple[Corpus, Corpus]) -> None:
    """By concept-erasure's own call on all tokens at once, with plain hooks, for outputs and for some activations."""
    from concept_erasure import LeaceEraser

    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    outputs, z = seen(lm, halves, 0, inputs=False)
    expected = LeaceEraser.fit(outputs, z, svd_tol=1e-9)(outputs)
    with erase.leace(lm, *halves, layers=[0], batch_size=2).on(lm):
        torch.testing.assert_close(seen(lm, halves, 0, inputs=False)[0], expected, rtol=1e-3, atol=1e-4)
    inputs, index = seen(lm, halves, 1, inputs=True)[0], some(lm).by_layer()[1]
    erased = inputs.clone()
    erased[:, index] = LeaceEraser.fit(inputs[:, index], z, svd_tol=1e-9)(inputs[:, index])
    assert explained(inputs[:, index], z) > 0.02 and explained(erased[:, index], z) < 1e-8
    with torch.no_grad():
        expected = lm.model.get_submodule(lm.sites[1].path)(erased.float()).double()
    own = Neurons(frozenset((1, int(j)) for j in index), (0, 1), lm.shape[1])
    edit = erase.leace(lm, *halves, neurons=own)
    with edit.on(lm):
        torch.testing.assert_close(seen(lm, halves, 1, inputs=False)[0], expected, rtol=1e-3, atol=1e-4)
    assert {c.name for c in edit.changes} == {lm.sites[1].write.name, lm.sites[1].bias}


def test_it_is_the_papers_formula(lm: LM, halves: tuple[Corpus, Corpus]) -> None:
    """`x - W^+ P W (x - mu)` by eigenvalues in numpy, without shrinkage, on what the model puts out."""
    x, z = (value.numpy() for value in seen(lm, halves, 0, inputs=False))
    mu = x.mean(0)
    values, vectors = np.linalg.eigh((x - mu).T @ (x - mu) / (len(x) - 1))
    whiten, unwhiten = (vectors @ np.diag(values**power) @ vectors.T for power in (-0.5, 0.5))
    direction = whiten @ ((x - mu).T @ (z - z.mean()))
    direction /= np.linalg.norm(direction)
    expected = x - (x - mu) @ whiten @ np.outer(direction, direction) @ unwhiten
    with erase.leace(lm, *halves, layers=[0], shrinkage=False).on(lm):
        found = seen(lm, halves, 0, inputs=False)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_is_added_where_there_is_none_and_goes_with_the_edit(
    family: str, tokenizer: Any, halves: tuple[Corpus, Corpus], tmp_path: Any
) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    had = lm.sites[0].bias in lm.parameters
    edit = erase.leace(lm, *halves, neurons=some(lm))
    assert edit.summary()["adds"] == ([] if had else [site.bias for site in lm.sites])
    with edit.on(lm):
        assert lm.sites[0].bias in lm.parameters
    assert (lm.sites[0].bias in lm.parameters) == had and edit.certificate(lm).holds
    if family == "qwen2":  # plain transformers would drop the bias
        with pytest.raises(InputError, match="cannot hold the bias"):
            edit.export(lm, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused(lm: LM, halves: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    with pytest.raises(InputError, match="not both"):
        erase.leace(lm, *halves, neurons=some(lm), layers=[0])
    with pytest.raises(InputError, match="share"):
        erase.leace(lm, halves[0], halves[0])
    with pytest.raises(InputError, match="no neurons in layer 5"):
        erase.leace(lm, *halves, layers=[5])
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(InputError, match=r"pip install 'neuronforget\[leace\]'"):
        erase.leace(lm, *halves)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
