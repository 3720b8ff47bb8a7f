"""A small classifier of prompts: logistic regression with a ridge, each corpus counting alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuronforget.errors import InputError


@dataclass(frozen=True, eq=False)
class Classifier:
    """Flags features `x` where `weight . (x - mean) / scale + bias > 0`."""

    mean: Float[Tensor, "feature"]
    scale: Float[Tensor, "feature"]
    weight: Float[Tensor, "feature"]
    bias: Float[Tensor, ""]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it is."""
        return dict(vars(self))

    def margin(self, features: Float[Tensor, "example feature"]) -> Float[Tensor, "example"]:
        """Return the log-odds that each is a forget prompt."""
        x = (features.double() - self.mean.to(features.device)) / self.scale.to(features.device)
        return x @ self.weight.to(features.device) + self.bias.to(features.device)

    def flags(self, features: Float[Tensor, "example feature"]) -> Bool[Tensor, "example"]:
        """Return which are taken for forget prompts."""
        return self.margin(features) > 0

    def opening(self, features: Float[Tensor, "example feature"]) -> Float[Tensor, "example"]:
        """Return 1 for those that are flagged, 0 for others: how far a gate opens."""
        return self.flags(features).double()


def fitted(forget: Float[Tensor, "m feature"], retain: Float[Tensor, "n feature"], ridge: float) -> Classifier:
    """Minimise the mean log-loss, half of it from each corpus, plus `ridge / 2 |weight|^2`, to convergence."""
    from scipy.optimize import minimize

    both = torch.cat([forget, retain]).double()
    mean, scale = both.mean(0), both.std(0, correction=0)
    scale = torch.where(scale > 1e-6 * scale.max(), scale, 1.0)  # a constant feature tells nothing
    x = ((both - mean) / scale).numpy()
    sign = np.concatenate([np.ones(len(forget)), -np.ones(len(retain))])
    share = np.concatenate([np.full(len(c), 0.5 / len(c)) for c in (forget, retain)])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = parameters[:-1], parameters[-1]
        margin = sign * (x @ weight + bias)
        value = share @ np.logaddexp(0, -margin) + ridge / 2 * weight @ weight
        slope = -share * sign / (1 + np.exp(np.minimum(margin, 500)))
        return float(value), np.append(x.T @ slope + ridge * weight, slope.sum())

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-8}
    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options=options)
    if np.abs(found.jac).max() > 1e-4:
        raise InputError(f"the classifier did not converge (gradient {np.abs(found.jac).max():.1e}): raise ridge")
    best = torch.from_numpy(found.x)
    return Classifier(mean, scale, best[:-1].clone(), best[-1].clone())


def held_out(
    forget: Float[Tensor, "m feature"], retain: Float[Tensor, "n feature"], ridge: float, seed: int
) -> tuple[float, float]:
    """Return the share flagged of each corpus, by classifiers that did not see the example (5 folds; NaN for one)."""
    folds = min(5, len(forget), len(retain))
    if folds < 2:
        return float("nan"), float("nan")
    order = [torch.randperm(len(c), generator=torch.Generator().manual_seed(seed)) % folds for c in (forget, retain)]
    hits = [0, 0]
    for fold in range(folds):
        classifier = fitted(forget[order[0] != fold], retain[order[1] != fold], ridge)
        for i, corpus in enumerate((forget, retain)):
            hits[i] += int(classifier.flags(corpus[order[i] == fold]).sum())
    return hits[0] / len(forget), hits[1] / len(retain)
