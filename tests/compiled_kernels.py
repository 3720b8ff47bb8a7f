"""The Triton kernels, compiled for GPUs that are not here; run by `test_kernels_compile.py` on its own.

The wheel's own cuobjdump and nvdisasm tell registers, spills and instructions; for AMD the compiler's metadata.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import triton
from neuronforget_kernels import PIECE_FIELDS, TABLE_FIELDS, configs, finishing, fused_kernel, gated_kernel, streaming
from neuronforget_kernels.accumulators import wanted
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

EVERYTHING = wanted(PIECE_FIELDS, TABLE_FIELDS)
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
NVIDIA = pytest.mark.parametrize("arch", [80, 90, 100])
KINDS = ("cuda", "hip", "blackwell", "interpreter")


def rows_of(table: dict[str, Any]) -> Any:
    """Every row of a table for NVIDIA, with what it is compiled for; a card's own row for Hopper."""
    rows = [*((kind, 90) for kind in table if kind not in KINDS), *(("cuda", arch) for arch in (80, 90, 100))]
    return pytest.mark.parametrize(("kind", "arch"), rows)


DTYPES = pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
INDEX = "i32"


def compiled(kernel: Any, target: GPUTarget, types: dict[str, str], fixed: dict[str, Any], **options: Any) -> Any:
    """Compile; integers that name a size or a row stride are told to be multiples of 16, as pointers are."""
    names = list(signature(kernel.fn).parameters)
    kinds = {name: "constexpr" if name in fixed else types[name] for name in names}
    even = [
        n for n in names if n not in fixed and (kinds[n].startswith("*") or n in ("T", "F", "D") or n.endswith("r"))
    ]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=attrs)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})


@dataclass(frozen=True)
class Census:
    """What the assembled kernel uses."""

    registers: int
    stack: int
    local: int
    instructions: Counter[str]

    @property
    def spills(self) -> int:
        return self.stack + self.local + self.instructions["LDL"] + self.instructions["STL"]

    @property
    def atomics(self) -> int:
        """Additions to memory in no fixed order, with which the last bits of a sum would differ from run to run."""
        return sum(self.instructions[name] for name in ("ATOM", "ATOMG", "ATOMS", "RED", "REDG"))


def census(kernel: Any, tmp_path: Path) -> Census:
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])

    def ask(tool: str, flag: str) -> str:
        return subprocess.run([TOOLS / tool, flag, binary], capture_output=True, text=True, check=True).stdout

    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", ask("cuobjdump", "--dump-resource-usage")))
    found = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)((?:\.\w+)*)", ask("nvdisasm", "-c"), re.M)
    # No additions: an exchange publishes a tensor descriptor in global memory, OR and AND book tensor memory.
    found = [name for name, kind in found if not {"EXCH", "OR", "AND"} & {*kind.split(".")}]
    return Census(int(usage["REG"]), int(usage["STACK"]), int(usage["LOCAL"]), Counter(found))


STREAMED = {
    **dict.fromkeys(("W", "PIVOT", "PIECES", "ITEMS"), "*fp32"),
    **dict.fromkeys(("LOW", "HIGH", "ITEM"), "*i32"),
    **dict.fromkeys(("F", "stride_ar", "stride_gr"), INDEX),
}


def moments_kernel(target: GPUTarget, dtype: str, kind: str, weighted: bool = False) -> Any:
    config = configs.STREAMING[kind][4 if dtype == "fp32" else 2]
    fixed = {
        "WANT": EVERYTHING,
        "HAS_W": weighted,
        "COLUMNS": config.columns,
        "ROWS": config.rows,
        "STAGES": config.stages,
    }
    types = {**STREAMED, "A": f"*{dtype}", "G": f"*{dtype}"}
    return compiled(
        streaming.moments_kernel,
        target,
        types,
        {**fixed, "stride_ac": 1, "stride_gc": 1},
        num_warps=config.warps,
    )


@DTYPES
@rows_of(configs.STREAMING)
@pytest.mark.parametrize("weighted", [False, True])
def test_one_pass_keeps_to_its_registers(dtype: str, kind: str, arch: int, weighted: bool, tmp_path: Path) -> None:
    found = census(moments_kernel(GPUTarget("cuda", arch, 32), dtype, kind, weighted), tmp_path)
    assert found.spills == 0
    assert found.registers <= 168  # three blocks of 128 threads on an SM
    assert found.instructions["LDGSTS"] > 0  # asynchronous copies: rows on their way while others are summed
    assert found.atomics == 0  # so equal inputs give equal bits
    assert found.instructions["SHFL"] == 0  # nothing is reduced across threads


@DTYPES
def test_one_pass_does_not_spill_on_amd(dtype: str) -> None:
    kernel = moments_kernel(GPUTarget("hip", "gfx942", 64), dtype, "hip")
    assert re.findall(r"\.(?:vgpr|sgpr)_spill_count:\s*(\d+)", kernel.asm["amdgcn"]) == ["0", "0"]


@NVIDIA
def test_the_finish_neither_spills_nor_adds_out_of_order(arch: int, tmp_path: Path) -> None:
    target = GPUTarget("cuda", arch, 32)
    types = {
        **dict.fromkeys(("PIECES", "ITEMS", "PIVOT", "TABLE"), "*fp32"),
        **dict.fromkeys(("COUNTS", "PARTIAL", "FIELDS"), "*fp64"),
        **dict.fromkeys(("EXAMPLE", "EXAMPLE_PIECE", "CHUNK_EXAMPLE", "CHUNK_ITEM", "GROUP_CHUNK"), "*i32"),
        **dict.fromkeys(("F", "examples"), INDEX),
    }
    chunks = compiled(finishing.finish_chunks, target, types, {"WANT": EVERYTHING, "COLUMNS": 128})
    groups = compiled(finishing.finish_groups, target, types, {"COLUMNS": 128})
    for kernel in (chunks, groups):
        found = census(kernel, tmp_path)
        assert (found.spills, found.atomics) == (0, 0)


@DTYPES
@rows_of(configs.SWIGLU)
def test_the_gated_backward_keeps_to_its_registers(dtype: str, kind: str, arch: int, tmp_path: Path) -> None:
    config = configs.SWIGLU[kind]
    types = {**STREAMED, **dict.fromkeys(("G", "GATE", "UP", "D_GATE", "D_UP"), f"*{dtype}")}
    types |= dict.fromkeys(("stride_zr", "stride_ur"), INDEX)
    fixed = {"WANT": EVERYTHING, "HAS_W": False, "COLUMNS": config.columns, "STAGES": config.stages}
    kernel = compiled(gated_kernel.swiglu_kernel, GPUTarget("cuda", arch, 32), types, fixed, num_warps=config.warps)
    found = census(kernel, tmp_path)
    assert (found.spills, found.atomics) == (0, 0)
    assert found.registers <= 168
    assert found.instructions["LDGSTS"] > 0


def product_kernel(kind: str, arch: int, dtype: str, flat: bool, weighted: bool) -> Any:
    config = configs.GEMM[kind]
    types = {
        **dict.fromkeys(("DELTA", "WRITE", "A"), f"*{dtype}"),
        **dict.fromkeys(("W", "PIECES", "ITEMS"), "*fp32"),
        **dict.fromkeys(("PIECE", "BLOCK", "LOW", "HIGH"), "*i32"),
        **dict.fromkeys(("T", "F", "D", "stride_dr", "stride_wr", "stride_ar"), INDEX),
    }
    fixed = {"TOKENS": config.tokens, "NEURONS": config.neurons, "DEPTH": config.depth, "SPLITS": config.splits}
    fixed |= {"HAS_W": weighted, "FLAT": flat, "PARTS": config.parts, "UPCAST": False}
    target = GPUTarget("cuda", arch, 32)
    return compiled(fused_kernel.fused_kernel, target, types, fixed, num_warps=config.warps, num_stages=config.stages)


@pytest.mark.parametrize("kind", ["cuda", *(kind for kind in configs.GEMM if kind not in KINDS)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_fused_product_uses_hopper_as_it_is_meant_to(
    kind: str, dtype: str, flat: bool, weighted: bool, tmp_path: Path
) -> None:
    kernel = product_kernel(kind, 90, dtype, flat, weighted)
    found = census(kernel, tmp_path)
    assert "wgmma.mma_async" in kernel.asm["ptx"]
    assert found.instructions["HGMMA"] > 0
    assert found.instructions["HMMA"] == 0
    assert found.instructions["UTMALDG"] > 0  # tiles come by the tensor memory accelerator
    assert kernel.metadata.shared <= 232448  # what a block may have
    assert (found.spills, found.atomics) == (0, 0)


def test_the_fused_product_compiles_for_blackwell(tmp_path: Path) -> None:
    kernel = product_kernel("blackwell", 100, "bf16", True, False)
    assert "tcgen05" in kernel.asm["ptx"]
    assert (census(kernel, tmp_path).spills, census(kernel, tmp_path).atomics) == (0, 0)
