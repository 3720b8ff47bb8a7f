"""How the kernels cut their work, by device: chosen here and never searched for, so that results repeat.

Chosen from ahead-of-time compiles (registers, spills, bytes in flight), not yet from timings on a device.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch


@cache
def has_triton() -> bool:
    """Whether Triton is installed; without it every GPU takes the references."""
    return find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run on this device."""
    return device.type == "cuda" and has_triton()


class Config(NamedTuple):
    """Columns and rows of a block of a streaming kernel, its pipeline stages and warps."""

    columns: int
    rows: int
    stages: int
    warps: int


class GemmConfig(NamedTuple):
    """Neurons, tokens and depth of a tile of the fused kernel, its stages and warps, and programs per column block."""

    neurons: int
    tokens: int
    depth: int
    stages: int
    warps: int
    splits: int


#: By bytes of an element.
_STREAMING: dict[str, dict[int, Config]] = {
    "cuda": {2: Config(512, 2, 4, 4), 4: Config(512, 2, 3, 4)},
    "hip": {2: Config(512, 2, 2, 4), 4: Config(512, 2, 2, 4)},
    "interpreter": {2: Config(64, 2, 1, 4), 4: Config(64, 2, 1, 4)},
}
_SWIGLU: dict[str, Config] = {
    "cuda": Config(512, 1, 3, 4),
    "hip": Config(512, 1, 2, 4),
    "interpreter": Config(64, 1, 1, 4),
}
_GEMM: dict[str, GemmConfig] = {
    "cuda": GemmConfig(128, 128, 64, 3, 4, 7),  # 256 tokens spill: an example's border cuts through the tile
    "blackwell": GemmConfig(128, 128, 64, 3, 8, 7),
    "interpreter": GemmConfig(32, 32, 32, 1, 4, 2),
}


def kind_of(device: torch.device) -> str:
    """Return the row of the tables: cuda, hip, or the interpreter's, whose tensors lie on CPU."""
    if device.type != "cuda":
        return "interpreter"
    return "hip" if torch.version.hip else "cuda"


def config_for(device: torch.device, itemsize: int) -> Config:
    """Return the shape of the streaming kernel for elements of `itemsize` bytes."""
    return _STREAMING[kind_of(device)][itemsize]


def swiglu_config_for(device: torch.device) -> Config:
    """Return the shape of the SwiGLU backward."""
    return _SWIGLU[kind_of(device)]


def gemm_config_for(device: torch.device, neurons: int) -> GemmConfig:
    """Return the shape of the fused kernel: narrow layers have fewer column blocks, so fewer splits fill the device."""
    kind = kind_of(device)
    if kind == "cuda" and torch.cuda.get_device_capability(device)[0] >= 10:
        kind = "blackwell"
    config = _GEMM[kind]
    return config if neurons > 8192 or kind == "interpreter" else config._replace(splits=3)
