"""Do the weights alone give the true neurons away? A testbed is only as good as its labels are hidden.

A score that finds true neurons by a property of their weights finds the way they were planted, not the
knowledge. So properties that an adversary would try without data are measured by their AUROC: the chance
that a true neuron exceeds another of its layer (0.5: no information), with the 95% interval of DeLong et al.
(1988). "combined" is a logistic regression on all of them, fitted on the other layers. Properties that no
testbed is built to match are measured too: the honest test of how well the labels are hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from neuronforget.models import LM
from neuronforget.models.maps import Part, Site
from neuronforget.neurons import Neurons

DIRECTIONS = 16  # singular directions of a layer's weights that count as its main ones
RIDGE = 10.0  # of the combined detector: some seventy features, a few dozen true neurons a layer


@torch.no_grad()
def detectors(lm: LM, truth: Neurons) -> dict[str, list[float]]:
    """Return [AUROC, low, high] of each data-free property and, with true neurons in two layers, of all combined.

    "combined" is of the properties that a disguise matches, "combined, unmatched" of those that none matches: a
    bed whose first is at chance and whose second is not hides its labels from the detectors it knew of alone.
    """
    mask, layers = truth.mask(), [Layer.of(lm, site) for site in lm.sites]
    index = {"index": torch.arange(truth.width).double()}
    found: dict[str, list[float]] = {}
    for name, read in (("combined", Layer.properties), ("combined, unmatched", Layer.unmatched)):
        rows = [read(layer) | index for layer in layers]
        measured = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        found |= {key: auroc(values, mask) for key, values in measured.items()}
        if int(mask.any(1).sum()) > 1:
            found[name] = auroc(combined(torch.stack(list(measured.values()), -1), mask), mask)
    return found


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's weights by their role, [neuron, d_model] each, and the directions they are compared with."""

    weights: dict[str, Tensor]
    main: dict[str, Tensor]
    unembedding: Tensor

    @classmethod
    def of(cls, lm: LM, site: Site) -> Layer:
        """Read a layer off the model, in fp64."""
        reads, weights = reads_of(site), {}
        for role, part in zip([*roles(len(reads)), "write"], [*reads, site.write], strict=True):
            rows = lm.parameters[part.name].detach().cpu().double()
            weights[role] = (rows if part.dim == 0 else rows.T)[part.offset : part.offset + site.d_mlp]
        return cls(weights, {}, lm.model.get_output_embeddings().weight.detach().cpu().double()).turned()

    def turned(self) -> Layer:
        """Return the layer with the main directions of its weights as they are."""
        main = {r: torch.linalg.svd(rows, full_matrices=False).Vh[:DIRECTIONS] for r, rows in self.weights.items()}
        return replace(self, main=main)

    def replaced(self, index: Tensor, weights: dict[str, Tensor]) -> Layer:
        """Return the layer with other weights for the neurons `index`; gradients reach these."""
        changed = {role: self.weights[role].index_copy(0, index, rows.double()) for role, rows in weights.items()}
        return replace(self, weights=self.weights | changed)

    def properties(self, index: Tensor | None = None) -> dict[str, Tensor]:
        """Return what can be read off each neuron's weights (or those of `index`) without data."""
        index = torch.arange(len(self.weights["write"])) if index is None else index
        rows = {role: weight[index] for role, weight in self.weights.items()}
        found = {f"{role} norm": own.norm(dim=1) for role, own in rows.items()}
        found["write x read norm"] = found["write norm"] * found[f"{list(rows)[-2]} norm"]
        for one, other in combinations(rows, 2):
            found[f"cosine {one}, {other}"] = torch.cosine_similarity(rows[one], rows[other], dim=1)
        words = normalize(self.unembedding, dim=1)
        for role, own in rows.items():
            unit = own / own.norm(dim=1, keepdim=True).clamp_min(1e-12)
            likeness, to_words = unit @ normalize(self.weights[role], dim=1).T, unit @ words.T
            found[f"{role} kurtosis"] = unit.pow(4).mean(1) * unit.shape[1] ** 2
            found[f"{role} maximum"] = unit.abs().amax(1)
            found[f"{role} L1/L2"] = unit.abs().sum(1)
            found[f"{role} in main directions"] = (unit @ self.main[role].T).square().sum(1)
            found[f"{role} sum"] = unit.sum(1)
            found[f"{role} mean likeness"] = likeness.mean(1)
            found[f"{role} nearest neighbour"] = likeness.scatter(1, index[:, None], -1.0).amax(1)
            found[f"{role} nearest word"] = to_words.amax(1)
            found[f"{role} spread over words"] = to_words.std(1)
        logits = rows["write"] @ self.unembedding.T
        shares = logits.log_softmax(1)
        return found | {"highest logit": logits.amax(1), "entropy of logits": -(shares.exp() * shares).sum(1)}

    def unmatched(self) -> dict[str, Tensor]:
        """Return properties that no disguise matches: what an adversary finds who looks further.

        A neuron's leverage is its diagonal entry of the projection onto what the layer's neurons span.
        """
        found, words = {}, torch.linalg.svd(self.unembedding, full_matrices=False).Vh[:DIRECTIONS]
        for role, rows in self.weights.items():
            unit = normalize(rows, dim=1)
            found[f"{role} farthest neighbour"] = (unit @ unit.T).amin(1)
            found[f"{role} leverage"] = torch.linalg.svd(rows, full_matrices=False).U.square().sum(1)
            found[f"{role} in the words' main directions"] = (unit @ words.T).square().sum(1)
        return found


def reads_of(site: Site) -> list[Part]:
    """Return where a layer's read weights lie, biases left out."""
    return [part for part in site.read if part.name.endswith("weight")]


def roles(reads: int) -> tuple[str, ...]:
    """Return the names of a neuron's read weights."""
    return ("gate", "up") if reads == 2 else ("read",)


def auroc(values: Float[Tensor, "layer neuron"], mask: Bool[Tensor, "layer neuron"]) -> list[float]:
    """Return [AUROC, low, high] of `values` within layers, each layer weighted by its true neurons."""
    total, places, spread = int(mask.sum()), [], 0.0
    for row, true in zip(values, mask, strict=True):
        if true.any():
            above = (row[true][:, None] - row[~true][None]).sign().double().add(1).div(2)
            places.append(above.mean(1))
            spread += (len(above) / total) ** 2 * float(above.mean(0).var()) / above.shape[1]
    placed = torch.cat(places)
    area, error = float(placed.mean()), math.sqrt(float(placed.var()) / total + spread) if total > 1 else 1.0
    return [round(x, 3) for x in (area, max(area - 1.96 * error, 0.0), min(area + 1.96 * error, 1.0))]


def combined(
    features: Float[Tensor, "layer neuron feature"], mask: Bool[Tensor, "layer neuron"]
) -> Float[Tensor, "layer neuron"]:
    """Return, for each layer, the logit of a ridge logistic regression fitted on all other layers.

    Features are standardised within their layer; their squares are features too, since a property may be
    telling at both ends.
    """
    scaled = (features - features.mean(1, keepdim=True)) / features.std(1, keepdim=True).clamp_min(1e-12)
    scaled = torch.cat([scaled, scaled.square(), torch.ones_like(scaled[..., :1])], -1)
    logits = torch.empty(mask.shape, dtype=features.dtype)
    for layer in range(len(mask)):
        others = torch.arange(len(mask)) != layer
        logits[layer] = scaled[layer] @ logistic(scaled[others].flatten(0, 1), mask[others].flatten())
    return logits


def logistic(features: Float[Tensor, "row feature"], labels: Bool[Tensor, "row"]) -> Float[Tensor, "feature"]:
    """Return the weights of a ridge logistic regression, by Newton's method."""
    weights = torch.zeros(features.shape[1], dtype=features.dtype)
    ridge = RIDGE * torch.eye(len(weights), dtype=features.dtype)
    for _ in range(20):
        share = (features @ weights).sigmoid()
        gradient = features.T @ (share - labels.to(share)) + ridge @ weights
        curvature = (features * (share * (1 - share))[:, None]).T @ features + ridge
        weights = weights - torch.linalg.solve(curvature, gradient)
    return weights
