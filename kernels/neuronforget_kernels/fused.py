"""K2: attribution of a layer from the gradient of its output, without ever storing the gradient of its neurons.

`g = delta @ W_out.T` is made tile by tile on the tensor cores; the epilogue multiplies each tile by `a`'s and
adds it up by example. For `direct`, for further targets, wherever `g` would be computed only to be reduced: an
ordinary recording has `g` from the backward pass already. It pays where it reaches nine tenths of the matrix product's
rate. Elsewhere than on the GPUs where it was seen to (`configs.FUSED`), and for sizes that tensor descriptors cannot
take, `g` is made for a layer at a time, by a matrix product followed by `neuron_moments`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import GRADIENT_FIELDS, GRADIENT_TABLE, wanted
from neuronforget_kernels.configs import measured_to_pay, runs_kernels
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.moments import Piece, named, neuron_moments


@torch.no_grad()
def fused_attribution(
    delta: Tensor,
    write: Tensor,
    a: Tensor,
    layout: Layout,
    *,
    fields: Collection[str] = GRADIENT_FIELDS,
    table: Collection[str] = GRADIENT_TABLE,
    fused: bool | None = None,
) -> Piece:
    """Return the gradient's (fields, table, counts) of `neuron_moments` for `a` and `g = delta @ write.T`.

    `delta` [row, d_model] is the gradient at the layer's output, or a direction to project on; `write`
    [neuron, d_model] the write weights, in either memory order; `a` [row, neuron]. Fields and table entries
    that depend on `a` alone are not among them. `fused=True` takes the kernel wherever it runs, False nowhere, None
    where it was measured to be no slower. Raises ValueError for shapes that do not fit.
    """
    rows, neurons = a.shape
    if delta.shape != (rows, write.shape[1]) or len(write) != neurons or rows != layout.rows:
        shapes = ", ".join(str(tuple(x.shape)) for x in (delta, write, a))
        raise ValueError(f"delta [row, model], write [neuron, model] and a [row, neuron] do not fit: found {shapes}")
    if (measured_to_pay(a.device) if fused is None else fused) and _fusable(delta, write, a, layout):
        from neuronforget_kernels.fused_kernel import fused_moments

        return named(fused_moments(delta, write, a, layout, wanted(fields, table)), layout, fields, table)
    return neuron_moments(a, delta @ write.T, layout, fields=fields, table=table)


def _fusable(delta: Tensor, write: Tensor, a: Tensor, layout: Layout) -> bool:
    if not runs_kernels(a.device) or layout.order is not None or torch.version.hip:
        return False
    halves = a.dtype in (torch.bfloat16, torch.float16) and delta.dtype == write.dtype == a.dtype
    flat = 1 == delta.stride(1) == a.stride(1) and 1 in write.stride()
    steps = [x.stride(0) for x in (delta, a)] + [max(write.stride())]
    aligned = all(step % 8 == 0 for step in steps) and all(x.data_ptr() % 16 == 0 for x in (delta, write, a))
    return halves and flat and aligned and torch.cuda.get_device_capability(a.device)[0] >= 9
