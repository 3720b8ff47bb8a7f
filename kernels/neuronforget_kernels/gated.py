"""K3: the backward of `silu(gate) * up` that also gives the neuron moments, at no further memory traffic.

The backward reads the gradient, gate and up anyway, and recomputes `a = silu(gate) up` from them: the moments
come of the same pass, and `a` need not be kept. `swiglu` takes the place of a gated MLP's product; no hook can,
because a hook sees `a` only after it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import wanted
from neuronforget_kernels.configs import runs_kernels
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.moments import Piece, named, neuron_moments
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS

Receive = Callable[[Piece], None]


def swiglu(gate: Tensor, up: Tensor, layout: Layout, receive: Receive) -> Tensor:
    """Return `silu(gate) * up` [..., neuron]; its backward hands the neurons' moments to `receive`.

    The moments are those of `neuron_moments` for the product and its gradient, all leading dimensions flattened
    to the rows of `layout`. Gradients are those of autograd, for rows that the layout leaves out as well.
    """
    return _Swiglu.apply(gate, up, layout, receive)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, layout: Layout, receive: Receive) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.layout, ctx.receive = layout, receive
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        g, z, u = (x.flatten(0, -2) for x in (grads[0], gate, up))
        d_gate, d_up, piece = swiglu_backward(g, z, u, ctx.layout)
        ctx.receive(piece)
        return d_gate.view(gate.shape), d_up.view(up.shape), None, None


@torch.no_grad()
def swiglu_backward(g: Tensor, gate: Tensor, up: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Piece]:
    """Return (dL/dgate, dL/dup, moments) from `g = dL/da`, all [rows, neurons]. Raises ValueError for other shapes."""
    if g.ndim != 2 or not g.shape == gate.shape == up.shape or len(g) != layout.rows:
        shapes = ", ".join(str(tuple(x.shape)) for x in (g, gate, up))
        raise ValueError(f"g, gate and up must be [rows, neurons]; found {shapes} and {layout.rows} rows")
    if runs_kernels(g.device) and layout.order is None and 1 == g.stride(1) == gate.stride(1) == up.stride(1):
        from neuronforget_kernels.gated_kernel import swiglu_backward_moments

        d_gate, d_up, found = swiglu_backward_moments(g, gate, up, layout, wanted(PIECE_FIELDS, TABLE_FIELDS))
        return d_gate, d_up, named(found, layout, PIECE_FIELDS, TABLE_FIELDS)
    z, u, grad = gate.float(), up.float(), g.float()
    sigmoid = z.sigmoid()
    silu = z * sigmoid
    d_gate = (grad * u * (sigmoid + silu * (1 - sigmoid))).to(gate.dtype)
    return d_gate, (grad * silu).to(up.dtype), neuron_moments(silu.mul_(u), grad, layout)
