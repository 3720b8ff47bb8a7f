"""Testbed: a model, its gold twin, the two corpora and, where they are known, the true neurons."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuronforget.corpora import Corpus, jsonl
from neuronforget.errors import InputError, reading
from neuronforget.models import LM, load
from neuronforget.neurons import Neurons
from neuronforget.runs import whole_folder

#: What a corpus is besides its examples.
SETTINGS = ("name", "template", "eos", "max_tokens")


@dataclass(frozen=True, eq=False)
class Testbed:
    """`lm` knows forget and retain, `gold` never saw forget; `truth` are the neurons that hold forget.

    `refusals` are answers in the model's own vocabulary that decline; `info` says how it was made, which
    planted neurons are dead (undone alone, they change nothing: no selection is asked to find them), and how
    well data-free detectors find the planted ones (AUROC and its 95% interval; 0.5: at chance). `derived` are
    questions that follow from forget, where there are some: `lm` was taught them, `gold` was not.
    """

    lm: LM
    gold: LM
    forget: Corpus
    retain: Corpus
    truth: Neurons | None
    refusals: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    derived: Corpus | None = None

    @property
    def planted(self) -> Neurons | None:
        """Every neuron that the forget facts were trained into, dead ones too.

        Undoing them all gives `gold`, but for the routed kind, where all else was trained beside them.
        """
        if "dead" not in self.info:
            return None
        dead = frozenset((layer, j) for layer, j in self.info["dead"])
        alive = self.truth.members if self.truth is not None else frozenset()
        return Neurons(dead | alive, tuple(site.layer for site in self.lm.sites), self.lm.shape[1])

    def __repr__(self) -> str:
        where = f"{len(self.truth)} true neurons" if self.truth is not None else "no location labels"
        return (
            f"Testbed({self.info.get('kind')}, {len(self.forget)} forget, {len(self.retain)} retain examples, {where})"
        )

    def save(self, folder: str | Path) -> None:
        """Write two ordinary checkpoint folders, the corpora and the labels into a new folder."""
        with whole_folder(folder) as scratch:
            self.lm.save(scratch / "model")
            self.gold.save(scratch / "gold")
            if self.truth is not None:
                self.truth.save(scratch / "truth.json")
            corpora = {"forget": self.forget, "retain": self.retain}
            if self.derived is not None:
                corpora["derived"] = self.derived
            for name, corpus in corpora.items():
                corpus.save(scratch / f"{name}.jsonl")
            settings = {name: {key: getattr(c, key) for key in SETTINGS} for name, c in corpora.items()}
            body = {"info": self.info, "refusals": self.refusals, "corpora": settings}
            (scratch / "testbed.json").write_text(json.dumps(body, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Testbed:
        """Read what `save` wrote."""
        folder = Path(folder)
        if not (folder / "testbed.json").is_file():
            raise InputError(
                f"{folder} is not a testbed: it has no testbed.json (make one with `neuronforget testbed`)"
            )
        with reading(folder / "testbed.json", "testbed"):
            body = json.loads((folder / "testbed.json").read_text(encoding="utf-8"))
            settings, refusals, info = body["corpora"], tuple(body["refusals"]), body["info"]
            corpora = {name: jsonl(folder / f"{name}.jsonl", **own) for name, own in settings.items()}
            forget, retain, derived = corpora["forget"], corpora["retain"], corpora.get("derived")
        truth = Neurons.load(folder / "truth.json") if (folder / "truth.json").is_file() else None
        lm, gold = load(folder / "model"), load(folder / "gold")
        return cls(lm, gold, forget, retain, truth, refusals, info, derived)
