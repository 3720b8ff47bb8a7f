"""The model that a suite asks, from the command line, and what becomes of its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuronforget.arguments import check_settings
from neuronforget.commands.console import Folder, with_command
from neuronforget.commands.requests import check_fresh
from neuronforget.edits import Edit
from neuronforget.models import LM, Experts, load
from neuronforget.results import Results


@dataclass(frozen=True)
class Asked:
    """The model that a suite asks."""

    model: str
    """Checkpoint folder or hub id."""
    out: Folder
    """New folder for the results."""
    edit: Folder | None = None
    """Edit written by `erase`, which is applied to the model."""
    batch_size: int = 32
    """Examples in a forward pass."""
    seed: int = 0
    """Seed of the bootstrap."""
    kept: Folder | None = None
    """Folder that keeps what is measured and written, so that a killed run can continue."""
    device: str = "cpu"
    """Device of the model: cpu, cuda, cuda:1."""
    experts: Experts | None = None
    """Read the neurons of routed experts (True), of dense MLPs (False), or of the MLPs that all tokens share beside
    routed experts (shared). If not given: routed or dense, whichever more layers have."""

    def run(self, suite: Callable[..., Results], *given: Any, **settings: Any) -> None:
        """Run a suite on the model with its edit on, write the results, print them."""
        self.check(suite, **settings)
        made = Edit.load(self.edit) if self.edit else None
        lm = self.load(self.model)
        with made.on(lm) if made else nullcontext():
            results = suite(lm, *given, batch_size=self.batch_size, kept=self.kept, seed=self.seed, **settings)
        on = {"file": str(self.edit), **made.info} if made else None
        saved(replace(results, info={**results.info, "edit": on}), self.out)

    def load(self, path: str | Path) -> LM:
        """Load a checkpoint as the model is loaded."""
        return load(path, device=self.device, experts=self.experts)

    def check(self, suite: Callable[..., Results], **settings: Any) -> None:
        """Raise InputError unless the results are new, apart from what else is written, and the suite takes the rest.

        It is said before a model is loaded.
        """
        check_fresh(self.out, {"--kept": self.kept, "--log": settings.get("log")})
        check_settings(suite, {"batch_size": self.batch_size, "seed": self.seed, "kept": self.kept, **settings})


def saved(results: Results, out: Path) -> None:
    """Write results with their command into a new folder, and print a line a row and what was missing."""
    with_command(results).save(out)
    for row in results.rows:
        place = f"{row['edit']:14} {row['corpus']:28} {row['metric']:18}"
        print(f"{place} {row['value']:.4g} [{row['low']:.3g}, {row['high']:.3g}]  n={row['n']}")
    for what, why in dict(results.info.get("missing", {})).items():
        print(f"not measured: {what}: {why}")
    print(f"written to {out}")


def write_figures(out: Path, content: dict[str, Any]) -> None:
    """Write figures as JSON, marked as ours: a later run may replace them, and nothing else."""
    from neuronforget.runs import whole_file

    with whole_file(out) as scratch:
        scratch.write_text(json.dumps({"written_by": "neuronforget", **content}, indent=1) + "\n", encoding="utf-8")
