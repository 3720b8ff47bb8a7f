"""The whole path in one command: demo, testbed, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuronforget.arguments import check_settings
from neuronforget.commands.console import Data, Folder, Tap, asking_for, lines, named, show, with_command
from neuronforget.errors import InputError
from neuronforget.models import Experts


def demo(
    *,
    testbed: Literal["grafted", "planted", "routed", "ordinary"] = "grafted",
    out: Folder = Path("neuronforget-demo"),
    seed: int = 0,
) -> None:
    """Train a small model, erase some of its facts in nearly twenty ways, and write a report.

    This takes a few minutes on two cores. The trained model is cached, so the next run is faster.

    Args:
        testbed: grafted, planted or routed (the true neurons are known), or ordinary (they are not, which is harder).
        out: Folder for the report and all results. An earlier demo there is replaced.
        seed: Seed of the facts, the model and the methods.
    """
    from neuronforget.comparing.comparison import FILES
    from neuronforget.runs import check_new
    from neuronforget.testbed import people

    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise InputError(f"{out} exists and is not an earlier demo: choose another folder with --out")
    check_new(out, replace=True)  # said before the training, not after it
    _compare_testbed(people(testbed, seed=seed), out, seed=seed, replace=True)


def testbed(
    source: Annotated[Literal["people", "tofu"], tyro.conf.Positional],
    *,
    out: Folder,
    path: Folder | None = None,
    authors: int = 20,
    forget_authors: int = 2,
    kind: Literal["grafted", "planted", "routed", "ordinary"] = "ordinary",
    linked: bool = False,
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Train a small model that knows a corpus, and its gold twin that never saw the part to forget.

    Writes two ordinary checkpoint folders, the corpora and the labels. Continue with `compare --testbed`.

    Args:
        source: people (generated facts) or tofu (real TOFU rows).
        out: New folder for the testbed.
        path: Folder with TOFU's full.jsonl. If not given, it comes from the hub.
        authors: How many TOFU authors (20 rows each), or people, to teach.
        forget_authors: How many of them are to be forgotten.
        kind: ordinary (trained on everything), grafted (facts in fresh neurons), planted (in value vectors) or
            routed (forget examples update chosen neurons only).
        linked: People teach one another, and the model answers two-step questions (with `people` only).
        steps: Training steps. If not given, the source decides.
        seed: Seed of everything that is drawn at random.
    """
    from neuronforget import testbed as beds
    from neuronforget.runs import check_new

    check_new(out)
    if source == "people":
        shape = beds.Shape(steps=steps) if steps is not None else None
        made = beds.people(kind, seed=seed, people=authors, forget_people=forget_authors, linked=linked, shape=shape)
    elif linked:
        raise InputError("--linked is for generated people: TOFU's facts do not chain")
    else:
        with asking_for("--path FOLDER"):
            made = beds.tofu(path, authors, forget_authors, kind=kind, steps=steps, seed=seed)
    made.save(out)
    print(f"{made}\nwritten to {out}; next: neuronforget compare --testbed {out} --out comparison")


def compare(
    *,
    out: Folder,
    testbed: Folder | None = None,
    model: str | None = None,
    forget: str | None = None,
    retain: str | None = None,
    gold: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    template: str | None = None,
    refusals: Folder | None = None,
    operators: tuple[str, ...] = (),
    audited: tuple[str, ...] = ("ablate", "npo"),
    score: str = "grad_x_act",
    share: float = 0.05,
    steps: int = 60,
    seed: int = 0,
    tap: Tap | None = None,
    device: str = "cpu",
    experts: Experts | None = None,
    batch_size: int = 64,
) -> None:
    """Run the whole path: attribution, every method with its controls, evaluation, audits, report.

    Give either --testbed, or --model, --forget and --retain. Writes OUT/report.html and everything behind it.

    Args:
        out: New folder for the report and all results.
        testbed: Folder written by `neuronforget testbed`.
        model: Checkpoint folder or hub id.
        forget: What the model should no longer know: a JSONL file, tofu:SPLIT (from the hub) or tofu:SPLIT@FOLDER.
        retain: What it should keep, in the same form.
        gold: Checkpoint of the gold twin, a model that never knew, if there is one.
        max_tokens: Cut longer sequences to this many tokens. If not given, a sequence that is too long is an error.
        n: Use the first n examples of each corpus.
        template: Format string with {prompt}, or "chat" for the tokenizer's chat template.
        refusals: Text file of refusals, one per line, for DPO.
        operators: Further operators to run (docs/operators.md lists them), or module:function.
        audited: Edits to audit: erased, or only hidden? (--audited without a name: none.)
        score: Name in neuronforget.scores, or module:function.
        share: Share of each layer to select: 0.05 is 5%, 1 is the whole layer, 2 or more is a number of neurons.
        steps: Training steps of every trained method.
        seed: Seed of everything that is drawn at random.
        tap: What reads the activations. If not given: TransformerLens if it knows the model, else plain hooks.
        device: Device of the model: cpu, cuda, cuda:1 (with --model).
        experts: Read the neurons of routed experts (True), dense MLPs (False) or shared experts (with --model). If not
            given: routed or dense, whichever more layers have.
        batch_size: Examples in a forward pass.
    """
    from neuronforget import scores as table
    from neuronforget.comparing import compare as run
    from neuronforget.erase import OPERATORS
    from neuronforget.runs import check_new
    from neuronforget.testbed import Testbed

    check_new(out)
    settings: dict[str, Any] = {"score": named(score, table), "audited": audited, "share": share, "steps": steps}
    settings |= {"operators": tuple(named(operator, OPERATORS) for operator in operators)}
    settings |= {"tap": tap, "batch_size": batch_size, "seed": seed}
    check_settings(run, settings)
    if testbed is not None:
        given = {"model": model, "forget": forget, "retain": retain, "gold": gold, "n": n, "max-tokens": max_tokens}
        _check_alone({**given, "template": template, "refusals": refusals, "experts": experts})
        return _compare_testbed(Testbed.load(testbed), out, **settings)
    if not (model and forget and retain):
        raise InputError("give --testbed, or all of --model, --forget and --retain")
    settings["preferred"] = lines(refusals) if refusals else None
    data = Data(model, forget, retain, max_tokens, n, template, device, experts)
    lm, bad, good = data.both()
    twin = data.load(gold) if gold else None
    _compare(lm, bad, good, out, gold=twin, **settings)


def _check_alone(given: dict[str, Any]) -> None:
    """Raise InputError where an option is given for what a testbed brings."""
    if extra := [name for name, value in given.items() if value is not None]:
        raise InputError(f"a testbed brings its own: leave out --{extra[0]}, or give --model, --forget and --retain")


def _compare_testbed(bed: Any, out: Path, **settings: Any) -> None:
    own = {"gold": bed.gold, "truth": bed.truth, "preferred": bed.refusals or None, "derived": bed.derived}
    _compare(bed.lm, bed.forget, bed.retain, out, **own, **settings)


def _compare(lm: Any, forget: Any, retain: Any, out: Path, *, replace: bool = False, **settings: Any) -> None:
    import shutil
    from dataclasses import replace as changed

    from neuronforget.comparing import compare as run
    from neuronforget.runs import cache_folder, content_key

    unfinished = cache_folder() / "edits" / content_key(model=lm.name, data=(forget.digest(), retain.digest()))
    found = run(lm, forget, retain, resume=unfinished, **settings)
    found = changed(found, results=with_command(found.results))
    found.save(out, replace=replace)
    shutil.rmtree(unfinished, ignore_errors=True)
    show(found.results)
    for line in found.findings:
        print(f"- {line}")
    print(f"\nreport: {out / 'report.html'}")
