"""Benchmarks by name: `neuronforget evaluate NAME`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuronforget.commands.console import Folder, output


def tofu_logs(
    model: Annotated[Path, tyro.conf.Positional],
    retain_model: Annotated[Path, tyro.conf.Positional],
    *,
    out: Folder,
    form: Literal["legacy", "paper"] = "legacy",
) -> None:
    """Compute TOFU's aggregates from two published evaluation logs; writes and prints them.

    Args:
        model: Evaluation log of the model that was to forget: one JSON of four blocks, plain or gzipped.
        retain_model: The log of a model that never saw the forget set.
        out: JSON file for the aggregates.
        form: Form of the truth ratio: legacy (the authors' published tables) or paper.
    """
    from neuronforget.runs import check_writable
    from neuronforget.suites.tofu_logs import aggregates, read_log

    check_writable(output(out, ".json"))
    found = aggregates(read_log(model), read_log(retain_model, ("forget",)), form)
    _write(out, {"suite": "tofu-logs", "truth_ratio_form": form, **found})
    for name, value in found.items():
        print(f"{name:26} {value:.6g}")
    print(f"written to {out}")


def _write(out: Path, content: dict[str, Any]) -> None:
    """Write figures as JSON, marked as ours: a later run may replace them, and nothing else."""
    from neuronforget.runs import whole_file

    with whole_file(out) as scratch:
        scratch.write_text(json.dumps({"written_by": "neuronforget", **content}, indent=1) + "\n", encoding="utf-8")


#: What may stand after `evaluate`.
SUITES: dict[str, Callable[..., Any]] = {
    "tofu-logs": tofu_logs,
}
