"""The kernel of `fused.fused_attribution`: neurons on the tensor cores' M axis, tokens on N.

So a reduction over tokens stays within four threads; the other way round spills. Not specialised by warps: so compiled
by Triton 3.6 the loop returned NaN on an H200, other bits each time.
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
    layout, table = _tiled(layout, config.tokens, config.parts)
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
            PARTS=config.parts,
            UPCAST=device.type != "cuda",
            num_warps=config.warps,
            num_stages=config.stages,
            enable_fp_fusion=True,
        )
    return finish(sums, totals, torch.zeros(width, device=device), layout, want)


def _tiled(layout: Layout, tokens: int, parts: int) -> tuple[Layout, dict[str, Tensor]]:
    """The rows in pieces of one part of a tile each, and which of them a part holds.

    Made for a batch's first layer, and kept. A piece of one part is an item of its own: the loop keeps no sum.
    """
    if (key := ("tiled", tokens, parts)) not in layout.kept:
        part, blocks = tokens // parts, -(-layout.rows // tokens) * parts  # the last tile's parts may hold nothing
        cut = layout.cut(part)
        ends = torch.bincount(cut.low // part, minlength=blocks).cumsum(0)
        table = cut.on_device(piece=cut.low.argsort(), block=torch.nn.functional.pad(ends, (1, 0)))
        layout.kept[key] = cut, table
    return layout.kept[key]


@triton.jit
@no_type_check
def fused_kernel(
    DELTA, WRITE, A, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS, T, F, D, stride_dr, stride_wr, stride_ar,
    HAS_W: tl.constexpr, FLAT: tl.constexpr, TOKENS: tl.constexpr, NEURONS: tl.constexpr, DEPTH: tl.constexpr,
    SPLITS: tl.constexpr, PARTS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0)
    top = tl.program_id(1) * NEURONS
    part: tl.constexpr = TOKENS // PARTS
    deltas = tl.make_tensor_descriptor(DELTA, shape=[T, D], strides=[stride_dr, 1], block_shape=[TOKENS, DEPTH])
    acts = tl.make_tensor_descriptor(A, shape=[T, F], strides=[stride_ar, 1], block_shape=[part, NEURONS])
    if FLAT:
        writes = tl.make_tensor_descriptor(WRITE, shape=[F, D], strides=[stride_wr, 1], block_shape=[NEURONS, DEPTH])
    else:
        writes = tl.make_tensor_descriptor(WRITE, shape=[D, F], strides=[stride_wr, 1], block_shape=[DEPTH, NEURONS])
    for index in tl.range(split, tl.cdiv(T, TOKENS), SPLITS):
        block = index + 0
        g = tl.zeros((NEURONS, TOKENS), dtype=tl.float32)
        for k in range(0, D, DEPTH):
            d = deltas.load([block * TOKENS, k])
            w = writes.load([top, k]) if FLAT else writes.load([k, top]).T
            if UPCAST:  # the interpreter multiplies the bit patterns of bf16
                w, d = w.to(tl.float32), d.to(tl.float32)
            g = tl.dot(w, d.T, g)
        add_parts(g, acts, block * PARTS, T, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS, F, top, HAS_W, PARTS)


@triton.jit
@no_type_check
def add_parts(
    g, acts, block, T, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS, F, top, HAS_W: tl.constexpr, PARTS: tl.constexpr
):
    """Reduce a tile in parts of fewer tokens: of a whole one, g and what is made of it would not fit the registers."""
    if PARTS == 1:
        # First g and then a * g in its place: both together would not fit either.
        columns = top + tl.arange(0, g.shape[0])
        mask = columns < F
        tokens = block * g.shape[1] + tl.arange(0, g.shape[1])
        add_tile(
            g, tokens, T, W, PIECE, BLOCK, LOW, HIGH, PIECES + F, ITEMS + 5 * F, ITEMS, block, F, columns, mask,
            HAS_W, False,
        )  # fmt: skip
        g *= acts.load([block * g.shape[1], top]).T.to(tl.float32)
        add_tile(
            g, tokens, T, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS + 4 * F, ITEMS + 3 * F, block, F, columns, mask,
            HAS_W, True,
        )  # fmt: skip
    else:
        half: tl.constexpr = PARTS // 2
        low, high = tl.split(tl.permute(tl.reshape(g, (g.shape[0], 2, g.shape[1] // 2)), (0, 2, 1)))
        add_parts(low, acts, block, T, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS, F, top, HAS_W, half)
        add_parts(high, acts, block + half, T, W, PIECE, BLOCK, LOW, HIGH, PIECES, ITEMS, F, top, HAS_W, half)


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
