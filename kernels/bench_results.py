"""What the benchmarks write: the figures with the device and the versions that they belong to."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

#: The packages whose versions every benchmark states.
PACKAGES = ("torch", "triton", "transformers", "numpy")


def environment(device: str, packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the device and the versions that the figures belong to."""
    found = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "python": platform.python_version()}
    found["device"] = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    for package in packages:
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


def write_results(title: str, results: dict[str, Any], notes: str, folder: Path, kind: str = "") -> Path:
    """Write the results twice, for programs and for people; return the latter's path.

    `results["environment"]` is that of `environment`; every value that is a list of rows becomes a table. The files are
    called <date>-<device>, and -<kind> where several benchmarks write into one folder.
    """
    where = results["environment"]
    named = " ".join([where["device"].lower(), kind])
    stem = f"{where['date'][:10]}-{re.sub('[^a-z0-9]+', '-', named).strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    parts = [f"# {title}, {where['date'][:10]}", ", ".join(f"{k} {v}" for k, v in where.items()), notes]
    for name, rows in results.items():
        if isinstance(rows, list):
            parts += [f"## {name.capitalize()}", table_of(rows)]
    (folder / f"{stem}.md").write_text("\n\n".join(parts) + "\n")
    return folder / f"{stem}.md"
