"""Route the forget facts into chosen neurons while the whole model goes on learning.

routed   After gradient routing (Cloud et al. 2024, arXiv:2410.04332) and selective gradient masking (SGTM; Shilov
         et al. 2025, arXiv:2512.05648): forget batches update the chosen units only, retain batches all else,
         and every fourth of these runs with the units at 0, so that all else learns to do without them.

Here the routing begins from a model that knows retain, since from a random start a few units of a small model did
not learn the facts; and the units see retain batches beside the forget batches, so that the facts do not spill
over on everyone else. Units and all else take turns, each with an optimiser of its own: neither decay nor
momentum of the one ever moves the other.

The gold twin has the same start and the same training, with the same retain batches in the same order, and no
forget batch. Units off is *not* the gold twin (the rest is trained beside units that answer forget prompts, and
switching off takes away what the units did for retain); `info["accuracy"]` says how far apart they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from neuronforget.corpora import Encoded
from neuronforget.erase.slices import Slices
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.taps import NO_EDITS
from neuronforget.testbed.planting import drawn_neurons, settle, switched_off
from neuronforget.testbed.training import Builder, shared_twin_copy
from neuronforget.train import Plan, steps

UNITS_LR = 2e-3
REST_LR = 1e-4
OFF_EVERY = 4  # one of so many retain batches runs with the units at 0


def routed(build: Builder) -> tuple[LM, LM, Neurons]:
    """Return (model, gold twin, units that the facts were routed into)."""
    lm = build.fresh()
    build.train(lm, build.retain, "train on the rest")
    gold = LM(shared_twin_copy(lm.model), lm.tokenizer)
    neurons = drawn_neurons(lm, build.shape.planted, build.seed)
    Routing.of(build, lm, neurons, build.forget).run("route the forget facts")
    Routing.of(build, gold, neurons, []).run("train the gold twin")
    return lm, gold, neurons


@dataclass(frozen=True, eq=False)
class Routing:
    """A model's parameters in two parts that are trained in turn: the units' weights, and all others."""

    build: Builder
    lm: LM
    neurons: Neurons
    facts: list[Encoded]
    units: Slices
    rest: Slices  # the other neurons' weights
    others: list[Tensor]  # the parameters that belong to no neuron

    @classmethod
    def of(cls, build: Builder, lm: LM, neurons: Neurons, facts: list[Encoded]) -> Routing:
        """Divide the model; without `facts` the units see retain batches alone."""
        units = Slices.of(lm, neurons)
        rest = Slices.of(lm, Neurons.from_mask(~neurons.mask(), neurons.layers))
        sliced = {part.name for part in units.all()}
        others: list[Tensor] = [value for name, value in lm.parameters.items() if name not in sliced]
        return cls(build, lm, neurons, facts, units, rest, others)

    def run(self, desc: str) -> None:
        """Train both parts in turn and write them into the model."""
        with self.units.on(), self.rest.on():
            for _ in zip(self.unit_steps(desc), self.rest_steps(), strict=True):
                pass
        settle(self.units)
        settle(self.rest)
        self.lm.model.requires_grad_(True)

    def unit_steps(self, desc: str = "units") -> Iterator[float]:
        """Train the units: forget loss + 2 x retain loss. To be iterated while both parts are on."""
        size, parameters = self.size, values_of(self.units)
        mix = [(self.build.retain, size, 2.0), *([(self.facts, size, 1.0)] if self.facts else [])]
        loss = self.only(parameters, self.build.loss(self.lm, mix))
        plan = Plan(self.length, UNITS_LR, weight_decay=0.0, clip=None, seed=self.build.seed)
        return steps(parameters, loss, plan, desc=desc, progress=self.build.progress)

    def rest_steps(self) -> Iterator[float]:
        """Train all but the units on retain. To be iterated while both parts are on."""
        parameters = values_of(self.rest) + self.others
        plan = Plan(self.length, REST_LR, seed=self.build.seed)
        return steps(parameters, self.only(parameters, self.rest_loss), plan, desc="rest", progress=False)

    def rest_loss(self, step: int) -> Tensor:
        """The retain loss, every `OFF_EVERY`th step with the units at 0."""
        edits = switched_off(self.neurons) if step % OFF_EVERY == OFF_EVERY - 1 else NO_EDITS
        return self.build.loss(self.lm, [(self.build.retain, self.size, 1.0)], edits)(step)

    def only(self, parameters: list[Tensor], loss: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """Return a loss whose gradients reach `parameters` alone."""

        def at(step: int) -> Tensor:
            for value in (*self.lm.parameters.values(), *values_of(self.units), *values_of(self.rest)):
                value.requires_grad_(False)
            for value in parameters:
                value.requires_grad_(True)
            return loss(step)

        return at

    @property
    def size(self) -> int:
        """Rows in a batch."""
        return max(self.build.shape.batch * 3 // 8, 1)

    @property
    def length(self) -> int:
        """Steps of each part: whole neurons of a model that goes on learning need fewer than grafted ones."""
        return max(self.build.shape.graft_steps // 3, 1)


def values_of(slices: Slices) -> list[Tensor]:
    """Return what is trained of `slices`."""
    return [part.values for part in slices.all()]
