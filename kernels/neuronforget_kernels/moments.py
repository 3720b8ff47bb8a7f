"""neuron_moments(): the statistics of one layer's activations and gradients, by the fastest means at hand.

On CUDA one pass of a Triton kernel, on CPU blocks that stay in the cache or, if asked, compiled code, elsewhere the
reference. That one says what each number is and is what the tests and the benchmark hold all against.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from neuronforget_kernels.accumulators import (
    ACTIVATION_FIELDS,
    ACTIVATION_TABLE,
    GRADIENT,
    wanted,
)
from neuronforget_kernels.compiled import compiled_piece_sums
from neuronforget_kernels.configs import runs_kernels
from neuronforget_kernels.layout import Layout
from neuronforget_kernels.reference import PIECE_FIELDS, TABLE_FIELDS
from neuronforget_kernels.reference import neuron_moments as reference
from neuronforget_kernels.rows import row_moments

#: Fields fp64 [neuron] ([group, neuron] with groups), table entries fp32 [example, neuron], counts [example].
Piece = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


@torch.no_grad()
def neuron_moments(
    a: Tensor,
    g: Tensor | None,
    segments: Tensor | Layout,
    examples: int | None = None,
    *,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
    fields: Collection[str] | None = None,
    table: Collection[str] | None = None,
    compiled: bool = False,
) -> Piece:
    """Return (fields, table, counts) for `a`, `g` of shape [rows, neurons], any float dtype and strides.

    `segments`, `examples`, `weights` and `groups` are those of `Layout.of`; for many layers of one batch, make
    the `Layout` once and give it instead. `fields` and `table` name what is wanted (default: everything that the
    inputs allow; without `g`, what activations alone give): the rest is neither computed nor read. Definitions
    are those of `reference.neuron_moments`. NaN and infinity in a row that is read reach every statistic of the
    neuron that depends on them (`positive` counts no NaN); rows left out are never read. Equal inputs give equal
    bits on one machine. `compiled` lets `torch.compile` fuse the work on a CPU: faster from the second call on, and
    with a warning as before where there is no compiler; equal then only to rounding between processes, since PyTorch
    stops compiling after some kinds of input (its recompile limit). Raises ValueError for shapes that do not fit.
    """
    layout = _layout_of(segments, examples, weights, groups)
    fields = fields if fields is not None else PIECE_FIELDS if g is not None else ACTIVATION_FIELDS
    table = table if table is not None else TABLE_FIELDS if g is not None else ACTIVATION_TABLE
    return named(moment_rows(a, g, layout, fields, table, compiled=compiled), layout, fields, table)


@torch.no_grad()
def moment_rows(
    a: Tensor,
    g: Tensor | None,
    layout: Layout,
    fields: Collection[str],
    table: Collection[str],
    *,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the unnamed moments: `PIECE_FIELDS` [group, field, neuron], `TABLE_FIELDS` [entry, example, neuron].

    Rows that are not asked for hold anything; where no entry is, there may be no examples. Raises ValueError for shapes
    that do not fit.
    """
    if a.ndim != 2 or (g is not None and a.shape != g.shape) or layout.rows != len(a):
        found = ", ".join(str(tuple(x.shape)) for x in (a, g) if x is not None)
        raise ValueError(f"a and g must be [rows, neurons], segments [rows]; found {found} and {layout.rows} rows")
    want = wanted(fields, table)
    if g is None and want & GRADIENT:
        raise ValueError("these statistics need the gradients g; ask for fields and table entries of a alone")
    if layout.order is not None:
        a, g = a[layout.order], None if g is None else g[layout.order]
    if a.device.type == "cpu":
        return row_moments(a, g, layout, want, wanted((), table), compiled_piece_sums() if compiled else None)
    if runs_kernels(a.device):
        from neuronforget_kernels.streaming import streamed_moments

        return streamed_moments(a, g, layout, want)
    return reference_rows(a, g, layout)


def reference_rows(a: Tensor, g: Tensor | None, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return all rows by the reference, which needs no kernel; those that depend on a missing `g` mean nothing."""
    groups = layout.group.to(a.device) if layout.grouped and layout.examples else None
    fields, table, _ = reference(
        a, a if g is None else g, layout.segments, layout.examples, weights=layout.weights, groups=groups
    )
    rows = torch.stack([fields[name].view(-1, a.shape[1]) for name in PIECE_FIELDS], 1)
    return rows, torch.stack([table[name] for name in TABLE_FIELDS])


def named(found: tuple[Tensor, Tensor], layout: Layout, fields: Collection[str], table: Collection[str]) -> Piece:
    """Name the rows of [group, field, neuron] and [entry, example, neuron]; without groups the first of them goes."""
    values = found[0] if layout.grouped else found[0][0]
    by_name = {name: value for name, value in zip(PIECE_FIELDS, values.unbind(-2), strict=True) if name in fields}
    entries = {name: entry for name, entry in zip(TABLE_FIELDS, found[1].unbind(), strict=True) if name in table}
    return by_name, entries, layout.counts


def _layout_of(
    segments: Tensor | Layout, examples: int | None, weights: Tensor | None, groups: Tensor | None
) -> Layout:
    if isinstance(segments, Layout):
        if examples is not None or weights is not None or groups is not None:
            raise ValueError("examples, weights and groups belong to the Layout: give them to Layout.of")
        return segments
    if examples is None:
        raise ValueError("say how many examples the segments number")
    return Layout.of(segments, examples, weights=weights, groups=groups)
