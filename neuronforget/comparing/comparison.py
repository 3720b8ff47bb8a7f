"""Comparison: everything that came of the whole path, as one folder that can be read back and drawn again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from neuronforget.auditing import Audit
from neuronforget.edits import Edit
from neuronforget.errors import reading
from neuronforget.findings import describe
from neuronforget.findings.closeups import Closeups
from neuronforget.neurons import Neurons
from neuronforget.results import Results
from neuronforget.runs import whole_folder
from neuronforget.scores import Scores

#: What a saved comparison holds; `INDEX` tells one from a folder of results.
INDEX = "comparison.json"
FILES = frozenset({
    INDEX, "results", "scores.safetensors", "neurons.json", "truth.json", "controls", "closeups.safetensors", "edits",
    "audits", "report.html",
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything a report shows: the results, what was selected and why, every edit, audit and finding."""

    results: Results
    scores: Scores
    neurons: Neurons
    truth: Neurons | None
    controls: tuple[Neurons, ...]
    shifts: dict[str, dict[str, list[float]]] = field(repr=False)
    closeups: Closeups = field(repr=False)
    edits: Mapping[str, Edit] = field(repr=False)
    audits: dict[str, Audit] = field(repr=False)

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """What was found, in sentences: read off the rest, so that a comparison saved long ago speaks as a new one."""
        return tuple(describe(self.results, self.neurons, self.truth, self.controls, self.audits))

    def report(self, path: str | Path, *, saved: str | Path | None = None) -> Path:
        """Draw the report; with `saved`, the folder where this comparison lies, it leads to the audits' own pages."""
        from neuronforget.reporting import report

        return report(
            self.results,
            path,
            scores=self.scores,
            neurons=self.neurons,
            truth=self.truth,
            controls=self.controls,
            shifts=self.shifts,
            closeups=self.closeups,
            layers=self.scores.layers,
            findings=self.findings,
            audits=self.audits,
            audit_pages={} if saved is None else {name: _page(Path(saved), name) for name in self.audits},
        )

    def save(self, folder: str | Path, *, replace: bool = False) -> None:
        """Write all of it, and the report, into a new folder (or one that is to be replaced)."""
        from neuronforget.reporting.audit_page import audit_report

        with whole_folder(folder, replace=replace) as scratch:
            self.results.save(scratch / "results")
            self.scores.save(scratch / "scores.safetensors")
            self.neurons.save(scratch / "neurons.json")
            if self.truth is not None:
                self.truth.save(scratch / "truth.json")
            (scratch / "controls").mkdir()
            for i, control in enumerate(self.controls):
                control.save(scratch / "controls" / f"{i}.json")
            self.closeups.save(scratch / "closeups.safetensors")
            (scratch / "edits").mkdir()
            for name, edit in self.edits.items():
                edit.save(_edit(scratch, name))
            for name, found in self.audits.items():
                found.save(_page(scratch, name).parent)
                audit_report(found, _page(scratch, name), title=f"Erased, or only hidden? {name}")
            about = {"edits": [*self.edits], "audits": [*self.audits], "controls": len(self.controls)}
            about |= {"shifts": self.shifts, "findings": self.findings}
            (scratch / INDEX).write_text(json.dumps(about, indent=1), encoding="utf-8")
            self.report(scratch / "report.html", saved=scratch)

    @classmethod
    def load(cls, folder: str | Path) -> Comparison:
        """Read what `save` wrote; an edit is read when it is asked for. Raises InputError for any other folder."""
        folder = Path(folder).absolute()  # edits are read later, wherever one is then
        with reading(folder / INDEX, "comparison"):
            about = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            edits, audits, count = about["edits"], about["audits"], about["controls"]
            shifts = about["shifts"]
        truth = folder / "truth.json"
        return cls(
            Results.load(folder / "results"),
            Scores.load(folder / "scores.safetensors"),
            Neurons.load(folder / "neurons.json"),
            Neurons.load(truth) if truth.exists() else None,
            tuple(Neurons.load(folder / "controls" / f"{i}.json") for i in range(count)),
            shifts,
            Closeups.load(folder / "closeups.safetensors"),
            _Saved(folder, edits),
            {name: Audit.load(_page(folder, name).parent) for name in audits},
        )


class _Saved(Mapping[str, Edit]):
    """The edits of a folder: together they may be larger than memory."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder, self._names = folder, tuple(names)

    def __getitem__(self, name: str) -> Edit:
        if name not in self._names:
            raise KeyError(name)
        return Edit.load(_edit(self._folder, name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _edit(folder: Path, name: str) -> Path:
    return folder / "edits" / f"{name.replace(' ', '-')}.safetensors"


def _page(folder: Path, name: str) -> Path:
    """The page of an audit, in the folder of its numbers."""
    return folder / "audits" / name.replace(" ", "-") / "audit.html"
