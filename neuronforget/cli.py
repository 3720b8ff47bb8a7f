"""The command line: the library's own functions, one command each.

Bad input ends in one line on stderr and exit status 2, with nothing written; Ctrl-C in status 130.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuronforget.errors import InputError

app = tyro.extras.SubcommandApp()

Path_ = Annotated[Path, tyro.conf.arg(metavar="PATH")]


@dataclass(frozen=True)
class Data:
    """The model and the two corpora. A corpus is a JSONL file (rows with "prompt" and "answer", or "text"),
    or `tofu:forget10` (`tofu:forget10@FOLDER` without network)."""

    model: str
    """Checkpoint folder or hub id."""
    forget: str
    """What the model should no longer know."""
    retain: str
    """What it should keep."""
    max_tokens: int | None = None
    """Cut longer sequences (an error otherwise)."""
    n: int | None = None
    """Use the first n examples of each corpus."""
    template: str | None = None
    """Format string with {prompt}, or "chat"."""


@app.command
def demo(
    *,
    testbed: Literal["grafted", "ordinary"] = "grafted",
    out: Path_ = Path("neuronforget-demo"),
    seed: int = 0,
) -> None:
    """Train a small model whose knowledge is known, erase it in every way, and write a report.

    Takes a few minutes on two cores; the trained model is cached, so the next run is faster.

    Args:
        testbed: grafted (the true neurons are known) or ordinary (they are not: the harder case).
        out: Folder for the report and everything behind it; an earlier demo there is replaced.
        seed: Seed of the facts, the model and the methods.
    """
    from neuronforget.testbed import people

    if out.exists() and not (out / "report.html").is_file() and any(out.iterdir()):
        raise InputError(f"{out} exists and is no earlier demo: choose another folder with --out")
    _compare_testbed(people(testbed, seed=seed), out, seed=seed, replace=True)


@app.command
def testbed(
    source: Annotated[Literal["people", "tofu"], tyro.conf.Positional],
    *,
    out: Path_,
    path: Path_ | None = None,
    authors: int = 20,
    forget_authors: int = 2,
    kind: Literal["grafted", "ordinary"] = "ordinary",
    steps: int | None = None,
    seed: int = 0,
) -> None:
    """Train a small model that knows a corpus, and its gold twin that never saw the part to forget.

    Writes two ordinary checkpoint folders, the corpora and the labels; go on with `compare --testbed`.

    Args:
        source: people (generated facts) or tofu (real TOFU rows).
        out: Folder for the testbed; must not exist.
        path: Folder with TOFU's full.jsonl (default: the hub).
        authors: TOFU authors to teach (20 rows each), or people.
        forget_authors: How many of them are to be forgotten.
        kind: ordinary (trained on everything) or grafted (true neurons known).
        steps: Training steps (default: by source).
        seed: Seed.
    """
    from neuronforget import testbed as beds

    if out.exists():
        raise InputError(f"{out} exists: choose another folder")
    if source == "people":
        shape = beds.Shape(steps=steps) if steps else None
        made = beds.people(kind, seed=seed, people=authors, forget_people=forget_authors, shape=shape)
    else:
        made = beds.tofu(path, authors, forget_authors, kind=kind, steps=steps, seed=seed)
    made.save(out)
    _say(f"{made}\nwritten to {out}; next: neuronforget compare --testbed {out} --out comparison")


@app.command
def attribute(
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Path_,
    score: str = "grad_x_act",
    tap: Literal["transformer_lens", "torch_hooks", "nnsight"] | None = None,
    share: float | None = 0.05,
    top: int | None = None,
    batch_size: int = 16,
) -> None:
    """Score every neuron and select some: writes OUT/scores.safetensors, OUT/neurons.json and OUT/map.html.

    Args:
        out: New folder.
        score: Name in neuronforget.scores, or module:function.
        tap: How activations are read (default: TransformerLens where it knows the model).
        share: Select this share of each layer.
        top: Select this many neurons of the whole model instead.
        batch_size: Examples in a batch.
    """
    from neuronforget import figures, select
    from neuronforget import scores as table
    from neuronforget.attribution import attribute as run
    from neuronforget.runs import check_new, whole_folder

    check_new(out)
    lm, forget, retain = _open(data)
    scores = run(lm, forget, retain, score=_named(score, table), tap=tap, batch_size=batch_size)
    neurons = select.top(scores, top) if top is not None else select.per_layer(scores, share or 0.05)
    with whole_folder(out) as scratch:
        scores.save(scratch / "scores.safetensors")
        neurons.save(scratch / "neurons.json")
        figures.attribution_map(scores, neurons).write_html(scratch / "map.html", include_plotlyjs=True)
    _say(f"{scores}\n{neurons}\nwritten to {out}")


@app.command
def erase(
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Path_,
    method: Literal["ablate", "finetune", "rank_one"] = "ablate",
    neurons: Path_ | None = None,
    loss: str = "npo",
    steps: int = 60,
    lr: float | None = None,
    seed: int = 0,
    export: Path_ | None = None,
    resume: Path_ | None = None,
) -> None:
    """Make an edit and write it to a file; the model folder stays as it is.

    Args:
        out: File for the edit (.safetensors).
        method: ablate (needs --neurons), finetune (on --neurons, or the whole model) or rank_one.
        neurons: A neurons.json of `attribute`.
        loss: Name in neuronforget.losses, or module:function (finetune).
        steps: Training steps (finetune).
        lr: Learning rate (finetune; default by size of the model).
        seed: Seed (finetune).
        export: Also write the edited model as a checkpoint folder that plain transformers loads.
        resume: Folder for checkpoints: a killed run continues (finetune).
    """
    from neuronforget import erase as operators
    from neuronforget import losses
    from neuronforget.neurons import Neurons
    from neuronforget.runs import check_writable, whole_file

    check_writable(out)
    if method == "ablate" and neurons is None:
        raise InputError("ablate needs --neurons, a neurons.json written by `neuronforget attribute`")
    chosen = Neurons.load(neurons) if neurons else None
    lm, forget, retain = _open(data)
    if method == "ablate":
        assert chosen is not None
        edit = operators.ablate(lm, chosen)
    elif method == "rank_one":
        edit = operators.rank_one(lm, forget, retain, neurons=chosen)
    else:
        edit = operators.finetune(
            lm, forget, retain, loss=_named(loss, losses), neurons=chosen, steps=steps, lr=lr, seed=seed, resume=resume
        )
    if export:
        edit.export(lm, export)
    with whole_file(out) as scratch:
        edit.save(scratch)
    _say(f"{edit}\n{edit.certificate(lm)}\nwritten to {out}" + (f" and {export}" if export else ""))


@app.command
def evaluate(
    edits: Annotated[tuple[Path, ...], tyro.conf.Positional],
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Path_,
    gold: str | None = None,
    damage: float = 0.05,
    seed: int = 0,
) -> None:
    """Measure edits on both corpora beside the untouched (and gold) model; writes a results folder.

    Args:
        edits: Files written by `erase`.
        out: New folder for the results.
        gold: Checkpoint of a model that never knew, where there is one.
        damage: Rise of the retain loss (nats) at which methods are matched.
        seed: Seed of the bootstrap.
    """
    from neuronforget.edits import Edit
    from neuronforget.evaluation import evaluate as run
    from neuronforget.models import load
    from neuronforget.runs import check_new

    check_new(out)
    made = {path.stem: Edit.load(path) for path in edits}
    lm, forget, retain = _open(data)
    twin = load(gold) if gold else None
    results = run(lm, made, forget, retain, gold=twin, damage=damage, seed=seed)
    results.save(out)
    show(results)
    _say(f"written to {out}; next: neuronforget report {out} --out report.html")


@app.command
def compare(
    *,
    out: Path_,
    testbed: Path_ | None = None,
    model: str | None = None,
    forget: str | None = None,
    retain: str | None = None,
    gold: str | None = None,
    max_tokens: int | None = None,
    n: int | None = None,
    template: str | None = None,
    refusals: Path_ | None = None,
    score: str = "grad_x_act",
    share: float = 0.05,
    steps: int = 60,
    seed: int = 0,
    tap: Literal["transformer_lens", "torch_hooks", "nnsight"] | None = None,
) -> None:
    """Run the whole path: attribution, every way to erase, all controls, evaluation, report.

    Give either --testbed, or --model, --forget and --retain. Writes OUT/report.html and everything behind it.

    Args:
        out: New folder.
        testbed: A folder written by `neuronforget testbed`.
        model: Checkpoint folder or hub id.
        forget: JSONL file or tofu:SPLIT.
        retain: JSONL file or tofu:SPLIT.
        gold: Checkpoint of a model that never knew, where there is one.
        max_tokens: Cut longer sequences (an error otherwise).
        n: Use the first n examples of each corpus.
        template: Format string with {prompt}, or "chat".
        refusals: Text file of refusals, one a line, for DPO.
        score: Name in neuronforget.scores, or module:function.
        share: Share of each layer to select.
        steps: Training steps of every trained method.
        seed: Seed.
        tap: How activations are read.
    """
    from neuronforget import scores as table
    from neuronforget.models import load
    from neuronforget.testbed import Testbed

    settings: dict[str, Any] = {"score": _named(score, table), "share": share, "steps": steps, "tap": tap}
    if testbed is not None:
        _compare_testbed(Testbed.load(testbed), out, seed=seed, **settings)
        return
    if not (model and forget and retain):
        raise InputError("give --testbed, or all of --model, --forget and --retain")
    settings["preferred"] = _lines(refusals) if refusals else None
    lm, bad, good = _open(Data(model, forget, retain, max_tokens, n, template))
    _compare(lm, bad, good, out, seed=seed, gold=load(gold) if gold else None, **settings)


@app.command
def report(results: Annotated[Path, tyro.conf.Positional], *, out: Path_ = Path("report.html")) -> None:
    """Draw the report of a results folder: one HTML file that needs no network.

    Args:
        results: Folder written by `evaluate` (or OUT/results of `compare`).
        out: HTML file.
    """
    from neuronforget.findings import describe
    from neuronforget.reporting import report as draw
    from neuronforget.results import Results

    found = Results.load(results)
    draw(found, out, findings=tuple(describe(found)))
    show(found)
    _say(f"written to {out}")


def show(results: Any) -> None:
    """Print the results as a table, exact match at full strength and at matched damage."""
    from rich.console import Console
    from rich.table import Table

    frame = results.frame
    frame = frame[frame["metric"] == "exact_match"]
    table = Table(title="exact match (95% bootstrap interval)")
    columns = [("full", c) for c in frame["corpus"].unique()]
    columns += [("matched", c) for c in ("forget", "retain") if (frame["point"] == "matched").any()]
    table.add_column("edit")
    for point, corpus in columns:
        table.add_column(f"{corpus}, matched" if point == "matched" else corpus, justify="right")
    for name in frame["edit"].unique():
        rows = frame[frame["edit"] == name]
        cells = [rows[(rows["point"] == p) & (rows["corpus"] == c)] for p, c in columns]
        table.add_row(name, *(_cell(cell.iloc[0]) if len(cell) else "" for cell in cells))
    Console().print(table)


def _cell(row: Any) -> str:
    return f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"


def _compare_testbed(bed: Any, out: Path, **settings: Any) -> None:
    _compare(
        bed.lm, bed.forget, bed.retain, out, gold=bed.gold, truth=bed.truth, preferred=bed.refusals or None, **settings
    )


def _compare(lm: Any, forget: Any, retain: Any, out: Path, *, replace: bool = False, **settings: Any) -> None:
    import shutil

    from neuronforget.comparison import compare as run
    from neuronforget.runs import cache_folder, check_new

    check_new(out, replace=replace)
    found = run(lm, forget, retain, resume=cache_folder() / "edits", **settings)
    if replace and out.exists():
        shutil.rmtree(out)
    found.save(out)
    show(found.results)
    for line in found.findings:
        _say(f"- {line}")
    _say(f"\nreport: {out / 'report.html'}")


def _open(data: Data) -> tuple[Any, Any, Any]:
    """Read the corpora first: a typing error there should not wait for the model."""
    from neuronforget.corpora import check_disjoint
    from neuronforget.models import load

    forget, retain = (_corpus(spec, data) for spec in (data.forget, data.retain))
    check_disjoint(forget, retain)
    return load(data.model), forget, retain


def _corpus(spec: str, data: Data) -> Any:
    from dataclasses import replace

    from neuronforget.corpora import jsonl, tofu

    if spec.startswith("tofu:"):
        split, _, folder = spec.removeprefix("tofu:").partition("@")
        corpus = tofu(split, n=data.n, path=folder or None)
        corpus = replace(corpus, template=data.template) if data.template else corpus
    else:
        corpus = jsonl(spec, n=data.n, template=data.template)
    return replace(corpus, max_tokens=data.max_tokens)


def _named(name: str, module: Any) -> Callable[..., Any]:
    """Return `module`'s function of that name, or `package.module:function`."""
    where, _, function = name.rpartition(":")
    try:
        found = getattr(import_module(where) if where else module, function)
    except (ImportError, AttributeError) as error:
        known = ", ".join(n for n in getattr(module, "__all__", dir(module)) if n.islower() and not n.startswith("_"))
        raise InputError(f"no function {name!r} ({error}); known: {known}; or give module:function") from None
    if not callable(found):
        raise InputError(f"{name!r} is not a function")
    return found


def _lines(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _say(text: str) -> None:
    print(text)


def main() -> None:
    """Run the command line."""
    try:
        app.cli(
            prog="neuronforget", description="Find the neurons that carry knowledge, erase it, measure what that did."
        )
    except InputError as error:
        print(f"neuronforget: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("neuronforget: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
