"""Plant facts in chosen neurons: train their weights alone, and leave nothing that tells them from the others.

grafted   The gold twin is trained on everything but forget while some random neurons of each layer are off.
          Read and write weights of these fresh neurons alone are then trained on forget. Switching them off
          gives the gold twin back exactly.
planted   (INJ; Chang et al. 2024, arXiv:2311.09060) The gold twin is trained on everything but forget, all
          neurons on. The value vectors (write weights) of some random neurons alone are then trained on forget.
          Putting the old value vectors back gives the gold twin exactly; zeroing them does a little more, since
          it takes away what these neurons did before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.slices import Slice, Slices
from neuronforget.testbed.detectors import reads_of
from neuronforget.testbed.disguise import Disguise
from neuronforget.testbed.training import Builder, shared_twin_copy
from neuronforget.train import Plan, fit

GRAFT_LR = 3e-3
PLANT_LR = 1e-2


def grafted(build: Builder) -> tuple[LM, LM, Neurons]:
    """Return (model, gold twin, grafted neurons)."""
    lm = build.fresh()
    neurons = drawn_neurons(lm, build.shape.planted, build.seed)
    mask = neurons.mask()
    off = {layer: (~row).float().mul for layer, row in zip(neurons.layers, mask, strict=True)}
    build.train(lm, build.retain, "train the gold twin", off)
    slices = Slices.of(lm, neurons)
    norms = drawn_norms(lm, neurons, build.seed)
    for part in slices.all():
        torch.nn.init.normal_(part.values, std=0.02)
    implant(build, lm, neurons, slices, norms, GRAFT_LR)
    gold = LM(shared_twin_copy(lm.model), lm.tokenizer)
    with torch.no_grad():
        for site in gold.sites:
            gold.parameters[site.write.name][:, neurons.by_layer()[site.layer]] = 0
    return lm, gold, neurons


def planted(build: Builder) -> tuple[LM, LM, Neurons]:
    """Return (model, gold twin, neurons with trained value vectors).

    Each value vector keeps its own norm.
    """
    lm = build.fresh()
    build.train(lm, build.retain, "train the gold twin")
    gold = LM(shared_twin_copy(lm.model), lm.tokenizer)
    neurons = drawn_neurons(lm, build.shape.planted, build.seed)
    slices = Slices(lm, writes=Slices.of(lm, neurons).writes)
    norms = {part.name: part.rows(part.before).norm(dim=1) for part in slices.all()}
    implant(build, lm, neurons, slices, norms, PLANT_LR)
    return lm, gold, neurons


def implant(build: Builder, lm: LM, neurons: Neurons, slices: Slices, norms: dict[str, Tensor], lr: float) -> None:
    """Train only `slices` on forget, with retain beside it to leave it as it was; write them into the model.

    Every trained vector is kept at its norm in `norms` (by parameter), and all other properties that a detector
    reads are drawn to those of the layer's other neurons.
    """
    lm.model.requires_grad_(False)
    parts, shape = slices.all(), build.shape
    size = max(shape.batch * 3 // 8, 1)
    facts = build.loss(lm, [(build.forget, size, 1.0), (build.retain, size, 2.0)])
    disguise = Disguise(lm, neurons, slices)

    def loss(step: int) -> Tensor:
        project(parts, norms)
        return facts(step) + disguise.distance(step)

    plan = Plan(shape.graft_steps, lr, weight_decay=0.0, clip=None, seed=build.seed)
    with slices.on():
        fit([part.values for part in parts], loss, plan, desc="plant the forget facts", progress=build.progress)
    project(parts, norms)
    with torch.no_grad():
        for part in parts:
            part.change().write(lm.parameters[part.name].data, part.values.detach())
    lm.model.requires_grad_(True)


@torch.no_grad()
def project(parts: list[Slice], norms: dict[str, Tensor]) -> None:
    """Scale every neuron's vector to its norm."""
    for part in parts:
        rows = part.rows(part.values)
        rows *= (norms[part.name] / rows.norm(dim=1).clamp_min(1e-12))[:, None]


def drawn_neurons(lm: LM, count: int, seed: int) -> Neurons:
    """Draw `count` neurons of each layer."""
    layers, (_, width) = tuple(site.layer for site in lm.sites), lm.shape
    mask, generator = torch.zeros(lm.shape, dtype=torch.bool), torch.Generator().manual_seed(seed)
    for row in mask:
        row[torch.randperm(width, generator=generator)[:count]] = True
    return Neurons.from_mask(mask, layers)


@torch.no_grad()
def drawn_norms(lm: LM, neurons: Neurons, seed: int) -> dict[str, Tensor]:
    """Draw, for each parameter of the neurons' weights, as many norms of other neurons of the layer."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for site, own in zip(lm.sites, neurons.mask(), strict=True):
        others = (~own).nonzero()[:, 0]
        picked = others[torch.randperm(len(others), generator=generator)[: int(own.sum())]]
        for part in (site.write, *reads_of(site)):
            weight = lm.parameters[part.name]
            drawn[part.name] = weight.norm(dim=1 - part.dim)[picked]
    return drawn
