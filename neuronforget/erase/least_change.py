"""The smallest change of write weights that gives each fact's key its new output, as a linear system in fp64.

With keys K, wanted changes R of the output and second moments C of what is to stay,

    dW = R (lambda I + K^T C^-1 K)^-1 K^T C^-1     [= R K^T (lambda C + K K^T)^-1]

is least in C-norm: all neurons, one fact and lambda = 0 is ROME's (Meng et al. 2022, arXiv:2202.05262), several
layers MEMIT's (2023, arXiv:2210.07229). Kept to the directions that C hardly has, it is AlphaEdit's (Fang et al.
2024, arXiv:2410.02355).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.errors import InputError, not_finite


def least_change(
    keys: Float[Tensor, "fact neuron"],
    wanted: Float[Tensor, "fact d_model"],
    second: Float[Tensor, "neuron neuron"],
    preserve: float | None = None,
    *,
    ridge: float = 1e-4,
) -> Float[Tensor, "neuron d_model"]:
    """Return dW [neuron, d_model] with `keys @ dW` close to `wanted`, least in the norm of `second` (fp64).

    `preserve` is lambda (None: number of neurons, or 0 for one fact); `ridge` times the mean diagonal is added
    to `second`, which is singular where retain text is short. Raises InputError for what is NaN or infinite.
    """
    _check_finite(keys, wanted, second)
    facts, width = keys.shape
    strength = preserve if preserve is not None else (0.0 if facts == 1 else float(width))
    damped = second + ridge * second.diagonal().mean().clamp_min(1e-12) * torch.eye(width, dtype=second.dtype)
    spread = torch.linalg.solve(damped, keys.T)  # C^-1 K, [neuron, fact]
    gram = keys @ spread + strength * torch.eye(facts, dtype=keys.dtype)
    # Not the default driver: "gelsy" reads memory that it has not set (torch 2.13 too; pytorch/pytorch issue 71222).
    return spread @ torch.linalg.lstsq(gram, wanted, driver="gelsd").solution


def null_change(
    keys: Float[Tensor, "fact neuron"],
    wanted: Float[Tensor, "fact d_model"],
    second: Float[Tensor, "neuron neuron"],
    preserve: float = 1.0,
    *,
    cut: float = 1e-3,
) -> Float[Tensor, "neuron d_model"]:
    """Return dW as `least_change`, within the directions that together hold at most `cut` of the trace of `second`.

    Within them the size of dW is its plain norm: `dW^T = R K^T P (P K K^T P + lambda c I)^-1`, c the mean diagonal of
    `second` (so that lambda has the same meaning whatever the scale of activations) and lambda `preserve`. Raises
    InputError where no direction is so free, and for what is NaN or infinite.
    """
    _check_finite(keys, wanted, second)
    values, vectors = torch.linalg.eigh(second)
    values = values.clamp_min(0)
    rounding = len(values) * torch.finfo(values.dtype).eps  # what eigenvalues that are zero are found as
    free = vectors[:, values.cumsum(0) <= max(cut, rounding) * values.sum()]
    if not free.shape[1]:
        raise InputError(
            f"no direction of these {len(second)} neurons holds less than cut={cut:g} of their second moments on "
            "retain text: raise cut, or take more neurons"
        )
    scale = second.diagonal().mean() * torch.eye(free.shape[1], dtype=second.dtype)
    return free @ least_change(keys @ free, wanted, scale, preserve, ridge=0.0)


def _check_finite(keys: Tensor, wanted: Tensor, second: Tensor) -> None:
    """Raise InputError for what LAPACK has no answer to, and no word."""
    given = {"keys of the facts": keys, "output changes of the facts": wanted, "second moments of retain text": second}
    for what, values in given.items():
        if not torch.isfinite(values).all():
            raise not_finite(what)
