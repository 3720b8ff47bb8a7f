"""Benchmarks by name: `neuronforget evaluate NAME`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuronforget.commands.asking import Asked, saved, write_figures
from neuronforget.commands.console import Folder, asking_for, output
from neuronforget.edits import Edit


def tofu_logs(
    model: Annotated[Path, tyro.conf.Positional],
    retain_model: Annotated[Path, tyro.conf.Positional],
    *,
    out: Folder,
    form: Literal["legacy", "paper"] = "legacy",
) -> None:
    """Compute TOFU's aggregates from two published evaluation logs. Writes and prints them.

    Args:
        model: Evaluation log of the model that was to forget: one JSON of four blocks, plain or gzipped.
        retain_model: The log of a model that never saw the forget set.
        out: JSON file for the aggregates.
        form: Form of the truth ratio: legacy (the authors' published tables) or paper.
    """
    from neuronforget.runs import check_writable
    from neuronforget.suites.tofu_logs import aggregates, read_log

    check_writable(output(out, ".json"))
    with warnings.catch_warnings(record=True) as said:
        found = aggregates(read_log(model), read_log(retain_model, ("forget",)), form)
    words = [str(warning.message) for warning in said]
    write_figures(out, {"suite": "tofu-logs", "truth_ratio_form": form, "warnings": words, **found})
    print(*(f"warning: {text}" for text in words), sep="\n", end="\n" if words else "", file=sys.stderr)
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
    log: Folder | None = None,
) -> None:
    """Run a model over TOFU's four sets: scores, model utility and, with a retain-only model, forget quality.

    Args:
        split: The forget set.
        data: Folder with the four *_perturbed.jsonl files. If not given, they come from the hub.
        retain_model: Checkpoint of a model that never saw the forget set.
        n: Ask the first n questions of each set (the authors ask 300).
        template: Format string with {prompt}, or "chat". If not given: "Question: {prompt}", "Answer:" on a new line.
        eos: Count the end of sequence as a token of the answer.
        max_new_tokens: Most tokens of an answer.
        log: File for a log in the authors' format, which `evaluate tofu-logs` reads.
    """
    from neuronforget.evaluation.generation import Decoding
    from neuronforget.suites.tofu import tofu as run
    from neuronforget.suites.tofu_questions import Protocol

    asked.check(run, n=n, log=log)
    if log is not None and log.suffix != ".gz":
        output(log, ".json")
    protocol = Protocol(**({"template": template} if template else {}), eos=eos, decoding=Decoding(max_new_tokens, ()))
    retain_lm = asked.load(retain_model) if retain_model else None
    with asking_for("--data FOLDER"):
        asked.run(run, split, path=data, retain_lm=retain_lm, n=n, protocol=protocol, log=log)


def rwku(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    data: Folder,
    targets: tuple[str, ...] = (),
    n: int | None = None,
    template: str | None = None,
    max_new_tokens: int = 32,
) -> None:
    """Ask a model RWKU's probes: three levels, nine attacks, neighbours.

    Args:
        data: Folder with RWKU's files.
        targets: Names of targets. If not given: all.
        n: Ask the first n questions of each level, attack and target.
        template: Format string with {prompt}, or "chat" for the tokenizer's chat template.
        max_new_tokens: Most tokens of an answer.
    """
    from neuronforget.suites.rwku import rwku as run

    settings = {"n": n, "template": template, "max_new_tokens": max_new_tokens}
    asked.run(run, data, targets=list(targets) or None, **settings)


def muse(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    data: str,
    gold: str | None = None,
    n: int | None = None,
    max_tokens: int | None = None,
) -> None:
    """Ask a model MUSE's questions: verbatim and knowledge memory, utility, privacy leak beside a gold twin.

    Args:
        data: Folder with MUSE's parts (verbmem, knowmem, privleak), or a hub id (muse-bench/MUSE-News).
        gold: Checkpoint of a model that never saw the forget texts, for the privacy leak.
        n: Ask the first n rows of each part.
        max_tokens: Cut the texts of the privacy leak to this many tokens.
    """
    from neuronforget.suites.muse import muse as run

    asked.check(run, n=n, max_tokens=max_tokens)
    twin = asked.load(gold) if gold else None
    asked.run(run, data, gold=twin, n=n, max_tokens=max_tokens)


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
        relations: Names of relations. If not given: all.
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
    """Can members be told from non-members? AUC of every attack on the untouched model, the edited one, the gold twin.

    Args:
        members: JSONL file of texts that the model was trained on.
        non_members: JSONL file of texts that it was not trained on.
        gold: Checkpoint of a model that never saw the members.
        reference: Checkpoint of a model that saw neither, for the reference attack.
        attacks: Run only these: loss, zlib, min_k, min_k++, reference, gradient.
        max_tokens: Cut longer texts to this many tokens.
        n: Use the first n texts of each file.
    """
    from neuronforget.corpora import jsonl
    from neuronforget.metrics.membership import ATTACKS
    from neuronforget.metrics.membership import membership as run
    from neuronforget.models import load

    asked.check(run)
    sides = [jsonl(path, n=n, max_tokens=max_tokens) for path in (members, non_members)]
    made = {"edited": Edit.load(asked.edit)} if asked.edit else {}
    twin = asked.load(gold) if gold else None
    other = load(reference, device=asked.device) if reference else None  # of any kind: --experts is not about it
    found = run(
        asked.load(asked.model), *sides, edits=made, gold=twin, reference=other,
        attacks=attacks or ATTACKS, batch_size=asked.batch_size, kept=asked.kept, seed=asked.seed,
    )  # fmt: skip
    saved(found, asked.out)


def utility(
    asked: Annotated[Asked, tyro.conf.arg(name="")],
    *,
    tasks: tuple[str, ...] = (),
    triviaqa: Folder | None = None,
    bbh: Folder | None = None,
    mmlu: Folder | None = None,
    truthfulqa: Folder | None = None,
    limit: int | None = None,
) -> None:
    """Run standard tasks of lm-eval on the model in memory: what else did the edit cost?

    Args:
        tasks: Names of lm-eval's tasks, from the hub.
        triviaqa: Rows of TriviaQA (JSONL), without network.
        bbh: Rows of BBH.
        mmlu: Rows of MMLU.
        truthfulqa: Rows of TruthfulQA.
        limit: Use this many documents of each task, from the first.
    """
    from neuronforget.suites.utility import utility as run

    given = {"triviaqa": triviaqa, "bbh": bbh, "mmlu": mmlu, "truthfulqa": truthfulqa}
    asked.run(run, tasks, local={name: path for name, path in given.items() if path}, limit=limit)


def self_test(*, data: Folder | None = None, n: int = 150) -> None:
    """Run predictors whose scores are known through every scorer. If one fails, it is an error.

    Args:
        data: Folder with bbh, triviaqa, mmlu, truthfulqa and rwku, for their real rows. If not given: generated rows.
        n: Rows of each.
    """
    from neuronforget.suites.selftest import check, real_rows, table

    print(table(check(real_rows(data, n) if data else None)))


#: What may stand after `evaluate`; docs/suites.md has a section on each.
SUITES: dict[str, Callable[..., Any]] = {
    "tofu": tofu,
    "tofu-logs": tofu_logs,
    "rwku": rwku,
    "muse": muse,
    "counterfact": counterfact,
    "pararel": pararel,
    "membership": membership,
    "utility": utility,
    "self-test": self_test,
}
