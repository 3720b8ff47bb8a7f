"""Benchmarks by name: `neuronforget evaluate NAME`."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
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


def tofu(
    *,
    model: str,
    out: Folder,
    split: Literal["forget01", "forget05", "forget10"] = "forget10",
    data: Folder | None = None,
    retain_model: str | None = None,
    edit: Folder | None = None,
    n: int | None = None,
    template: str | None = None,
    eos: bool = True,
    max_new_tokens: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    kept: Folder | None = None,
    log: Folder | None = None,
    device: str = "cpu",
) -> None:
    """Run a model over TOFU's four sets: scores, model utility and, with a retain-only model, forget quality.

    Args:
        model: Checkpoint folder or hub id.
        out: New folder for the results.
        split: The forget set.
        data: Folder with the four *_perturbed.jsonl files (default: the hub).
        retain_model: Checkpoint of a model that never saw the forget set.
        edit: An edit written by `erase`, put on the model.
        n: Ask the first n questions of each set (the authors: 300).
        template: Format string with {prompt}, or "chat" (default: "Question: {prompt}", "Answer:" on the next line).
        eos: Count the end of sequence as a token of the answer.
        max_new_tokens: Longest answer.
        batch_size: Answers in a forward pass.
        seed: Seed of the bootstrap.
        kept: Folder for written answers: a killed run goes on.
        log: File for the log in the authors' format, for `evaluate tofu-logs`.
        device: Where the models are put: cpu, cuda, cuda:1.
    """
    from neuronforget.edits import Edit
    from neuronforget.generation import Decoding
    from neuronforget.models import load
    from neuronforget.runs import check_new
    from neuronforget.suites.tofu import tofu as run
    from neuronforget.suites.tofu_questions import Protocol

    check_new(out)
    if log is not None and log.suffix != ".gz":
        output(log, ".json")
    made = Edit.load(edit) if edit else None
    protocol = Protocol(**({"template": template} if template else {}), eos=eos, decoding=Decoding(max_new_tokens, ()))
    lm, retain_lm = load(model, device=device), load(retain_model, device=device) if retain_model else None
    with made.on(lm) if made else nullcontext():
        results = run(
            lm, split, path=data, retain_lm=retain_lm, n=n, protocol=protocol, batch_size=batch_size, seed=seed,
            kept=kept, log=log,
        )  # fmt: skip
    results.save(out)
    for row in results.rows:
        place = f"{row['edit']:12} {row['corpus']:12} {row['metric']:18}"
        print(f"{place} {row['value']:.4g} [{row['low']:.3g}, {row['high']:.3g}]")
    print(f"forget quality: {results.info['forget_quality']}\nwritten to {out}")


def _write(out: Path, content: dict[str, Any]) -> None:
    """Write figures as JSON, marked as ours: a later run may replace them, and nothing else."""
    from neuronforget.runs import whole_file

    with whole_file(out) as scratch:
        scratch.write_text(json.dumps({"written_by": "neuronforget", **content}, indent=1) + "\n", encoding="utf-8")


#: What may stand after `evaluate`; docs/suites.md has a section on each.
SUITES: dict[str, Callable[..., Any]] = {
    "tofu": tofu,
    "tofu-logs": tofu_logs,
}
