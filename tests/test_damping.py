"""Damping: SSD and AurA by hand, from the definitions, and as a gate on the neuron's activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

import neuronforget as nf
from neuronforget import erase
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.taps import TorchHooks

TOKENS = torch.tensor([[5, 9, 11, 3, 7], [8, 4, 12, 6, 10]])


def fishers(lm: LM, values: Tensor, examples: int = 1) -> Moments:
    """Moments that hold a sum of s^2 for every neuron, which is all that SSD asks of them."""
    fields = {"s2": values * examples, "mean": torch.zeros_like(values)}
    return Moments(fields, 1, examples, 1, 0.0, tuple(site.layer for site in lm.sites))


def factors(lm: LM, edit: nf.Edit) -> Tensor:
    """What each neuron's write weights were multiplied by, read back from the model."""
    found = []
    before = [lm.parameters[s.write.name].detach().clone() for s in lm.sites]
    with edit.on(lm):
        for site, old in zip(lm.sites, before, strict=True):
            ratio = lm.parameters[site.write.name].detach() / old
            found.append(ratio.median(1 - site.write.dim).values)
    return torch.stack(found)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2"])
@pytest.mark.parametrize("factor", [0.3, 0.0, -1.0])
def test_a_factor_is_a_gate_on_the_activation(family: str, factor: float) -> None:
    lm = LM(build(family))
    chosen = Neurons(frozenset({(0, 1), (0, 7), (1, 3)}), (0, 1), lm.shape[1])

    def gate(index: Tensor) -> Any:
        return lambda a: a.index_copy(-1, index, factor * a.index_select(-1, index))

    with torch.no_grad():
        hooks = {layer: gate(index) for layer, index in chosen.by_layer().items()}
        expected = TorchHooks(lm)({"input_ids": TOKENS}, hooks).logits
        edit = erase.dampen(lm, chosen, factor=factor)
        with edit.on(lm):
            torch.testing.assert_close(lm.model(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
    assert edit.info["units"] == ("live" if factor else "sleeping") and edit.info["factor"] == [factor, factor]


def test_ssd_by_hand(lm: LM) -> None:
    """Four neurons of layer 1, alpha 10, lambda 1: under, at and over the threshold, and retain at zero."""
    forget, retain = torch.ones(lm.shape, dtype=torch.float64), torch.ones(lm.shape, dtype=torch.float64)
    forget[1, :5] = torch.tensor([9.0, 10.0, 20.0, 1000.0, 5.0])
    retain[1, 4] = 0.0
    edit = erase.ssd(lm, fishers(lm, forget, 3), fishers(lm, retain, 2))
    expected = torch.ones(lm.shape)
    expected[1, :5] = torch.tensor([1.0, 1.0, 0.05, 0.001, 0.0])
    torch.testing.assert_close(factors(lm, edit), expected)
    assert edit.info["neurons"] == 3 and edit.info["units"] == "2 live, 1 sleeping"
    stronger = erase.ssd(lm, fishers(lm, forget), fishers(lm, retain), alpha=8.0, dampening=12.0)
    expected[1, :5] = torch.tensor([1.0, 1.0, 0.6, 0.012, 0.0])  # lambda I_r / I_f over 1 is 1
    torch.testing.assert_close(factors(lm, stronger), expected)
    kept = Neurons(frozenset({(1, 3), (0, 0)}), (0, 1), lm.shape[1])
    assert erase.ssd(lm, fishers(lm, forget), fishers(lm, retain), neurons=kept).info["neurons"] == 1


def test_ssds_importance_is_the_fisher_information_of_a_gate(lm: LM, corpus: Corpus) -> None:
    """SSD's own rule on 80 gates that are parameters, their gradients by autograd, one example at a time."""
    halves = [Corpus(corpus.examples[:3], "forget"), Corpus(corpus.examples[3:], "retain")]
    gates, fisher = torch.ones(lm.shape, requires_grad=True), []
    for half in halves:
        squares = torch.zeros(lm.shape, dtype=torch.float64)
        for row in encode(half, lm.tokenizer):
            (batch,) = batches([row], 1, lm.pad_id)
            hooks = {layer: lambda a, layer=layer: a * gates[layer] for layer in (0, 1)}
            loss = answer_nll(TorchHooks(lm)(batch.inputs, hooks).logits, batch).sum()
            squares += torch.autograd.grad(loss, gates)[0].double() ** 2
        fisher.append(squares / len(half))
    f, r = fisher
    expected = torch.where(f > 2 * r, (r / f).clamp_max(1.0), 1.0)
    edit = erase.ssd(lm, *(nf.record(lm, half, progress=False) for half in halves), alpha=2.0)
    assert 0 < int((expected < 1).sum()) < expected.numel()
    torch.testing.assert_close(factors(lm, edit).double(), expected, rtol=1e-3, atol=1e-5)


def peaks(lm: LM, values: Tensor) -> Moments:
    fields = {"mean": torch.zeros(lm.shape, dtype=torch.float64)}
    return Moments(fields, 1, len(values), 1, 0.0, (0, 1), table={"peak": values}, index=tuple(range(len(values))))


def test_aura_by_hand(lm: LM) -> None:
    """Two forget and two retain examples: 4 of 4 pairs in order, 3 of 4, 2 of 4, and none."""
    forget, retain = torch.zeros(2, *lm.shape), torch.zeros(2, *lm.shape)
    forget[:, 0, :4] = torch.tensor([[3.0, 3.0, 1.0, -1.0], [4.0, 1.0, 4.0, -2.0]])
    retain[:, 0, :4] = torch.tensor([[1.0, 2.0, 2.0, 1.0], [2.0, 0.0, 3.0, 2.0]])
    edit = erase.aura(lm, peaks(lm, forget), peaks(lm, retain))
    expected = torch.ones(lm.shape)
    expected[0, :2] = torch.tensor([0.0, 0.5])  # AUROC 1, .75, .5, 0, and .5 by ties elsewhere
    torch.testing.assert_close(factors(lm, edit), expected)
    assert edit.info["neurons"] == 2 and edit.info["units"] == "1 live, 1 sleeping"


def test_a_neuron_that_tells_forget_from_retain_as_well_as_chance_is_left_alone(lm: LM) -> None:
    """Half of the pairs in order is 1/2, not a rounding more: a selected neuron whose change the dtype would lose."""
    seen = torch.randn(7, *lm.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="aura changed nothing: none of 80 neurons"):
        erase.aura(lm, peaks(lm, seen), peaks(lm, seen))
    better = seen.clone()
    better[:, 1, 3] += 10
    assert erase.aura(lm, peaks(lm, better), peaks(lm, seen)).info["neurons"] == 1


def test_bad_input_is_refused(lm: LM) -> None:
    even = fishers(lm, torch.ones(lm.shape, dtype=torch.float64))
    with pytest.raises(InputError, match="ssd changed nothing: none of 80 neurons"):
        erase.ssd(lm, even, even)
    with pytest.raises(InputError, match="ssd: alpha must be a number > 0"):
        erase.ssd(lm, even, even, alpha=0.0)
    with pytest.raises(InputError, match="different models"):
        erase.ssd(lm, even, fishers(LM(build("llama", num_hidden_layers=3)), torch.ones(3, 40, dtype=torch.float64)))
    one = Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])
    for wrong in (float("nan"), torch.ones(1, 3)):
        with pytest.raises(InputError, match=r"factor (is a finite|must be a) number"):
            erase.dampen(lm, one, factor=wrong)
    with pytest.raises(InputError, match="changed nothing"):
        erase.dampen(lm, one, factor=1.0)
    with pytest.raises(InputError, match=r"per-example table|2 or more examples"):
        erase.aura(lm, even, even)
