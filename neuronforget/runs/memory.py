"""How much memory is left: of the machine, of what a container or job scheduler grants, of a GPU."""

from __future__ import annotations

from pathlib import Path

import torch

#: Where Linux keeps the memory limits of process groups: the folder, and the files of limit and use in a group.
#: Of two versions; of the second one all controllers share a folder.
GROUPS = {
    "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
}
OWN_GROUPS = Path("/proc/self/cgroup")


def free_bytes(device: torch.device) -> int:
    """Return the memory that is left on a device, that which PyTorch holds there without using it included."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    import psutil

    return min([psutil.virtual_memory().available, *left_to_groups()])


def left_to_groups() -> list[int]:
    """Return what each limit on this process' groups leaves; none where there are no limits, or no such files."""
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, kinds, path in lines:
        if (kind := "memory" if "memory" in kinds.split(",") else kinds) in GROUPS:
            folder, limit, use = GROUPS[kind]
            inner = folder / path.lstrip("/")
            found += [_left(group, limit, use) for group in (inner, *inner.parents) if group.is_relative_to(folder)]
    return [left for left in found if left is not None]


def _left(group: Path, limit: str, use: str) -> int | None:
    """What a group may still take: files that it has read and that can be dropped do not count as taken."""
    try:
        granted, used = (group / limit).read_text().strip(), int((group / use).read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # this group has none, or does not show it
        return None
    if not granted.isdecimal():  # "max"
        return None
    return max(0, int(granted) - used + int(kept.get("total_inactive_file", kept.get("inactive_file", 0))))
