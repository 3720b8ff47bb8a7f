"""The fixed-order end of every kernel: pieces to examples, examples and items to chunks, chunks to groups, in fp64.

Two launches. The first writes the per-example table and a partial result for each chunk (about the root of the
number of examples of a group); the second adds a group's chunks. Means and squared deviations are taken about
the pivot of each neuron, so that a large mean costs them no digits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuronforget_kernels import accumulators as bits
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS

S, U, SHIFT, SQUARE, PEAK = (tl.constexpr(bit) for bit in (bits.S, bits.U, bits.SHIFT, bits.SQUARE, bits.PEAK))
ITEM_BITS = tl.constexpr(bits.SHIFT2)  # the lowest of six that follow each other
#: Partial results of a chunk: 6 of items, 6 of S and U, shift, pooled shift and its square, max, min, tokens, examples.
PARTS = tl.constexpr(19)
_COLUMNS = 128
Rest = ParamSpec("Rest")
Found = TypeVar("Found")


def on_its_card(launch: Callable[Concatenate[Tensor, Rest], Found]) -> Callable[Concatenate[Tensor, Rest], Found]:
    """Launch where the first tensor lies: Triton launches on the current device, wherever the tensors are."""

    @wraps(launch)
    def there(first: Tensor, *rest: Rest.args, **settings: Rest.kwargs) -> Found:
        with torch.cuda.device_of(first):
            return launch(first, *rest, **settings)

    return there


def finish(pieces: Tensor, items: Tensor, pivot: Tensor, layout: Layout, want: int) -> tuple[Tensor, Tensor]:
    """Return fields [group, field, neuron] (fp64) and table [entry, example, neuron] (fp32); what is unwanted is 0."""
    width, table, device = len(pivot), layout.tables, pivot.device
    chunks = len(table["chunk_item"]) - 1
    partial = torch.empty((chunks, int(PARTS), width), dtype=torch.float64, device=device)
    fields = torch.empty((layout.groups, len(PIECE_FIELDS), width), dtype=torch.float64, device=device)
    entries = torch.zeros((len(TABLE_FIELDS), layout.examples, width), device=device)
    blocks = triton.cdiv(width, _COLUMNS)
    finish_chunks[(blocks, chunks)](
        pieces,
        items,
        pivot,
        layout.counts.double(),
        table["example"],
        table["example_piece"],
        table["chunk_example"],
        table["chunk_item"],
        entries,
        partial,
        width,
        layout.examples,
        WANT=want,
        COLUMNS=_COLUMNS,
        num_warps=4,
    )
    finish_groups[(blocks, layout.groups)](
        partial, pivot, table["group_chunk"], fields, width, COLUMNS=_COLUMNS, num_warps=4
    )
    return fields, entries


@triton.jit
@no_type_check
def maximum(x, y):
    """The larger; NaN if either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def minimum(x, y):
    """The smaller; NaN if either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def finish_chunks(
    PIECES, ITEMS, PIVOT, COUNTS, EXAMPLE, EXAMPLE_PIECE, CHUNK_EXAMPLE, CHUNK_ITEM, TABLE, PARTIAL, F, examples,
    WANT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < F
    chunk = tl.program_id(1)
    pivot = tl.load(PIVOT + columns, mask=mask, other=0.0).to(tl.float64)
    zero = tl.zeros((COLUMNS,), dtype=tl.float64)
    lowest = tl.full((COLUMNS,), float("-inf"), dtype=tl.float32)
    top, bottom = lowest, -lowest
    sum_s, abs_s, s2, sum_u, u2, us = zero, zero, zero, zero, zero, zero
    sum_shift, pool, pool2, tokens, seen = zero, zero, zero, zero, zero
    for index in range(tl.load(CHUNK_EXAMPLE + chunk), tl.load(CHUNK_EXAMPLE + chunk + 1)):
        at = index + 0
        example = tl.load(EXAMPLE + at)
        count = tl.load(COUNTS + example)
        s, u, shift, square = zero, zero, zero, zero
        high, low = lowest, -lowest
        for number in range(tl.load(EXAMPLE_PIECE + at), tl.load(EXAMPLE_PIECE + at + 1)):
            piece = number + 0
            piece = PIECES + piece.to(tl.int64) * 6 * F + columns
            if S & WANT:
                s += tl.load(piece, mask=mask, other=0.0).to(tl.float64)
            if U & WANT:
                u += tl.load(piece + F, mask=mask, other=0.0).to(tl.float64)
            if SHIFT & WANT:
                shift += tl.load(piece + 2 * F, mask=mask, other=0.0).to(tl.float64)
            if SQUARE & WANT:
                square += tl.load(piece + 3 * F, mask=mask, other=0.0).to(tl.float64)
            if PEAK & WANT:
                high = maximum(high, tl.load(piece + 4 * F, mask=mask, other=0.0))
                low = minimum(low, tl.load(piece + 5 * F, mask=mask, other=0.0))
        to = TABLE + example.to(tl.int64) * F + columns
        entry = tl.full((), 1, tl.int64) * examples * F  # a size of 1 is no tensor
        s32, u32 = s.to(tl.float32), u.to(tl.float32)
        if S & WANT:
            tl.store(to, s32, mask=mask)
        if U & WANT:
            tl.store(to + entry, u32, mask=mask)
        if SHIFT & WANT:
            tl.store(to + 2 * entry, (shift + count * pivot).to(tl.float32), mask=mask)
        if SQUARE & WANT:
            tl.store(to + 3 * entry, square.to(tl.float32), mask=mask)
        if PEAK & WANT:
            peak = tl.where(high >= -low, high, low)
            tl.store(to + 4 * entry, tl.where(count > 0, peak, 0.0), mask=mask)
        s, u = s32.to(tl.float64), u32.to(tl.float64)  # fields add what the table holds, rounded as it is
        sum_s += s
        abs_s += tl.abs(s)
        s2 += s * s
        sum_u += u
        u2 += u * u
        us += u * s
        sum_shift += shift
        mean = shift / tl.where(count > 0, count, 1.0)
        pool += mean
        pool2 += mean * mean
        top, bottom = maximum(top, high), minimum(bottom, low)
        tokens += count
        seen += tl.where(count > 0, 1.0, 0.0)
    to = PARTIAL + chunk.to(tl.int64) * PARTS * F + columns
    begin, end = tl.load(CHUNK_ITEM + chunk), tl.load(CHUNK_ITEM + chunk + 1)
    for k in tl.static_range(6):
        total = zero
        if (ITEM_BITS << k) & WANT:
            for item in range(begin, end):
                at_item = item + 0
                at_item = ITEMS + (at_item.to(tl.int64) * 6 + k) * F + columns
                total += tl.load(at_item, mask=mask, other=0.0).to(tl.float64)
        tl.store(to + k * F, total, mask=mask)
    tl.store(to + 6 * F, sum_s, mask=mask)
    tl.store(to + 7 * F, abs_s, mask=mask)
    tl.store(to + 8 * F, s2, mask=mask)
    tl.store(to + 9 * F, sum_u, mask=mask)
    tl.store(to + 10 * F, u2, mask=mask)
    tl.store(to + 11 * F, us, mask=mask)
    tl.store(to + 12 * F, sum_shift, mask=mask)
    tl.store(to + 13 * F, pool, mask=mask)
    tl.store(to + 14 * F, pool2, mask=mask)
    tl.store(to + 15 * F, top.to(tl.float64), mask=mask)
    tl.store(to + 16 * F, bottom.to(tl.float64), mask=mask)
    tl.store(to + 17 * F, tokens, mask=mask)
    tl.store(to + 18 * F, seen, mask=mask)


@triton.jit
@no_type_check
def add_chunks(PARTIAL, part: tl.constexpr, begin, end, F, columns, mask):
    """The sum of one part over chunks, in order."""
    total = tl.zeros(columns.shape, dtype=tl.float64)
    for chunk in range(begin, end):
        at = chunk + 0  # a loop variable is a Python int in the interpreter: an assignment wraps it
        at = PARTIAL + (at.to(tl.int64) * PARTS + part) * F + columns
        total += tl.load(at, mask=mask, other=0.0)
    return total


@triton.jit
@no_type_check
def finish_groups(PARTIAL, PIVOT, GROUP_CHUNK, FIELDS, F, COLUMNS: tl.constexpr):
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = columns < F
    group = tl.program_id(1)
    pivot = tl.load(PIVOT + columns, mask=mask, other=0.0).to(tl.float64)
    begin, end = tl.load(GROUP_CHUNK + group), tl.load(GROUP_CHUNK + group + 1)
    to = FIELDS + group.to(tl.int64) * 17 * F + columns  # in the order of PIECE_FIELDS
    tokens = add_chunks(PARTIAL, 17, begin, end, F, columns, mask)
    seen = add_chunks(PARTIAL, 18, begin, end, F, columns, mask)
    shift = add_chunks(PARTIAL, 12, begin, end, F, columns, mask)
    mean = shift / tl.where(tokens > 0, tokens, 1.0)
    m2 = add_chunks(PARTIAL, 0, begin, end, F, columns, mask) - shift * mean
    pool = add_chunks(PARTIAL, 13, begin, end, F, columns, mask)
    pool_mean = pool / tl.where(seen > 0, seen, 1.0)
    pool_m2 = add_chunks(PARTIAL, 14, begin, end, F, columns, mask) - pool * pool_mean
    tl.store(to, tl.where(tokens > 0, pivot + mean, 0.0), mask=mask)
    tl.store(to + F, tl.where(m2 < 0, 0.0, m2), mask=mask)  # keeps NaN
    tl.store(to + 2 * F, tl.where(seen > 0, pivot + pool_mean, 0.0), mask=mask)
    tl.store(to + 3 * F, tl.where(pool_m2 < 0, 0.0, pool_m2), mask=mask)
    high = tl.full((COLUMNS,), float("-inf"), dtype=tl.float64)
    low = tl.full((COLUMNS,), float("inf"), dtype=tl.float64)
    for chunk in range(begin, end):
        at = chunk + 0
        at = PARTIAL + (at.to(tl.int64) * PARTS + 15) * F + columns
        high = maximum(high, tl.load(at, mask=mask, other=0.0))
        low = minimum(low, tl.load(at + F, mask=mask, other=0.0))
    tl.store(to + 4 * F, low, mask=mask)
    tl.store(to + 5 * F, high, mask=mask)
    tl.store(to + 6 * F, add_chunks(PARTIAL, 1, begin, end, F, columns, mask), mask=mask)
    tl.store(to + 7 * F, add_chunks(PARTIAL, 2, begin, end, F, columns, mask), mask=mask)
    for k in tl.static_range(6):
        tl.store(to + (8 + k) * F, add_chunks(PARTIAL, 6 + k, begin, end, F, columns, mask), mask=mask)
    for k in tl.static_range(3):
        tl.store(to + (14 + k) * F, add_chunks(PARTIAL, 3 + k, begin, end, F, columns, mask), mask=mask)
