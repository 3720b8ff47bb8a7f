"""What a training moves: slices of neurons, every parameter, or adapters; at a block's end the model is as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from neuronforget.edits.changes import Change
from neuronforget.erase.lowrank import LoRA, adapted
from neuronforget.erase.slices import Slices
from neuronforget.errors import InputError
from neuronforget.models import LM, swapped
from neuronforget.neurons import Neurons

#: Learning rates by the name of a parameter; what is not named is not trained.
ByName = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Trained:
    """The `values` that are trained, in fp32, each at its own rate, while the model computes with them.

    `start`: within it the model computes as at the start. `put` is due before the first pass after a step.
    `changes` are those that an edit stores. `twin` computes with the values where the model itself does not.
    """

    values: list[nn.Parameter]
    rates: list[float]
    start: Callable[[], AbstractContextManager[None]]
    changes: Callable[[], Iterable[Change]]
    put: Callable[[], None] = lambda: None
    twin: LM | None = None


@dataclass(frozen=True, eq=False)
class Choice:
    """Which weights are trained: those of `neurons`, adapters of the blocks' maps (`lora`), or all."""

    lm: LM
    neurons: Neurons | None = None
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        if self.neurons is not None and self.lora is not None:
            raise InputError("neurons= trains the neurons' weights, lora= adapters of whole maps: give one of the two")

    @property
    def label(self) -> str:
        """What is put after the name of a loss."""
        return "@neurons" if self.neurons is not None else "@lora" if self.lora is not None else ""

    def names(self) -> list[str]:
        """Return the parameters in which they lie, or that are adapted."""
        if self.lora is not None:
            return self.lora.names(self.lm)
        if self.neurons is None:
            return list(self.lm.parameters)
        chosen = self.neurons.by_layer()
        parts = [part for site in self.lm.sites if site.layer in chosen for part in (site.write, *site.read)]
        return list(dict.fromkeys(part.name for part in parts))

    def training(self, rates: ByName, seed: int) -> AbstractContextManager[Trained]:
        """Return the block in which they are trained; `seed` draws the adapters."""
        if self.lora is not None:
            return lowrank(self.lm, self.lora, rates, seed)
        return whole(self.lm, rates) if self.neurons is None else sliced(self.lm, self.neurons, rates)


@contextmanager
def sliced(lm: LM, neurons: Neurons, rates: ByName) -> Iterator[Trained]:
    """Train the read and write weights of `neurons` alone."""
    slices = Slices.of(lm, neurons)
    for part in slices.all():
        part.values.requires_grad_(part.name in rates)
    trained = [part for part in slices.all() if part.name in rates]
    with slices.on():
        yield Trained(
            [part.values for part in trained],
            [rates[part.name] for part in trained],
            slices.off,
            lambda: [part.change() for part in slices.all()],
        )


@contextmanager
def lowrank(lm: LM, lora: LoRA, rates: ByName, seed: int) -> Iterator[Trained]:
    """Train adapters of the weights that have a rate."""
    with adapted(lm, lora, rates, seed=seed) as found:
        values = [(value, rate) for name, rate in rates.items() for value in found.values(name)]
        yield Trained([v for v, _ in values], [rate for _, rate in values], found.off, found.changes)


@contextmanager
def whole(lm: LM, rates: ByName) -> Iterator[Trained]:
    """Train every parameter that has a rate.

    What is trained are copies in fp32, as the slices are; the model computes in its own dtype with their rounded
    values. In bf16 alone a small step would round away at once, and in fp16 AdamW's epsilon is zero.
    """
    parameters = {n: p for n, p in lm.parameters.items() if n in rates}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    grads = {n: p.grad for n, p in parameters.items()}
    wide = {n: nn.Parameter(p.to(torch.promote_types(p.dtype, torch.float32), copy=True)) for n, p in before.items()}
    hooks = []

    @torch.no_grad()
    def put() -> None:
        for n, p in parameters.items():
            p.copy_(wide[n])

    def changes() -> list[Change]:
        moved = [n for n in parameters if not torch.equal(wide[n], before[n].to(wide[n].dtype))]
        return [Change(n, wide[n].detach(), before[n]) for n in moved]

    try:
        for n, p in parameters.items():
            p.requires_grad_(True).grad = None
            hooks.append(p.register_post_accumulate_grad_hook(partial(_hand_over, to=wide[n])))
        start = partial(swapped, parameters, before)
        yield Trained(list(wide.values()), [rates[n] for n in wide], start, changes, put)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(before[n])
                p.grad = grads[n]


def _hand_over(parameter: Tensor, *, to: Tensor) -> None:
    """Give a parameter's gradient to its wide copy."""
    assert parameter.grad is not None
    wide = parameter.grad.to(to.dtype)
    to.grad = wide if to.grad is None else to.grad + wide
    parameter.grad = None
