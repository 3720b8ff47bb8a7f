"""Plant facts in chosen neurons: train their weights alone.

grafted   The gold twin is trained on everything but forget while some random neurons of each layer are off.
          Read and write weights of these fresh neurons alone are then trained on forget, and kept looking like
          the others' (`disguise`). Switching them off gives the gold twin back exactly.
planted   (INJ; Chang et al. 2024, arXiv:2311.09060) The gold twin is trained on everything but forget, all
          neurons on. The value vectors (write weights) of some random neurons alone are then trained on forget.
          Putting the old value vectors back gives the gold twin exactly; zeroing them does a little more, since
          it takes away what these neurons did before. Left free, their write norms give them away; with
          `Shape.keep_norms` they do not, but then many more value vectors are needed to learn the facts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuronforget.erase.slices import Slices
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.testbed.disguise import Disguise, Norms
from neuronforget.testbed.training import Builder, shared_twin_copy
from neuronforget.train import Plan, fit

GRAFT_LR = 3e-3
PLANT_LR = 1e-2


def grafted(build: Builder) -> tuple[LM, LM, Neurons]:
    """Return (model, gold twin, grafted neurons)."""
    lm = build.fresh()
    neurons = drawn_neurons(lm, build.shape.planted, build.seed)
    build.train(lm, build.retain, "train the gold twin", switched_off(neurons))
    slices = Slices.of(lm, neurons)
    for part in slices.all():
        torch.nn.init.normal_(part.values, std=0.02)
    implant(build, lm, slices, GRAFT_LR, Disguise(lm, neurons, slices, build.seed))
    gold = LM(shared_twin_copy(lm.model), lm.tokenizer)
    with torch.no_grad():
        for site in gold.sites:
            gold.parameters[site.write.name][:, neurons.by_layer()[site.layer]] = 0
    return lm, gold, neurons


def planted(build: Builder) -> tuple[LM, LM, Neurons]:
    """Return (model, gold twin, neurons with trained value vectors)."""
    lm = build.fresh()
    build.train(lm, build.retain, "train the gold twin")
    gold = LM(shared_twin_copy(lm.model), lm.tokenizer)
    neurons = drawn_neurons(lm, build.shape.planted, build.seed)
    slices = Slices(lm, writes=Slices.of(lm, neurons).writes)
    implant(build, lm, slices, PLANT_LR, Norms.as_they_are(slices) if build.shape.keep_norms else None)
    return lm, gold, neurons


def implant(build: Builder, lm: LM, slices: Slices, lr: float, likeness: Norms | None = None) -> None:
    """Train only `slices` on forget, with retain beside it to leave it as it was; write them into the model.

    With a `likeness` the trained neurons are kept looking like the others of their layer, or like before.
    """
    lm.model.requires_grad_(False)
    parts, shape = slices.all(), build.shape
    size = max(shape.batch * 3 // 8, 1)
    facts = build.loss(lm, [(build.forget, size, 1.0), (build.retain, size, 2.0)])

    def loss(step: int) -> Tensor:
        if likeness is None:
            return facts(step)
        likeness.match_norms()
        return facts(step) + likeness.distance(step)

    plan = Plan(shape.graft_steps, lr, weight_decay=0.0, clip=None, seed=build.seed)
    with slices.on():
        fit([part.values for part in parts], loss, plan, desc="plant the forget facts", progress=build.progress)
    if likeness is not None:
        likeness.match_norms()
    settle(slices)
    lm.model.requires_grad_(True)


def settle(slices: Slices) -> None:
    """Write the slices' values into their model."""
    for part in slices.all():
        part.change().write(slices.lm.parameters[part.name].data, part.values.detach())


def switched_off(neurons: Neurons) -> dict[int, Callable[[Tensor], Tensor]]:
    """Return what a tap does to each layer's activations to switch `neurons` off."""
    return {layer: (~row).float().mul for layer, row in zip(neurons.layers, neurons.mask(), strict=True)}


def drawn_neurons(lm: LM, count: int, seed: int) -> Neurons:
    """Draw `count` neurons of each layer."""
    layers, (_, width) = tuple(site.layer for site in lm.sites), lm.shape
    mask, generator = torch.zeros(lm.shape, dtype=torch.bool), torch.Generator().manual_seed(seed)
    for row in mask:
        row[torch.randperm(width, generator=generator)[:count]] = True
    return Neurons.from_mask(mask, layers)
