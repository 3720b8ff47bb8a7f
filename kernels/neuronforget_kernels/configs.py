"""How the kernels cut their work, by device: chosen here and never searched for while working, so that results repeat.

Chosen from ahead-of-time compiles (registers, spills, bytes in flight), not yet from timings on a device: `sweep.py`
times the alternatives and prints the row of a device, which goes under its name (as CUDA gives it).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


@cache
def has_triton() -> bool:
    """Whether Triton is installed; without it every GPU takes the references."""
    return find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run on this device."""
    return device.type == "cuda" and has_triton()


def measured_to_pay(device: torch.device) -> bool:
    """Whether the fused kernel is taken on this device without being asked for."""
    return bool(FUSED) and runs_kernels(device) and kinds_of(device)[0] in FUSED


class Config(NamedTuple):
    """Columns and rows of a block of a streaming kernel, its pipeline stages and warps."""

    columns: int
    rows: int
    stages: int
    warps: int


class GemmConfig(NamedTuple):
    """Neurons, tokens and depth of a tile of the fused kernel, its stages and warps, and programs per column block.

    `parts` of a tile, by tokens, are reduced one after the other: a power of 2.
    """

    neurons: int
    tokens: int
    depth: int
    stages: int
    warps: int
    splits: int
    parts: int


#: Kernel -> device, or kind of device -> its configuration; that of streaming by bytes of an element.
STREAMING: dict[str, dict[int, Config]] = {
    "cuda": {2: Config(512, 2, 4, 4), 4: Config(512, 2, 3, 4)},
    "hip": {2: Config(512, 2, 2, 4), 4: Config(512, 2, 2, 4)},
    "interpreter": {2: Config(64, 2, 1, 4), 4: Config(64, 2, 1, 4)},
}
SWIGLU: dict[str, Config] = {
    "cuda": Config(512, 1, 3, 4),
    "hip": Config(512, 1, 2, 4),
    "interpreter": Config(64, 1, 1, 4),
}
GEMM: dict[str, GemmConfig] = {
    "cuda": GemmConfig(128, 128, 64, 3, 4, 7, 2),  # reduced whole it spills
    "blackwell": GemmConfig(128, 128, 64, 3, 8, 7, 1),
    "interpreter": GemmConfig(32, 32, 32, 1, 4, 2, 2),
}
#: GPUs, by name, on which the fused kernel was measured right, and no slower than the product and the moments after it.
#: On an H200 an earlier form of it was slower (results/2026-11-29-nvidia-h200.md); this one has run on none.
FUSED: frozenset[str] = frozenset()
NARROW = 8192  # neurons up to which a layer has so few column blocks that fewer splits fill the device
NARROW_SPLITS = 3


@cache
def kinds_of(device: torch.device) -> tuple[str, ...]:
    """Return what a device may be listed as, the most particular first: its name, then its kind.

    The interpreter's tensors lie on CPU.
    """
    if device.type != "cuda":
        return ("interpreter",)
    if torch.version.hip:
        return torch.cuda.get_device_name(device), "hip"
    newer = torch.cuda.get_device_capability(device)[0] >= 10
    return (torch.cuda.get_device_name(device), *(["blackwell"] if newer else []), "cuda")


def row_of(table: dict[str, T], device: torch.device) -> T:
    """Return the row of a device."""
    return next(table[kind] for kind in kinds_of(device) if kind in table)


def config_for(device: torch.device, itemsize: int) -> Config:
    """Return the shape of the streaming kernel for elements of `itemsize` bytes (of 8 that for 4)."""
    return row_of(STREAMING, device)[min(itemsize, 4)]


def swiglu_config_for(device: torch.device) -> Config:
    """Return the shape of the SwiGLU backward."""
    return row_of(SWIGLU, device)


def gemm_config_for(device: torch.device, neurons: int) -> GemmConfig:
    """Return the shape of the fused kernel."""
    config = row_of(GEMM, device)
    narrow = neurons <= NARROW and device.type == "cuda"
    return config._replace(splits=min(config.splits, NARROW_SPLITS)) if narrow else config


@contextmanager
def instead(table: dict[str, T], device: torch.device, config: T) -> Iterator[None]:
    """Within the block the device has another row: what the sweep times."""
    name = kinds_of(device)[0]
    known = table.get(name)
    table[name] = config
    try:
        yield
    finally:
        table.pop(name)
        if known is not None:
            table[name] = known
