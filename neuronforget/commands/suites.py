"""Benchmarks by name: `neuronforget evaluate NAME`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuronforget.commands.console import Folder, output
from neuronforget.edits import Edit
from neuronforget.models import load
from neuronforget.results import Results
from neuronforget.runs import check_new


@dataclass(frozen=True)
class Asked:
    """The model that a suite asks."""

    model: str
    """Checkpoint folder or hub id."""
    out: Folder
    """New folder for the results."""
    edit: Folder | None = None
    """An edit written by `erase`, put on the model."""
    batch_size: int = 32
    """Examples in a forward pass."""
    seed: int = 0
    """Seed of the bootstrap."""
    device: str = "cpu"
    """Where the model is put: cpu, cuda, cuda:1."""

    def run(self, suite: Callable[..., Results], *given: Any, **settings: Any) -> None:
        """Run a suite on the model with its edit on, write the results, print them."""
        check_new(self.out)
        made = Edit.load(self.edit) if self.edit else None
        lm = load(self.model, device=self.device)
        with made.on(lm) if made else nullcontext():
            results = suite(lm, *given, batch_size=self.batch_size, seed=self.seed, **settings)
        saved(results, self.out)


def saved(results: Results, out: Path) -> None:
    """Write results into a new folder, and print a line a row and what was missing."""
    results.save(out)
    for row in results.rows:
        place = f"{row['edit']:14} {row['corpus']:28} {row['metric']:18}"
        print(f"{place} {row['value']:.4g} [{row['low']:.3g}, {row['high']:.3g}]  n={row['n']}")
    for what, why in dict(results.info.get("missing", {})).items():
        print(f"not measured: {what}: {why}")
    print(f"written to {out}")


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


def tofu(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    split: Literal["forget01", "forget05", "forget10"] = "forget10",
    data: Folder | None = None,
    retain_model: str | None = None,
    n: int | None = None,
    template: str | None = None,
    eos: bool = True,
    max_new_tokens: int = 200,
    kept: Folder | None = None,
    log: Folder | None = None,
) -> None:
    """Run a model over TOFU's four sets: scores, model utility and, with a retain-only model, forget quality.

    Args:
        split: The forget set.
        data: Folder with the four *_perturbed.jsonl files (default: the hub).
        retain_model: Checkpoint of a model that never saw the forget set.
        n: Ask the first n questions of each set (the authors: 300).
        template: Format string with {prompt}, or "chat" (default: "Question: {prompt}", "Answer:" on the next line).
        eos: Count the end of sequence as a token of the answer.
        max_new_tokens: Longest answer.
        kept: Folder for written answers: a killed run goes on.
        log: File for the log in the authors' format, for `evaluate tofu-logs`.
    """
    from neuronforget.generation import Decoding
    from neuronforget.suites.tofu import tofu as run
    from neuronforget.suites.tofu_questions import Protocol

    check_new(asked.out)
    if log is not None and log.suffix != ".gz":
        output(log, ".json")
    protocol = Protocol(**({"template": template} if template else {}), eos=eos, decoding=Decoding(max_new_tokens, ()))
    retain_lm = load(retain_model, device=asked.device) if retain_model else None
    asked.run(run, split, path=data, retain_lm=retain_lm, n=n, protocol=protocol, kept=kept, log=log)


def rwku(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    data: Folder,
    targets: tuple[str, ...] = (),
    n: int | None = None,
    template: str | None = None,
    max_new_tokens: int = 32,
    kept: Folder | None = None,
) -> None:
    """Ask a model RWKU's probes: three levels, nine attacks, neighbours.

    Args:
        data: Folder with RWKU's files.
        targets: Names of targets (default: all).
        n: Ask the first n questions of each level, attack and target.
        template: Format string with {prompt}, or "chat".
        max_new_tokens: Longest answer.
        kept: Folder for written answers: a killed run goes on.
    """
    from neuronforget.suites.rwku import rwku as run

    settings = {"n": n, "template": template, "max_new_tokens": max_new_tokens, "kept": kept}
    asked.run(run, data, targets=list(targets) or None, **settings)


def counterfact(asked: Annotated[Asked, tyro.conf.arg(name="")], *, data: Folder, n: int | None = None) -> None:
    """Compare CounterFact's true and new objects: efficacy, paraphrase, neighbourhood.

    Args:
        data: CounterFact's rows (.jsonl, .jsonl.gz).
        n: Use the first n rows.
    """
    from neuronforget.suites.facts import counterfact as run

    asked.run(run, data, n=n)


def pararel(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    data: Folder,
    relations: tuple[str, ...] = (),
    n: int | None = None,
) -> None:
    """Ask PARAREL's facts in every pattern: answered, at best, at worst, consistently.

    Args:
        data: Folder with facts.jsonl and patterns.jsonl.
        relations: Names of relations (default: all).
        n: Use the first n facts of each relation.
    """
    from neuronforget.suites.facts import pararel as run

    asked.run(run, data, relations=tuple(relations) or None, n=n)


def membership(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    members: Folder,
    non_members: Folder,
    gold: str | None = None,
    reference: str | None = None,
    attacks: tuple[str, ...] = (),
    max_tokens: int | None = None,
    n: int | None = None,
) -> None:
    """Can members be told from non-members? AUC of every attack, untouched, with the edit, and of the gold twin.

    Args:
        members: Texts that were trained on (JSONL).
        non_members: Texts that were not.
        gold: Checkpoint of a model that never saw the members.
        reference: Checkpoint of a model that saw neither, for the reference attack.
        attacks: Run these alone: loss, zlib, min_k, min_k++, reference, gradient.
        max_tokens: Cut longer texts.
        n: Use the first n texts of each.
    """
    from neuronforget.corpora import jsonl
    from neuronforget.metrics.membership import ATTACKS
    from neuronforget.metrics.membership import membership as run

    check_new(asked.out)
    sides = [jsonl(path, n=n, max_tokens=max_tokens) for path in (members, non_members)]
    made = {"edited": Edit.load(asked.edit)} if asked.edit else {}
    twin, other = (load(path, device=asked.device) if path else None for path in (gold, reference))
    found = run(
        load(asked.model, device=asked.device), *sides, edits=made, gold=twin, reference=other,
        attacks=attacks or ATTACKS, batch_size=asked.batch_size, seed=asked.seed,
    )  # fmt: skip
    saved(found, asked.out)


def _write(out: Path, content: dict[str, Any]) -> None:
    """Write figures as JSON, marked as ours: a later run may replace them, and nothing else."""
    from neuronforget.runs import whole_file

    with whole_file(out) as scratch:
        scratch.write_text(json.dumps({"written_by": "neuronforget", **content}, indent=1) + "\n", encoding="utf-8")


#: What may stand after `evaluate`; docs/suites.md has a section on each.
SUITES: dict[str, Callable[..., Any]] = {
    "tofu": tofu,
    "tofu-logs": tofu_logs,
    "rwku": rwku,
    "counterfact": counterfact,
    "pararel": pararel,
    "membership": membership,
}
