"""Change: new values for a part of one parameter, and what a checkpoint needs to hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.maps import Site
from neuronforget.models.routed import RoutedMLP, routed_layers

State = Literal["before", "after"]
Law = Literal["set", "add"]


@dataclass(frozen=True, eq=False)
class Change:
    """New values for positions `index` along `dim` of one parameter, or (no index) for all of it.

    `before` is None for a bias that the model does not have and that the edit adds. `law` says how the new values
    come from the old, where that is known: "set", they are the same whatever the old were; "add", the old plus a
    change that does not depend on them, or was solved for them once. A ledger can then tell what they are on others.
    """

    name: str
    after: Tensor
    before: Tensor | None
    dim: int = 0
    index: Tensor | None = None
    law: Law | None = None

    def read(self, parameter: Tensor) -> Tensor:
        """Return the part of `parameter` that this change covers."""
        return parameter if self.index is None else parameter.index_select(self.dim, self.index.to(parameter.device))

    def write(self, parameter: Tensor, values: Tensor) -> None:
        """Write `values` over that part, in place and in its dtype."""
        values = values.to(parameter.device, parameter.dtype)
        if self.index is None:
            parameter.copy_(values)
        else:
            parameter.index_copy_(self.dim, self.index.to(parameter.device), values)

    def check(self, model: nn.Module, state: State) -> None:
        """Raise InputError unless the model's values here are those of `state`."""
        expected: Tensor | None = getattr(self, state)
        parameter = dict(model.named_parameters(remove_duplicate=False)).get(self.name)
        if expected is None:
            if parameter is not None:
                raise InputError(f"the model already has {self.name}, which this edit would add: another edit is on")
            return
        if parameter is None:
            check_experts([self], model)
            raise InputError(
                f"the model has no parameter {self.name}: this edit was made for another model, or is not on"
            )
        reaches = self.index is None or not len(self.index) or int(self.index.max()) < parameter.shape[self.dim]
        found = self.read(parameter.detach()) if reaches else parameter.detach()
        if found.shape != expected.shape or not torch.equal(found, expected.to(found.device)):
            made = "made for another model, or another edit is on" if state == "before" else "not on, or changed since"
            raise InputError(f"the edit does not fit {self.name}: it was {made}")

    @torch.no_grad()
    def put(self, model: nn.Module, state: State) -> None:
        """Write the values of `state` into the model; adds or removes a bias that the model does not have."""
        values: Tensor | None = getattr(self, state)
        if self.before is not None:
            assert values is not None
            self.write(model.get_parameter(self.name).data, values)
            return
        module = model.get_submodule(self.name.removesuffix(".bias"))
        like = module.weight
        assert isinstance(like, Tensor)
        bias = None if values is None else nn.Parameter(values.to(like.device, like.dtype).clone(), requires_grad=False)
        module.register_parameter("bias", bias)


def written(sites: Iterable[Site], changes: Iterable[Change]) -> dict[str, list[int] | str]:
    """Return the neurons whose write weights the changes cover, by layer; "all" for a whole projection."""
    found: dict[str, list[int] | str] = {}
    layers = {site.write.name: site for site in sites}
    for change in changes:
        site = layers.get(change.name)
        if site is None:
            continue
        here = change.index is not None and change.dim == site.write.dim
        found[str(site.layer)] = (change.index - site.write.offset).tolist() if here else "all"  # type: ignore
    return found


@contextmanager
def mlp_biases(lm: LM, wanted: bool) -> Iterator[None]:
    """Within the block every MLP projection has a bias (zero where none was) and the config says so."""
    if not wanted:
        yield
        return
    config, added = lm.model.config, []
    names = {part.name for s in lm.sites for part in (s.write, *s.read) if part.name.endswith(".weight")}
    for name in sorted(names):
        module = lm.model.get_submodule(name.removesuffix(".weight"))
        if module.bias is None:
            module.bias = nn.Parameter(
                torch.zeros(module.out_features, dtype=module.weight.dtype, device=module.weight.device), False
            )
            added.append(module)
    was, config.mlp_bias = config.mlp_bias, True
    try:
        yield
    finally:
        config.mlp_bias = was
        for module in added:
            module.register_parameter("bias", None)


def check_experts(changes: Iterable[Change], model: nn.Module) -> None:
    """Raise InputError where changes were made for opened experts and these are closed, or the other way round."""
    closed, opened = routed_layers(model).keys(), {p for p, m in model.named_modules() if isinstance(m, RoutedMLP)}
    there = dict(model.named_parameters(remove_duplicate=False)).keys()
    for name in (change.name for change in changes if change.name not in there):
        parent = name.rpartition(".")[0]
        if {parent, parent.rpartition(".")[0]} & closed:
            why = "its experts are not open: nf.open_experts(model)"
        elif parent in opened:
            why = "its experts are open, and the edit was made for closed ones: nf.load(..., experts=False)"
        else:
            continue
        raise InputError(f"the model has no parameter {name}: {why}")
