"""The last step: what was measured becomes a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro

from neuronforget.commands.console import Folder, output, show
from neuronforget.errors import InputError


def report(
    results: Annotated[Path, tyro.conf.Positional],
    *,
    scores: Folder | None = None,
    audits: tuple[Path, ...] = (),
    out: Folder = Path("report.html"),
) -> None:
    """Write the report of results, or of a whole comparison, as one HTML file that needs no network.

    Args:
        results: Folder written by `evaluate` or by `compare`.
        scores: Folder written by `attribute`, to show where the knowledge lies and which neurons were selected.
        audits: Folders written by `audit`, to show their verdicts under the folders' names, with links to their pages.
        out: HTML file to write.
    """
    from neuronforget.comparing.comparison import INDEX, Comparison
    from neuronforget.reporting import report as draw
    from neuronforget.results import Results

    output(out, ".html")
    if (results / INDEX).is_file():
        if scores or audits:
            raise InputError(
                f"{results} is a comparison, which has its own scores and audits: leave out --scores, --audits"
            )
        whole = Comparison.load(results)
        found = whole.results
        whole.report(out, saved=results)
    else:
        found = Results.load(results)
        draw(found, out, **_located(scores), **_audited(audits))
    show(found)
    print(f"written to {out}")


def _located(folder: Path | None) -> dict[str, Any]:
    """What `attribute` wrote, as a report takes it."""
    from neuronforget.neurons import Neurons
    from neuronforget.scores import Scores

    if folder is None:
        return {}
    return {"scores": Scores.load(folder / "scores.safetensors"), "neurons": Neurons.load(folder / "neurons.json")}


def _audited(folders: tuple[Path, ...]) -> dict[str, Any]:
    """What `audit` wrote, likewise."""
    from neuronforget.auditing import Audit

    names = [folder.resolve().name for folder in folders]
    if again := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two audits are called {min(again)!r}: the folder's name is the name in the report")
    pairs = [*zip(names, folders, strict=True)]
    return {
        "audits": {name: Audit.load(folder) for name, folder in pairs},
        "audit_pages": {name: page for name, folder in pairs if (page := folder / "audit.html").is_file()},
    }
