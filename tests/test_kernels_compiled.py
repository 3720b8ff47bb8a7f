"""The moments through torch.compile are the reference's, and without a compiler those of the blocks."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import assert_same, draw, ragged
from neuronforget_kernels import PIECE_FIELDS, TABLE_FIELDS, Layout, compiled, neuron_moments
from neuronforget_kernels.accumulators import wanted
from neuronforget_kernels.blocks import BlockSums
from neuronforget_kernels.compiled import CompiledSums, compiled_piece_sums, piece_sums, terms
from neuronforget_kernels.reference import neuron_moments as reference

ROOT = Path(__file__).parent.parent
COMPILED = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")


@pytest.mark.slow
@COMPILED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_moments_are_those_of_the_reference(dtype: torch.dtype) -> None:
    weighed = dtype is torch.bfloat16  # each combination compiles anew, so not all are tried
    for lengths, neurons in (([700, 9, 1], 150), ([3, 0, 5], 1100)):
        segments = ragged(lengths, 1)
        a, g = draw(len(segments), neurons, 0, dtype, mean=3.0)  # NaN all around, and strides
        a[segments < 0], g[segments < 0] = math.nan, math.inf
        a[1, 7], g[2, 9] = math.nan, math.nan
        weights = torch.rand(len(segments), generator=torch.Generator().manual_seed(1)) if weighed else None
        groups = torch.tensor([1, 0, 1]) if weighed else None
        found = neuron_moments(a, g, segments, 3, weights=weights, groups=groups, compiled=True)
        expected = reference(a, g, segments, 3, weights=weights, groups=groups)
        assert_same(found, expected, rel=1e-5)
        assert compiled_piece_sums() is not None


@pytest.mark.slow
@COMPILED
def test_compiled_moments_of_activations_alone() -> None:
    segments = ragged([9, 3], 0)
    a, g = draw(12, 10, 6)
    found = neuron_moments(a, None, segments, 2, compiled=True)
    assert set(found[1]) == {"sum_a", "sum_a2", "peak"}
    assert_same(found, reference(a, g, segments, 2))


def test_each_term_is_what_its_accumulator_says() -> None:
    a, g, pivot = torch.tensor([[-2.0, 3.0]]), torch.tensor([[5.0, -1.0]]), torch.tensor([1.0, 1.0])
    bases, rest = [[-3, 2], [5, -1], [-10, -3]], [[2, 3], [0, 1], [10, 3]]
    expected = [*bases, [4, 9], *([x * x for x in row] for row in bases), *rest]
    assert torch.cat(terms(a, g, pivot)).tolist() == expected
    sums, extremes = piece_sums(a.expand(1, 2, 2), g.expand(1, 2, 2), pivot, torch.tensor([[[1.0], [0.5]]]))
    assert sums.tolist() == [[[1.5 * x for x in row] for row in expected]]
    assert extremes.tolist() == [[[-2, 3]], [[2, -3]]]


@pytest.mark.parametrize("rows", [2, 5, 8, 1024])
@pytest.mark.parametrize("mixed", [2, 64])
@pytest.mark.parametrize("weighed", [False, True])
def test_pieces_of_any_length_share_calls_and_long_ones_take_several(
    weighed: bool, mixed: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "ROWS", rows)
    monkeypatch.setattr(compiled, "MIXED", mixed)
    segments = ragged([7, 1, 0, 3, 3], 2)
    a, g = draw(len(segments), 20, 3, mean=2.0)
    a[segments < 0], g[segments < 0] = math.nan, math.inf
    a[int((segments == 3).nonzero()[0]), 4] = math.nan  # is that example's own
    a[int((segments == 1).nonzero()[-1]), 6] = math.inf  # of a short piece's last row, which is repeated
    weights = torch.rand(len(segments), generator=torch.Generator().manual_seed(1)) if weighed else None
    layout = Layout.of(segments, 5, weights=weights)
    blocks, own = BlockSums(layout, 20, wanted(PIECE_FIELDS, TABLE_FIELDS)), CompiledSums(layout, 20, piece_sums)
    pivot = a[layout.sample].nan_to_num(0.0, 0.0, 0.0).mean(0)
    mine, theirs = own(a, g, pivot), blocks(a, g, pivot)
    for one, other in ((mine[0], theirs[0]), (mine[1].sum(0), theirs[1].sum(0)), (mine[2], theirs[2])):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_without_a_compiler_a_warning_says_so_and_the_moments_are_the_same(tmp_path: Path) -> None:
    code = """
import torch, warnings
from neuronforget_kernels import neuron_moments
a, segments = torch.randn(9, 6), torch.arange(9) // 3
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = [neuron_moments(a, a, segments, 3, compiled=x) for x in (True, True, False)]
print([str(w.message) for w in caught if "moments are not compiled" in str(w.message)])
assert all(torch.equal(f[0][k], found[2][0][k]) for f in found for k in f[0])
"""
    environment = {**os.environ, "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-800:]
    assert done.stdout.count("torch.compile does not work here") == 1
