"""The kernel of `fused.fused_attribution`: neurons on the tensor cores' M axis, tokens on N.

So a token reduction stays within a thread; the other way round spills and cannot be specialised by warps.
Descriptors are made on the device, which warp specialisation on Hopper needs.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronforget_kernels.configs import gemm_config_for
from neuronforget_kernels.finishing import finish, on_its_card
from neuronforget_kernels.layout import Layout


@on_its_card
def fused_moments(delta: Tensor, write: Tensor, a: Tensor, layout: Layout, want: int) -> tuple[Tensor, Tensor]:
    """Return fields [group, field, neuron] and table [entry, example, neuron] that depend on the gradient."""
    rows, width = a.shape
    config, device = gemm_config_for(a.device, width), a.device
    layout, table = _tiled(layout, config.tokens)
    sums, totals = (torch.empty((len(layout.low), 6, width), device=device) for _ in range(2))
    flat = write.stride(1) == 1
    if device.type == "cuda":
        triton.set_allocator(lambda size, _align, _stream: torch.empty(size, dtype=torch.int8, device=device))
    if len(layout.low):
        fused_kernel[(config.splits, triton.cdiv(width, config.neurons))](
            delta,
            write,
            a,
            a if layout.weights is None else layout.weights,
            table["piece"],
            table["block"],
            layout.tables["low"],
            layout.tables["high"],
            sums,
            totals,
            rows,
            width,
            delta.shape[1],
            delta.stride(0),
            write.stride(0) if flat else write.stride(1),
            a.stride(0),
            HAS_W=layout.weights is not None,
            FLAT=flat,
            TOKENS=config.tokens,
            NEURONS=config.neurons,
            DEPTH=config.depth,
            SPLITS=config.splits,
            SPECIALISE=False,  # on an H200 the warp-specialised loop returns NaN, other bits each time (triton 3.6)
            UPCAST=device.type != "cuda",
            num_warps=config.warps,
            num_stages=config.stages,
            enable_fp_fusion=True,
        )
    return finish(sums, totals, torch.zeros(width, device=device), layout, want)


def _tiled(layout: Layout, tokens: int) -> tuple[Layout, dict[str, Tensor]]:
    """The rows in pieces of one tile each, and which of them a tile holds; made for a batch's first layer, and kept.

    A piece of one tile is an item of its own: the loop keeps no sum.
    """
    if (key := ("tiled", tokens)) not in layout.kept:
        cut, blocks = layout.cut(tokens), -(-layout.rows // tokens)
        ends = torch.bincount(cut.low // tokens, minlength=blocks).cumsum(0)
        table = cut.on_device(piece=cut.low.argsort(), block=torch.nn.functional.pad(ends, (1, 0)))
        layout.kept[key] = cut, table
    return layout.kept[key]


@triton.jit
@no_type_check
def fused_kernel(
    DELTA, WRITE, A, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS, T, F, D, stride_dr, stride_wr, stride_ar,
    HAS_W: tl.constexpr, FLAT: tl.constexpr, TOKENS: tl.constexpr, NEURONS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, SPECIALISE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    top = tl.program_id(1) * NEURONS
    deltas = tl.make_tensor_descriptor(DELTA, shape=[T, D], strides=[stride_dr, 1], block_shape=[TOKENS, DEPTH])
    acts = tl.make_tensor_descriptor(A, shape=[T, F], strides=[stride_ar, 1], block_shape=[TOKENS, NEURONS])
    if FLAT:
        writes = tl.make_tensor_descriptor(WRITE, shape=[F, D], strides=[stride_wr, 1], block_shape=[NEURONS, DEPTH])
    else:
        writes = tl.make_tensor_descriptor(WRITE, shape=[D, F], strides=[stride_wr, 1], block_shape=[DEPTH, NEURONS])
    columns = top + tl.arange(0, NEURONS)
    mask = columns < F
    for index in tl.range(split, tl.cdiv(T, TOKENS), SPLITS, warp_specialize=SPECIALISE):
        block = index + 0
        g = tl.zeros((NEURONS, TOKENS), dtype=tl.float32)
        for k in range(0, D, DEPTH):
            d = deltas.load([block * TOKENS, k])
            w = writes.load([top, k]) if FLAT else writes.load([k, top]).T
            if UPCAST:  # the interpreter multiplies the bit patterns of bf16
                w, d = w.to(tl.float32), d.to(tl.float32)
            g = tl.dot(w, d.T, g)
        tokens = block * TOKENS + tl.arange(0, TOKENS)
        # One tile at a time, first g and then a * g in its place: both together would not fit the registers.
        add_tile(
            g, tokens, T, W, PIECE, BLOCK, LOW, HIGH, PIECES + F, ITEMS + 5 * F, ITEMS, block, F, columns, mask,
            HAS_W, False,
        )  # fmt: skip
        g *= acts.load([block * TOKENS, top]).T.to(tl.float32)
        add_tile(
            g, tokens, T, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS + 4 * F, ITEMS + 3 * F, block, F, columns, mask,
            HAS_W, True,
        )  # fmt: skip


@triton.jit
@no_type_check
def add_tile(
    x, tokens, T, W, PIECE, BLOCK, LOW, HIGH, SUM, SQUARES, SIZES, block, F, columns, mask,
    HAS_W: tl.constexpr, ABSOLUTE: tl.constexpr,
):  # fmt: skip
    """Write, for each piece of the tile, the sum of x [neuron, token], of its square and of its magnitude."""
    for number in range(tl.load(BLOCK + block), tl.load(BLOCK + block + 1)):
        piece = tl.load(PIECE + number)
        own = ((tokens >= tl.load(LOW + piece)) & (tokens < tl.load(HIGH + piece)))[None, :]
        to = piece.to(tl.int64) * 6 * F + columns
        mine = tl.where(own, x, 0.0)  # no factor of 0: NaN in a row that is left out stays there
        if HAS_W:
            share = tl.load(W + tokens, mask=tokens < T, other=0.0)[None, :]
            tl.store(SUM + to, tl.sum(mine * share, 1), mask=mask)
            tl.store(SQUARES + to, tl.sum(mine * mine * share, 1), mask=mask)
            if ABSOLUTE:
                tl.store(SIZES + to, tl.sum(tl.abs(mine) * share, 1), mask=mask)
        else:
            tl.store(SUM + to, tl.sum(mine, 1), mask=mask)
            tl.store(SQUARES + to, tl.sum(mine * mine, 1), mask=mask)
            if ABSOLUTE:
                tl.store(SIZES + to, tl.sum(tl.abs(mine), 1), mask=mask)
