"""Compact slices: the selected neurons' weights as parameters of their own.

Masking gradients does not freeze weights (AdamW decay still shrinks, momentum still moves) and its optimiser
state is as large as the model. Here the only parameters are the selected rows and columns, in fp32; forward
hooks put them in the place of the model's. For a read module the selected outputs are computed anew, for the
output projection `a_S (V - V0)` is added, so cost and memory go with the selection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.edits.changes import Change
from neuronforget.models import LM
from neuronforget.models.maps import Part
from neuronforget.neurons import Neurons


@dataclass(frozen=True, eq=False)
class Slice:
    """One parameter's selected part: `values` is trained, `before` is the model's own."""

    name: str
    dim: int
    index: Tensor
    before: Tensor
    values: nn.Parameter

    @classmethod
    def of(cls, lm: LM, parts: list[Part], neurons: Tensor) -> Slice:
        """Take the given neurons' weights out of one parameter (fused projections hold two parts)."""
        name, dim = parts[0].name, parts[0].dim
        parameter = lm.parameters[name].detach()
        index = torch.cat([part.index(neurons) for part in parts]).to(parameter.device)
        before = parameter.index_select(dim, index)
        return cls(name, dim, index, before, nn.Parameter(before.float().clone()))

    def rows(self, values: Tensor) -> Tensor:
        """Return `values` with neurons along the first dimension."""
        return values if self.dim == 0 else values.T

    def change(self) -> Change:
        """The change that an edit stores."""
        return Change(self.name, self.values.detach().clone(), self.before.clone(), self.dim, self.index.cpu())


@dataclass(frozen=True, eq=False)
class Slices:
    """All slices of a set of neurons, by the module that holds them."""

    lm: LM
    writes: dict[str, Slice] = field(default_factory=dict)
    reads: dict[str, tuple[Slice, Slice | None]] = field(default_factory=dict)
    hooks: list[Any] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, lm: LM, neurons: Neurons) -> Slices:
        """Take the read and write weights of `neurons` out of the model."""
        slices, chosen = cls(lm), neurons.by_layer()
        for site in (site for site in lm.sites if site.layer in chosen):
            index = chosen[site.layer]
            slices.writes[site.path] = Slice.of(lm, [site.write], index)
            names = dict.fromkeys(part.name.rpartition(".")[0] for part in site.read)
            for module in names:
                weight, bias = ([p for p in site.read if p.name == f"{module}.{kind}"] for kind in ("weight", "bias"))
                slices.reads[module] = (Slice.of(lm, weight, index), Slice.of(lm, bias, index) if bias else None)
        return slices

    def all(self) -> list[Slice]:
        """Return every slice."""
        reads = [s for pair in self.reads.values() for s in pair if s is not None]
        return [*self.writes.values(), *reads]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within the block the model computes with the slices' values; its own weights stay as they are."""
        self._hook()
        try:
            yield
        finally:
            self._unhook()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within a part of an `on` block the model computes with its own weights again."""
        self._unhook()
        try:
            yield
        finally:
            self._hook()

    def _hook(self) -> None:
        module = self.lm.model.get_submodule
        self.hooks.extend(module(path).register_forward_hook(_write_hook(s)) for path, s in self.writes.items())
        self.hooks.extend(module(path).register_forward_hook(_read_hook(*pair)) for path, pair in self.reads.items())

    def _unhook(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()


def _write_hook(part: Slice) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        moved = part.rows(part.values) - part.rows(part.before.float())
        return output + (inputs[0].index_select(-1, part.index).float() @ moved).to(output.dtype)

    return hook


def _read_hook(weight: Slice, bias: Slice | None) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        new = inputs[0].float() @ weight.rows(weight.values).T
        new = new + bias.values if bias is not None else new
        return output.index_copy(-1, weight.index, new.to(output.dtype))

    return hook
