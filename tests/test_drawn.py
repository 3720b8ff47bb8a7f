"""Noise and revival: what is drawn is normal, as large as said, and the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch
from families import build
from torch import Tensor

from neuronforget import erase
from neuronforget.edits.changes import Change
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons


def moved(change: Change) -> Tensor:
    assert change.before is not None
    return change.after.double() - change.before.double()


def wide() -> LM:
    """Two layers of 600 neurons."""
    return LM(build("llama", intermediate_size=600))


def half(lm: LM) -> Neurons:
    return Neurons(frozenset((layer, j) for layer in (0, 1) for j in range(0, 600, 2)), (0, 1), 600)


def test_noise_has_the_asked_spread_and_no_structure() -> None:
    lm = wide()
    edit = erase.noise(lm, half(lm), sigma=0.1, seed=1)
    drawn = torch.stack([moved(c).T for c in edit.changes])  # [layer, neuron, d_model]
    n = drawn.numel()
    assert abs(float(drawn.mean())) < 4 * 0.1 / math.sqrt(n)
    assert float(drawn.std()) == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2 * n))
    assert abs(float(torch.corrcoef(drawn.flatten(1))[0, 1])) < 4 / math.sqrt(n / 2)  # layers draw on their own
    shares = [float((drawn.abs() < k * 0.1).double().mean()) for k in (1, 2)]
    assert shares == pytest.approx([0.6827, 0.9545], abs=0.02)  # of a normal distribution


def test_noise_comes_again_with_its_seed_and_grows_with_sigma() -> None:
    lm = wide()
    one, same, other = (erase.noise(lm, half(lm), seed=seed) for seed in (1, 1, 2))
    double = erase.noise(lm, half(lm), seed=1, sigma=0.2)
    assert all(torch.equal(a.after, b.after) for a, b in zip(one.changes, same.changes, strict=True))
    assert not torch.equal(one.changes[0].after, other.changes[0].after)
    torch.testing.assert_close(moved(double.changes[0]), 2 * moved(one.changes[0]), rtol=1e-3, atol=1e-6)
    assert one.info["units"] == "live"


def test_revived_weights_have_the_others_mean_and_spread() -> None:
    lm = wide()
    with torch.no_grad():
        lm.parameters[lm.sites[0].write.name].mul_(3.0).add_(0.5)
    chosen = half(lm)
    erase.ablate(lm, chosen, units="dead").apply(lm)
    edit = erase.revive(lm, chosen)
    parts = {p.name: p for s in lm.sites for p in (s.write, *s.read)}
    assert {c.name for c in edit.changes} == set(parts) and len(edit.changes) == len(parts)
    for change in edit.changes:
        part = parts[change.name]
        own = torch.arange(0, 600, 2)
        others = lm.parameters[change.name].detach().index_select(part.dim, own + 1).double()
        n = change.after.numel()
        assert float(change.after.mean()) == pytest.approx(float(others.mean()), abs=5 * float(others.std()) / n**0.5)
        assert float(change.after.std()) == pytest.approx(float(others.std()), rel=5 / (2 * n) ** 0.5)


def test_bad_input_is_refused() -> None:
    lm = wide()
    for sigma in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="noise: sigma must be a number"):
            erase.noise(lm, half(lm), sigma=sigma)
    everything = Neurons(frozenset((0, j) for j in range(600)), (0, 1), 600)
    with pytest.raises(InputError, match="none is left"):
        erase.revive(lm, everything)
