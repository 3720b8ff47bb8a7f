"""K1 on a GPU: one pass over `a` and `g`, every statistic, no atomics; equal inputs give equal bits.

Program (column block, item) walks down its item's pieces with one accumulator per thread and column, so that
nothing is reduced across threads in the loop. `finishing` adds pieces, items and chunks in fp64, in order.
NaN: sums and extremes propagate it, `a > 0` does not count it.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronforget_kernels import accumulators as bits
from neuronforget_kernels.configs import config_for
from neuronforget_kernels.finishing import finish, maximum, minimum, on_its_card
from neuronforget_kernels.layout import Layout, pivot_of

S, U, SHIFT, SQUARE, PEAK = (tl.constexpr(bit) for bit in (bits.S, bits.U, bits.SHIFT, bits.SQUARE, bits.PEAK))
SHIFT2, ABS, POSITIVE = (tl.constexpr(bit) for bit in (bits.SHIFT2, bits.ABS, bits.POSITIVE))
ABS_AG, AG2, G2 = (tl.constexpr(bit) for bit in (bits.ABS_AG, bits.AG2, bits.G2))
GRADIENT = tl.constexpr(bits.GRADIENT)


@on_its_card
def streamed_moments(a: Tensor, g: Tensor | None, layout: Layout, want: int) -> tuple[Tensor, Tensor]:
    """Return every field [group, field, neuron] (fp64) and table entry [entry, example, neuron] (fp32) in `want`.

    What `want` leaves out is 0.
    """
    width, table = a.shape[1], layout.tables
    pivot = pivot_of(a[layout.sample])
    pieces = torch.empty((len(layout.low), 6, width), device=a.device)
    items = torch.empty((len(layout.items) - 1, 6, width), device=a.device)
    config, number = config_for(a.device, a.element_size()), len(table["item"]) - 1
    if number:
        gradient = a if g is None else g
        moments_kernel[(triton.cdiv(width, config.columns), number)](
            a,
            gradient,
            a if layout.weights is None else layout.weights,
            pivot,
            table["low"],
            table["high"],
            table["item"],
            pieces,
            items,
            width,
            *a.stride(),
            *gradient.stride(),
            WANT=want,
            HAS_W=layout.weights is not None,
            COLUMNS=config.columns,
            ROWS=config.rows,
            STAGES=config.stages,
            num_warps=config.warps,
            enable_fp_fusion=True,
        )
    return finish(pieces, items, pivot, layout, want)


@triton.jit
@no_type_check
def accumulate(
    a, g, w, pivot, s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2,
    WANT: tl.constexpr, HAS_W: tl.constexpr,
):  # fmt: skip
    """Add one row to the accumulators that are wanted."""
    if (SHIFT | SHIFT2) & WANT:
        d = a - pivot
        wd = d * w if HAS_W else d
        shift += wd
        if SHIFT2 & WANT:
            shift2 += wd * d
    if SQUARE & WANT:
        square += (a * w if HAS_W else a) * a
    if PEAK & WANT:
        high = maximum(high, a)
        low = minimum(low, a)
    if ABS & WANT:
        size += tl.abs(a) * w if HAS_W else tl.abs(a)
    if POSITIVE & WANT:
        positive += tl.where(a > 0, w, 0.0) if HAS_W else tl.where(a > 0, 1.0, 0.0)
    if GRADIENT & WANT:
        wg = g * w if HAS_W else g
        p = a * g
        wp = p * w if HAS_W else p
        if S & WANT:
            s += wp
        if U & WANT:
            u += wg
        if ABS_AG & WANT:
            abs_ag += tl.abs(wp)
        if AG2 & WANT:
            ag2 += wp * p
        if G2 & WANT:
            g2 += wg * g
    return s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2


@triton.jit
@no_type_check
def store_sums(
    OUT, number, F, columns, mask, v0, v1, v2, v3, v4, v5, FIRST: tl.constexpr, LAST: tl.constexpr, WANT: tl.constexpr
):
    """Write the six sums of a piece or an item, their bits running up from FIRST, the sixth's being LAST.

    Rows of what is not wanted stay unwritten and are never read.
    """
    to = OUT + number.to(tl.int64) * 6 * F + columns
    if FIRST & WANT:
        tl.store(to, v0, mask=mask)
    if (FIRST << 1) & WANT:
        tl.store(to + F, v1, mask=mask)
    if (FIRST << 2) & WANT:
        tl.store(to + 2 * F, v2, mask=mask)
    if (FIRST << 3) & WANT:
        tl.store(to + 3 * F, v3, mask=mask)
    if (FIRST << 4) & WANT:
        tl.store(to + 4 * F, v4, mask=mask)
    if LAST & WANT:
        tl.store(to + 5 * F, v5, mask=mask)


@triton.jit
@no_type_check
def moments_kernel(
    A, G, W, PIVOT, LOW, HIGH, ITEM, PIECES, ITEMS, F, stride_ar, stride_ac, stride_gr, stride_gc,
    WANT: tl.constexpr, HAS_W: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < F
    item = tl.program_id(1)
    pivot = tl.load(PIVOT + columns, mask=mask, other=0.0)
    zero = tl.zeros((COLUMNS,), dtype=tl.float32)
    shift2, size, positive, abs_ag, ag2, g2 = zero, zero, zero, zero, zero, zero
    at_a, at_g = A + columns.to(tl.int64) * stride_ac, G + columns.to(tl.int64) * stride_gc
    for index in range(tl.load(ITEM + item), tl.load(ITEM + item + 1)):
        piece = index + 0  # a loop variable is a Python int in the interpreter: an assignment wraps it
        first, last = tl.load(LOW + piece), tl.load(HIGH + piece)
        s, u, shift, square = zero, zero, zero, zero
        high = tl.full((COLUMNS,), float("-inf"), dtype=tl.float32)
        low = tl.full((COLUMNS,), float("inf"), dtype=tl.float32)
        whole = first + (last - first) // ROWS * ROWS
        for top in tl.range(first, whole, ROWS, num_stages=STAGES):
            for k in tl.static_range(ROWS):
                row = top + k
                row = row.to(tl.int64)
                a = tl.load(at_a + row * stride_ar, mask=mask, other=0.0).to(tl.float32)
                g = a
                if GRADIENT & WANT:
                    g = tl.load(at_g + row * stride_gr, mask=mask, other=0.0).to(tl.float32)
                w = tl.load(W + row) if HAS_W else 1.0
                s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2 = accumulate(
                    a, g, w, pivot, s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2, WANT, HAS_W
                )
        for rest in tl.range(whole, last, num_stages=1):  # fewer than ROWS rows: no predicate in the loop above
            row = rest + 0
            row = row.to(tl.int64)
            a = tl.load(at_a + row * stride_ar, mask=mask, other=0.0).to(tl.float32)
            g = a
            if GRADIENT & WANT:
                g = tl.load(at_g + row * stride_gr, mask=mask, other=0.0).to(tl.float32)
            w = tl.load(W + row) if HAS_W else 1.0
            s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2 = accumulate(
                a, g, w, pivot, s, u, shift, square, high, low, shift2, size, positive, abs_ag, ag2, g2, WANT, HAS_W
            )
        store_sums(PIECES, piece, F, columns, mask, s, u, shift, square, high, low, S, PEAK, WANT)
    store_sums(ITEMS, item, F, columns, mask, shift2, size, positive, abs_ag, ag2, g2, SHIFT2, G2, WANT)
