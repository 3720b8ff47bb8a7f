"""A loss on hidden states: what a block hands on is bent away, and what is predicted follows."""

from __future__ import annotations

import torch
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.losses.outputs import Outputs
from neuronforget.losses.parts import asks_for, names


@names(layer="block")
@asks_for("retain", unless_zero="alpha")
def rmu(outputs: Outputs, *, c: float = 6.5, alpha: float = 1200.0, layer: int | None = None, seed: int = 0) -> Tensor:
    """Representation misdirection (Li et al. 2024, arXiv:2403.03218).

    `mean ||h - c u||^2` on forget `+ alpha mean ||h - h_start||^2` on retain, `h` the hidden state after block
    `layer` where an answer token is predicted, `u` a random direction of length 1 drawn from [0, 1)^d by `seed`.
    Trains blocks up to `layer` alone (None: a quarter of the way up, 7 of 32 as in the paper); the paper's updates
    three of them. Raises InputError if nothing that is trained acts on it.
    """
    h = outputs.forget.hidden(layer)
    if torch.is_grad_enabled() and not h.requires_grad:
        raise InputError("no weight in training acts on this block's output: bind a higher layer=, or other neurons")
    u = torch.rand(h.shape[-1], generator=torch.Generator().manual_seed(seed)).to(h.device)
    pushed = outputs.forget.mean((h - c * u / u.norm()).square().sum(-1))
    if not alpha:
        return pushed
    kept = outputs.retain.hidden(layer), outputs.retain.hidden(layer, "start")
    return pushed + alpha * outputs.retain.mean((kept[0] - kept[1]).square().sum(-1))
