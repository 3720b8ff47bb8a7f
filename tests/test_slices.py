"""Compact slices: the model computes as if they were written in, and their gradients are the full ones."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, lm_of, padded_batch
from torch import Tensor

from neuronforget.edits import Edit
from neuronforget.erase.slices import Slices
from neuronforget.models import LM
from neuronforget.neurons import Neurons


def some(lm: LM) -> Neurons:
    """Neurons of both layers, out of order and not neighbours."""
    layers = tuple(site.layer for site in lm.sites)
    return Neurons(frozenset({(0, 7), (0, 1), (0, 30), (1, 3), (1, 12)}), layers, lm.shape[1])


def moved(lm: LM) -> Slices:
    """Slices whose every value has been pushed away from the model's own."""
    slices, draw = Slices.of(lm, some(lm)), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for part in slices.all():
            part.values.add_(0.5 * torch.randn(part.values.shape, generator=draw))
    return slices


def logits(lm: LM) -> Tensor:
    return lm.model(**padded_batch()).logits[padded_batch()["attention_mask"].bool()]


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> LM:
    return lm_of(request.param)


def test_the_model_computes_with_the_slices_as_if_they_were_its_weights(family: LM) -> None:
    slices, untouched = moved(family), logits(family).detach()
    with slices.on(), torch.no_grad():
        hooked = logits(family)
    assert torch.equal(logits(family), untouched)
    with Edit.build(family, [s.change() for s in slices.all()]).on(family), torch.no_grad():
        written = logits(family)
    torch.testing.assert_close(hooked, written, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(written, untouched, atol=1e-2)


def test_slice_gradients_are_the_selected_part_of_the_full_gradients(family: LM) -> None:
    slices = Slices.of(family, some(family))
    family.model.requires_grad_(False)
    with slices.on():
        found = torch.autograd.grad(logits(family).logsumexp(-1).sum(), [s.values for s in slices.all()])
    family.model.requires_grad_(True)
    names = [s.name for s in slices.all()]
    full = torch.autograd.grad(logits(family).logsumexp(-1).sum(), [family.parameters[n] for n in names])
    for part, here, there in zip(slices.all(), found, full, strict=True):
        expected = there.index_select(part.dim, part.index)
        torch.testing.assert_close(here, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert float(here.abs().max()) > 0


def test_slices_hold_the_selected_rows_and_columns_and_no_more(family: LM) -> None:
    slices, neurons = Slices.of(family, some(family)), some(family)
    for part in slices.all():
        layer = next(s.layer for s in family.sites if part.name in {p.name for p in (s.write, *s.read)})
        per_neuron = part.values.shape[part.dim] / len(neurons.by_layer()[layer])
        assert per_neuron == (2 if "gate_up" in part.name else 1)
    site = family.sites[0]
    column = family.parameters[site.write.name].detach().select(site.write.dim, 7)
    here = slices.writes[site.path]
    place = [1, 7, 30].index(7)
    assert torch.equal(here.values.detach().select(here.dim, place), column.float())


def test_slices_of_a_half_precision_model_are_trained_in_full_precision() -> None:
    lm = lm_of("llama")
    lm.model.bfloat16()
    slices = Slices.of(lm, some(lm))
    assert {s.values.dtype for s in slices.all()} == {torch.float32}
    with slices.on():
        value = lm.model(**padded_batch()).logits.float().logsumexp(-1).mean()
    assert value.isfinite()
    value.backward()
    assert all(s.values.grad is not None and s.values.grad.isfinite().all() for s in slices.all())
