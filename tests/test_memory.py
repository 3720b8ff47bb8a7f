"""What memory is left: of the machine, of the limits on a container's processes, of a GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from neuronforget.runs import memory

VERSIONS = {
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "12:cpu,memory:/job/step"),
    "": ("memory.max", "memory.current", "inactive_file", "0::/job/step"),
}


@pytest.fixture(params=VERSIONS)
def group(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The files of a group `job` that may hold 1000 bytes, holds 400, 150 of them files read; `step` has no limit."""
    limit, use, files, line = VERSIONS[request.param]
    for folder, granted in ((tmp_path / "job", "1000"), (tmp_path / "job" / "step", "max")):
        folder.mkdir()
        (folder / limit).write_text(f"{granted}\n")
        (folder / use).write_text("400\n")
        (folder / "memory.stat").write_text(f"anon 250\n{files} 150\n")
    (tmp_path / "cgroup").write_text(f"5:devices:/\n{line}\n")
    monkeypatch.setattr(memory, "GROUPS", {request.param: (tmp_path, limit, use)})
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "cgroup")
    return limit


def test_a_containers_limit_is_what_is_left(group: str, tmp_path: Path) -> None:
    assert memory.left_to_groups() == [1000 - 400 + 150]
    assert memory.free_bytes(torch.device("cpu")) == 750
    (tmp_path / "job" / group).write_text("max\n")
    assert memory.left_to_groups() == []


def test_where_nothing_limits_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5))
    assert memory.free_bytes(torch.device("cpu")) == 5
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "none")
    assert memory.left_to_groups() == []


def test_memory_that_torch_holds_on_a_gpu_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("memory_reserved", 50), ("memory_allocated", 30), ("mem_get_info", (100, 1000))):
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    assert memory.free_bytes(torch.device("cuda")) == 120
