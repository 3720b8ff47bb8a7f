"""The kernel of `gated.swiglu_backward`; its accumulators and its finish are those of `streaming`."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronforget_kernels.configs import swiglu_config_for
from neuronforget_kernels.finishing import finish, on_its_card
from neuronforget_kernels.layout import Layout, pivot_of
from neuronforget_kernels.streaming import G2, PEAK, SHIFT2, S, accumulate, store_sums


@on_its_card
def swiglu_backward_moments(
    g: Tensor, gate: Tensor, up: Tensor, layout: Layout, want: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Return (dL/dgate, dL/dup, (fields, table)) for matrices whose columns lie next to each other."""
    width, device, table = g.shape[1], g.device, _with_gaps(layout)
    sample = [x[layout.sample].float() for x in (gate, up)]
    pivot = pivot_of(torch.nn.functional.silu(sample[0]) * sample[1])
    sums = torch.empty((len(table["low"]), 6, width), device=device)
    totals = torch.empty((len(table["item"]) - 1, 6, width), device=device)
    d_gate, d_up = torch.empty(gate.shape, dtype=gate.dtype, device=device), torch.empty_like(up).contiguous()
    config = swiglu_config_for(device)
    if len(totals):
        swiglu_kernel[(triton.cdiv(width, config.columns), len(totals))](
            g,
            gate,
            up,
            d_gate,
            d_up,
            g if layout.weights is None else layout.weights,
            pivot,
            table["low"],
            table["high"],
            table["item"],
            sums,
            totals,
            width,
            g.stride(0),
            gate.stride(0),
            up.stride(0),
            WANT=want,
            HAS_W=layout.weights is not None,
            COLUMNS=config.columns,
            STAGES=config.stages,
            num_warps=config.warps,
            enable_fp_fusion=True,
        )
    return d_gate, d_up, finish(sums, totals, pivot, layout, want)


def _with_gaps(layout: Layout) -> dict[str, Tensor]:
    """The tables of all rows, made for a batch's first layer, and kept.

    Rows left out have gradients too: their pieces and items come last, and the finish never looks at them.
    """
    if "with gaps" not in layout.kept:
        low, high = layout.gaps
        further = torch.arange(len(low)) + len(layout.low) + 1
        layout.kept["with gaps"] = layout.on_device(
            low=torch.cat([layout.low, low]),
            high=torch.cat([layout.high, high]),
            item=torch.cat([layout.items, further]),
        )
    return layout.kept["with gaps"]


@triton.jit
@no_type_check
def swiglu_kernel(
    G, GATE, UP, D_GATE, D_UP, W, PIVOT, LOW, HIGH, ITEM, PIECES, ITEMS, F, stride_gr, stride_zr, stride_ur,
    WANT: tl.constexpr, HAS_W: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < F
    item = tl.program_id(1)
    pivot = tl.load(PIVOT + columns, mask=mask, other=0.0)
    zero = tl.zeros((COLUMNS,), dtype=tl.float32)
    shift2, size, positive, abs_ag, ag2, g2 = zero, zero, zero, zero, zero, zero
    for index in range(tl.load(ITEM + item), tl.load(ITEM + item + 1)):
        piece = index + 0  # a loop variable is a Python int in the interpreter: an assignment wraps it
        first, last = tl.load(LOW + piece), tl.load(HIGH + piece)
        s, u, shift, square = zero, zero, zero, zero
        high = tl.full((COLUMNS,), float("-inf"), dtype=tl.float32)
        low = tl.full((COLUMNS,), float("inf"), dtype=tl.float32)
        for at in tl.range(first, last, num_stages=STAGES):
            row = at + 0
            row = row.to(tl.int64)
            g = tl.load(G + row * stride_gr + columns, mask=mask, other=0.0).to(tl.float32)
            z = tl.load(GATE + row * stride_zr + columns, mask=mask, other=0.0).to(tl.float32)
            v = tl.load(UP + row * stride_ur + columns, mask=mask, other=0.0).to(tl.float32)
            sigmoid = 1.0 / (1.0 + tl.exp(-z))
            silu = z * sigmoid
            d_gate = g * v * (sigmoid + silu * (1.0 - sigmoid))
            tl.store(D_GATE + row * F + columns, d_gate.to(D_GATE.dtype.element_ty), mask=mask)
            tl.store(D_UP + row * F + columns, (g * silu).to(D_UP.dtype.element_ty), mask=mask)
            w = tl.load(W + row) if HAS_W else 1.0
            s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2 = accumulate(
                silu * v, g, w, pivot, s, u, shift, square, high, low,
                shift2, size, positive, abs_ag, ag2, g2, WANT, HAS_W,
            )  # fmt: skip
        store_sums(PIECES, piece, F, columns, mask, s, u, shift, square, high, low, S, PEAK, WANT)
    store_sums(ITEMS, item, F, columns, mask, shift2, size, positive, abs_ag, ag2, g2, SHIFT2, G2, WANT)
