"""Train some neurons' weights so that nothing about them, seen without data, tells them from the others.

Each vector keeps the norm of some other neuron's, drawn at random. A penalty draws every other of a layer's
`properties` to where the other neurons of the layer have it: the squared distance between the trained neurons' sorted
values and as many quantiles of the others' (optimal transport in one dimension), in units of the others' standard
deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuronforget.erase.slices import Slices
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.testbed.detectors import Layer, reads_of, roles

REFRESH = 10  # steps for which a layer's main directions and the other neurons' values are taken as constant


class Norms:
    """Norms that trained vectors are held at; how they look otherwise is left free."""

    def __init__(self, slices: Slices, norms: dict[str, Tensor]) -> None:
        self.parts, self.norms = slices.all(), norms

    @classmethod
    def as_they_are(cls, slices: Slices) -> Norms:
        """Hold every vector at the norm that it has now."""
        return cls(slices, {part.name: part.rows(part.values.detach()).norm(dim=1) for part in slices.all()})

    @torch.no_grad()
    def match_norms(self) -> None:
        """Scale every neuron's vectors to its norm."""
        for part in self.parts:
            rows = part.rows(part.values)
            rows *= (self.norms[part.name] / rows.norm(dim=1))[:, None]

    def distance(self, step: int) -> Tensor:
        """Return how far the vectors are from looking as wanted: nothing but norms is, and these are held."""
        return torch.zeros(())


class Disguise(Norms):
    """How the neurons in `slices` are to look, and how far they are from that."""

    def __init__(self, lm: LM, neurons: Neurons, slices: Slices, seed: int) -> None:
        super().__init__(slices, drawn_norms(lm, neurons, seed))
        chosen = neurons.by_layer()
        self.sites = [site for site in lm.sites if site.layer in chosen]
        self.index = [chosen[site.layer] for site in self.sites]
        self.layers = [Layer.of(lm, site) for site in self.sites]
        self.own = []
        for site in self.sites:
            parts = {"write": slices.writes[site.path]}
            reads = [slices.reads[part.name.removesuffix(".weight")][0] for part in reads_of(site)]
            self.own.append(parts | dict(zip(roles(len(reads)), reads, strict=True)))
        self.wanted: list[dict[str, tuple[Tensor, Tensor]]] = []

    def distance(self, step: int) -> Tensor:
        """Return the mean squared distance over layers and properties, in standard deviations; differentiable."""
        if step % REFRESH == 0 or not self.wanted:
            self._look_around()
        terms = []
        for i, wanted in enumerate(self.wanted):
            now = self._now(i).properties(self.index[i])
            terms += [
                ((now[name].sort().values - at) / spread).square().mean() for name, (at, spread) in wanted.items()
            ]
        return torch.stack(terms).mean().float()

    def _now(self, i: int) -> Layer:
        return self.layers[i].replaced(self.index[i], {role: p.rows(p.values) for role, p in self.own[i].items()})

    @torch.no_grad()
    def _look_around(self) -> None:
        """Take the main directions as they are now, and each property's quantiles among the other neurons."""
        self.wanted = []
        for i, index in enumerate(self.index):
            self.layers[i] = self._now(i).turned()
            others = torch.ones(self.sites[i].d_mlp, dtype=torch.bool)
            others[index] = False
            points = (torch.arange(len(index), dtype=torch.float64) + 0.5) / len(index)
            values = {name: column[others] for name, column in self.layers[i].properties().items()}
            self.wanted.append({n: (v.quantile(points), v.std().clamp_min(1e-12)) for n, v in values.items()})


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
