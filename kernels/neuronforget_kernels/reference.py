"""The one reference of the neuron moments, for tests, benchmark and machines without a kernel.

From activations `a` and gradients `g` of one piece (a batch of one layer), rows being tokens and columns
neurons, it returns per neuron: over tokens the count, mean and M2 of `a`, `sum |a|`, `count(a > 0)`, min,
max, `sum |a g|`, `sum (a g)^2`, `sum g^2`; over examples the sums of `s`, `|s|`, `s^2`, `u`, `u^2`, `u s`
with `s = sum_t a g` and `u = sum_t g`, and mean and M2 of each example's mean activation.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Fields that add when pieces are merged; the others follow Chan's rule, a minimum or a maximum.
SUMS = ("abs_sum", "positive", "s", "abs_s", "s2", "u", "u2", "us", "abs_ag", "ag2", "g2")
PIECE_FIELDS = ("mean", "m2", "pool_mean", "pool_m2", "min", "max", *SUMS)
#: Columns of the per-example table.
TABLE_FIELDS = ("s", "u", "sum_a", "sum_a2", "peak")


def neuron_moments(
    a: Tensor,
    g: Tensor,
    segments: Tensor,
    examples: int,
    *,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Return (fields, table, token counts) for `a`, `g` of shape [rows, neurons], any float dtype and strides.

    `segments` [rows] gives each row's example (0 .. examples - 1) or -1 for a row to leave out, whose values
    are never read. Fields are fp64 [neuron]; table entries fp32 [example, neuron]; an example without rows
    counts with s = u = 0 and stays out of the pooled mean. Sums of `a g` and `g` run in fp32 within an example,
    the rest in fp64, so that a large mean costs no variance its digits. NaN in a row that is read makes every
    statistic of its neuron NaN that depends on it, except `positive`, which does not count it.

    `weights` [rows], at least 0, multiply each row's share of every sum and of the counts, but no minimum,
    maximum or peak; 0 leaves the row out. `groups` [examples] numbers each example's group from 0; fields are
    then [group, neuron], each group's as if it were alone.
    """
    if a.shape != g.shape or a.ndim != 2 or segments.shape != a.shape[:1]:
        found = ", ".join(str(tuple(x.shape)) for x in (a, g, segments))
        raise ValueError(f"a and g must be [rows, neurons], segments [rows]; found {found}")
    keep = segments >= 0 if weights is None else (segments >= 0) & (weights > 0)
    a, g, segments = a[keep].float(), g[keep].float(), segments[keep]
    w = torch.ones((len(a), 1), device=a.device) if weights is None else weights[keep, None].float()
    counts = torch.bincount(segments, None if weights is None else w[:, 0].double(), minlength=examples)
    sums = _by_example(w.double() * a.double(), segments, examples)
    table = {
        "s": _by_example(w * a * g, segments, examples),
        "u": _by_example(w * g, segments, examples),
        "sum_a": sums.float(),
        "sum_a2": _by_example(w * a * a, segments, examples),
        "peak": _signed_peak(a, segments, examples),
    }
    if groups is None:
        return _fields(a, g, w, sums, table, counts), table, counts
    parts = []
    for number in range(int(groups.max()) + 1):
        own = groups == number
        rows, entries = own[segments], {name: values[own] for name, values in table.items()}
        parts.append(_fields(a[rows], g[rows], w[rows], sums[own], entries, counts[own]))
    return {name: torch.stack([part[name] for part in parts]) for name in PIECE_FIELDS}, table, counts


def _fields(
    a: Tensor, g: Tensor, w: Tensor, sums: Tensor, table: dict[str, Tensor], counts: Tensor
) -> dict[str, Tensor]:
    """The fields of one group from its rows and its examples."""
    ag, rows = a * g, len(a)
    s, u = table["s"].double(), table["u"].double()
    mean, m2 = _mean_m2(a.double(), w.double())
    seen = counts > 0
    pooled = sums[seen] / counts[seen, None]
    pool_mean, pool_m2 = _mean_m2(pooled, torch.ones_like(pooled[:, :1]))
    nothing = torch.full((a.shape[1],), torch.inf, dtype=torch.float64, device=a.device)
    return {
        "mean": mean,
        "m2": m2,
        "pool_mean": pool_mean,
        "pool_m2": pool_m2,
        "min": a.amin(0).double() if rows else nothing,
        "max": a.amax(0).double() if rows else -nothing,
        "abs_sum": (w * a.abs()).sum(0, dtype=torch.float64),
        "positive": (w * (a > 0)).sum(0, dtype=torch.float64),
        "s": s.sum(0),
        "abs_s": s.abs().sum(0),
        "s2": (s * s).sum(0),
        "u": u.sum(0),
        "u2": (u * u).sum(0),
        "us": (u * s).sum(0),
        "abs_ag": (w * ag.abs()).sum(0, dtype=torch.float64),
        "ag2": (w * ag * ag).sum(0, dtype=torch.float64),
        "g2": (w * g * g).sum(0, dtype=torch.float64),
    }


def _by_example(values: Tensor, segments: Tensor, examples: int) -> Tensor:
    out = values.new_zeros((examples, values.shape[1]))
    return out.index_add_(0, segments, values)


def _signed_peak(a: Tensor, segments: Tensor, examples: int) -> Tensor:
    """The value of largest magnitude within each example; 0 for an example without rows."""
    index = segments[:, None].expand_as(a)
    zeros = a.new_zeros((examples, a.shape[1]))
    high = zeros.scatter_reduce(0, index, a, "amax", include_self=True)
    low = zeros.scatter_reduce(0, index, a, "amin", include_self=True)
    return torch.where(high >= -low, high, low)


def _mean_m2(values: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and sum of squared deviations from it, 0 of nothing; two passes over fp64 values."""
    if not len(values):
        return values.new_zeros(values.shape[1]), values.new_zeros(values.shape[1])
    mean = (w * values).sum(0) / w.sum()
    return mean, (w * (values - mean) ** 2).sum(0)
