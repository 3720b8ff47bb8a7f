"""A gate: how much a prompt is like those of one corpus, told from that corpus alone.

    d(x)^2 = (x - mean)^T S^-1 (x - mean) / D,   S = (1 - gamma) cov + gamma tr(cov) / D
    weight = sigma(sharpness (1 - d / limit)),   limit the `kept` quantile of d on examples left out of the fit

S is never formed: its directions are those of the examples, all else has one variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.errors import InputError

GAMMA = 0.1  # shrinkage of the covariance: far fewer examples than features
SHARPNESS = 20.0


@dataclass(frozen=True, eq=False)
class Gate:
    """`axes` [k, D] and `factors` [k] lower the squared distance along the examples' own directions."""

    mean: Float[Tensor, "feature"]
    axes: Float[Tensor, "axis feature"]
    factors: Float[Tensor, "axis"]
    floor: Float[Tensor, ""]
    limit: Float[Tensor, ""]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that it is."""
        return dict(vars(self))

    def distance(self, features: Float[Tensor, "example feature"]) -> Float[Tensor, "example"]:
        """Return d, some 1 for an example of the corpus."""
        z = features.double() - self.mean.to(features.device)
        along = (z @ self.axes.to(features.device).T).square() @ self.factors.to(features.device)
        return ((z.square().sum(-1) / self.floor.to(features.device) - along) / z.shape[-1]).clamp(min=0).sqrt()

    def opening(self, features: Float[Tensor, "example feature"]) -> Float[Tensor, "example"]:
        """Return how far the gate opens: near 1 within the limit, 1/2 at it, near 0 at one and a half times it."""
        return torch.sigmoid(SHARPNESS * (1 - self.distance(features) / self.limit.to(features.device)))


def opened_by(features: Float[Tensor, "example feature"], *, kept: float = 0.95, seed: int = 0) -> Gate:
    """Fit a gate to a corpus' features. Raises InputError for fewer than four examples, or ones all alike."""
    if len(features) < 4:
        raise InputError(f"a gate is fitted to four prompts or more, found {len(features)}")
    check_kept(kept)
    features = features.double()
    fold = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed)) % min(5, len(features))
    left_out = [_fit(features[fold != i]).distance(features[fold == i]) for i in range(int(fold.max()) + 1)]
    found = _fit(features)
    return Gate(found.mean, found.axes, found.factors, found.floor, torch.cat(left_out).quantile(kept))


def check_kept(kept: float) -> None:
    """Raise InputError unless `kept` is a share between 0 and 1."""
    if not 0 < kept < 1:
        raise InputError(f"kept is the share of the request's prompts that the gate lets in: 0 to 1, found {kept}")


def _fit(features: Tensor) -> Gate:
    mean = features.mean(0)
    _, sizes, axes = torch.linalg.svd(features - mean, full_matrices=False)
    variances = sizes.square() / len(features)
    floor = GAMMA * variances.sum() / features.shape[1]
    if not floor > 0:
        raise InputError("the request's prompts are all alike to the model at this block: choose another layer")
    factors = 1 / floor - 1 / ((1 - GAMMA) * variances + floor)
    return Gate(mean, axes, factors, floor, torch.ones((), dtype=torch.float64))
