"""What the tests of the kernels share: draws with poisoned surroundings, ragged segments, one comparison."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

Piece = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def draw(rows: int, neurons: int, seed: int, dtype: torch.dtype = torch.float32, mean: float = 0.5) -> list[Tensor]:
    """Activations and gradients in the middle of memory that is NaN on all sides."""
    generator, found = torch.Generator().manual_seed(seed), []
    for shift in (mean, 0.0):
        whole = torch.full((rows + 2, neurons + 5), math.nan, dtype=dtype)
        inner = whole[1 : rows + 1, 2 : neurons + 2]
        inner.copy_(torch.randn(rows, neurons, generator=generator) + shift)
        found.append(inner)
    return found


def assert_same(found: Piece, expected: Piece, rel: float = 3e-6) -> None:
    """Within `rel` of the largest magnitude of each statistic, or of what cancels in it; counts are equal."""
    assert found[2].tolist() == pytest.approx(expected[2].tolist())
    cancelling = _cancelling(expected[0], float(expected[2].sum()))
    for got, want in zip(found[:2], expected[:2], strict=True):
        for name, values in got.items():
            exact = want[name].double()
            finite = exact[torch.isfinite(exact)]
            scale = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-30)
            if name.endswith("mean"):  # a mean near 0 is found to the rounding of what cancels in it
                scale = max(scale, *(float(want[end].nan_to_num(0, 0, 0).abs().max()) for end in ("min", "max")))
            if name.endswith("m2"):  # a variance of exactly 0 is found to the rounding of the deviations' squares
                scale = max(scale, float(want["mean"].nan_to_num(0.0).square().max()))
            scale = max(scale, cancelling.get(name, 0.0))
            torch.testing.assert_close(
                values.double(), exact, rtol=0, atol=rel * scale, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
            )


def _cancelling(fields: dict[str, Tensor], count: float) -> dict[str, float]:
    """Sizes to the rounding of which sums are found: `sum a g` may be far less than `sum |a g|`, others likewise.

    `sum |g|` is no field: it is at most the root of `sum g^2` times the number of rows (Cauchy-Schwarz).
    """

    def most(name: str) -> float:
        return float(fields[name].nan_to_num(0.0, 0.0, 0.0).max())

    sums = {"sum_a": most("abs_sum")} if "abs_sum" in fields else {}
    if not fields.keys() >= {"abs_ag", "s2", "u2", "g2"}:
        return sums
    size, width, s, u = most("abs_ag"), (most("g2") * count) ** 0.5, most("s2") ** 0.5, most("u2") ** 0.5
    sums |= {"s": size, "abs_s": size, "s2": s * size, "u": width, "u2": u * width}
    return {**sums, "us": max(u * size, s * width)}


def ragged(lengths: list[int], gap: int) -> Tensor:
    """Each example's rows together, `gap` rows left out after each."""
    return torch.cat([torch.tensor([n] * length + [-1] * gap, dtype=torch.long) for n, length in enumerate(lengths)])
