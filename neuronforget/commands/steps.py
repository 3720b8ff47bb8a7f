"""One step at a time: attribute, erase, evaluate, audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuronforget.arguments import check_settings
from neuronforget.commands.console import Data, Folder, Tap, assigned, built, lines, named, show, with_command
from neuronforget.commands.requests import Places, check_apart, check_fresh
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.scores import Scores


def attribute(
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Folder,
    score: str = "grad_x_act",
    tap: Tap | None = None,
    share: float | None = None,
    top: int | None = None,
    whole_experts: int | None = None,
    set: tuple[str, ...] = (),
    batch_size: int = 16,
    resume: Folder | None = None,
) -> None:
    """Score every neuron and select some. Writes OUT/scores.safetensors, OUT/neurons.json and OUT/map.html.

    Args:
        out: New folder for the scores and the selection.
        score: Name in neuronforget.scores, or module:function.
        tap: What reads the activations. If not given: TransformerLens if it knows the model, else plain hooks.
        share: Share of each layer to select: 0.05 is 5% (the default), 1 is the whole layer, 2 or more so many neurons.
        top: Select this many neurons of the whole model instead.
        whole_experts: Select all neurons of this many routed experts of the whole model instead.
        set: Settings of the score, each NAME=VALUE: --set contrast=z; for exact --set position=-1.
        batch_size: Examples in a batch.
        resume: Folder that keeps what is recorded so far, so that a killed run can continue.
    """
    from neuronforget import scores as table
    from neuronforget.attribution import GIVEN, check_score
    from neuronforget.attribution import attribute as run
    from neuronforget.reporting.maps import map_pictures
    from neuronforget.reporting.pages import Section, page
    from neuronforget.runs import whole_folder
    from neuronforget.runs.ranks import launched

    check_fresh(out, {"--resume": resume})
    chosen, asked = named(score, table), assigned(set, batch_size=batch_size, resume=resume)
    check_settings(run, asked)
    check_score(chosen, data.forget, data.retain, {name: asked[name] for name in asked if name not in GIVEN})
    lm, forget, retain = data.open()
    selected = _selection(lm, share, top, whole_experts)  # says what is wrong
    scores = run(lm, forget, retain, score=chosen, tap=tap, **asked)
    if launched(lm.device).rank > 0:  # under torchrun the first process writes for all
        return
    neurons = selected(scores)
    with whole_folder(out) as scratch:
        scores.save(scratch / "scores.safetensors")
        neurons.save(scratch / "neurons.json")
        where = Section("Where the knowledge lies", pictures=map_pictures(scores, neurons, None, ()))
        page(scratch / "map.html", f"{scores.name}: {forget.name}", [where])
    print(f"{scores}\n{neurons}\nwritten to {out}")


def _selection(lm: LM, share: float | None, top: int | None, experts: int | None) -> Callable[[Scores], Neurons]:
    """Return the rule that was asked for. Raises InputError for two of them, and for one that the model cannot fill."""
    from neuronforget import select
    from neuronforget.models.sites import experts_of_a_layer

    layers, width = lm.shape
    asked = {"--share": share, "--top": top, "--whole-experts": experts}
    if len(given := [name for name, value in asked.items() if value is not None]) > 1:
        raise InputError(f"{given[0]} and {given[1]} are two selections: leave one of them out")
    if experts is not None:
        select.how_many(experts, layers * experts_of_a_layer(lm.model, lm.sites), "experts")
        return lambda scores: select.experts(lm, scores, experts)
    if top is not None:
        select.how_many(top, layers * width)
        return lambda scores: select.top(scores, top)
    part = 0.05 if share is None else share
    select.how_many(part, width)
    return lambda scores: select.per_layer(scores, part)


def erase(
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Folder | None = None,
    ledger: Folder | None = None,
    request: str | None = None,
    method: str = "ablate",
    neurons: Folder | None = None,
    loss: str | None = None,
    refusals: Folder | None = None,
    reinforced: Folder | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    set: tuple[str, ...] = (),
    export: Folder | None = None,
    resume: Folder | None = None,
) -> None:
    """Make an edit and write it to a file, or into a ledger of requests. The model folder is not changed.

    Args:
        out: File for the edit (.safetensors).
        ledger: Folder of a ledger. The edit is made on top of the requests in it and becomes one more.
        request: Name of this request in the ledger.
        method: Operator of neuronforget.erase (docs/operators.md lists them), or module:function.
        neurons: A neurons.json written by `attribute`. Some operators need it; others then edit these neurons only.
        loss: Name in neuronforget.losses, or module:function (for finetune). If not given: npo.
        refusals: Text file of refusals, one per line, for losses that prefer them. If not given: the `wrong` answers.
        reinforced: An edit that learned the forget corpus (--loss learn), for --loss whp.
        steps: Steps of training, or of the search for a target. If not given, the operator decides.
        lr: Learning rate of these steps. If not given, the operator decides.
        seed: Seed, for operators that draw at random.
        set: Further settings of the operator or its loss, each NAME=VALUE: --set layers=[3,4] "lora={'rank': 4}".
        export: New folder for the edited model, which plain transformers loads. If this is refused, the edit is kept.
        resume: Folder for checkpoints, so that a killed run can continue (finetune, task_vector).
    """
    from neuronforget import losses
    from neuronforget.edits import Edit
    from neuronforget.erase.catalogue import OPERATORS, addressed, check_call, make
    from neuronforget.runs.ranks import launched

    places = Places.of(data.model, out, ledger, export, request)
    check_apart({"--ledger": ledger, "--export": export, "--resume": resume})
    operator = named(method, OPERATORS)
    chosen = Neurons.load(neurons) if neurons else None
    asked = assigned(
        set, steps=steps, lr=lr, seed=seed, resume=resume, loss=named(loss, losses) if loss else None,
        preferred=lines(refusals) if refusals else None, reinforced=Edit.load(reinforced) if reinforced else None,
    )  # fmt: skip
    given = addressed(operator, built(operator, asked))
    check_call(operator, chosen, given, retain=data.retain is not None)
    lm, forget, retain = data.open()
    places.replay(lm)
    edit = make(operator, lm, forget, retain, neurons=chosen, **given)
    if launched(lm.device).rank > 0:  # under torchrun the first process writes for all
        return
    certificate = edit.certificate(lm)
    written = places.write(lm, edit)
    print(f"{edit}\n{certificate}\nwritten to {' and '.join(written)}")


def evaluate(
    edits: Annotated[tuple[Path, ...], tyro.conf.Positional],
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Folder,
    gold: str | None = None,
    damage: float | None = 0.05,
    divergence: float | None = 0.05,
    metrics: tuple[str, ...] = (),
    batch_size: int = 64,
    seed: int = 0,
    kept: Folder | None = None,
) -> None:
    """Measure edits on both corpora, beside the untouched model and the gold twin. Writes a folder of results.

    `evaluate NAME` runs a benchmark instead: tofu, rwku, muse and others (`evaluate tofu --help`; docs/suites.md).

    Args:
        edits: Files written by `erase`.
        out: New folder for the results.
        gold: Checkpoint of the gold twin, a model that never knew, if there is one.
        damage: Rise of the retain loss (nats per token) at which methods are matched, or None.
        divergence: KL from the untouched model on retain (nats per token) at which they are also matched, or None.
        metrics: Further metrics of each example: names in neuronforget.metrics, or module:function.
        batch_size: Examples in a forward pass.
        seed: Seed of the bootstrap.
        kept: Folder that keeps what is measured, so that a killed run can continue.
    """
    from neuronforget import metrics as table
    from neuronforget.edits import Edit
    from neuronforget.evaluation import evaluate as run
    from neuronforget.evaluation.measuring import METRICS

    check_fresh(out, {"--kept": kept})
    names = [path.stem for path in edits]
    if again := {name for name in names if names.count(name) > 1}:
        raise InputError(f"two edits are called {min(again)!r}: the file's name is the name in the table")
    made = {path.stem: Edit.load(path) for path in edits}
    own = [metric for metric in dict.fromkeys(metrics) if metric not in {known.__name__ for known in METRICS}]
    settings: dict[str, Any] = {"metrics": (*METRICS, *(named(metric, table) for metric in own)), "seed": seed}
    settings |= {"damage": damage, "divergence": divergence, "batch_size": batch_size, "kept": kept}
    check_settings(run, settings)
    lm, forget, retain = data.both()
    twin = data.load(gold) if gold else None
    results = with_command(run(lm, made, forget, retain, gold=twin, **settings))
    checked = {name: one.certificate(lm).entry() for name, one in made.items()}
    results = replace(results, info={**results.info, "certificates": checked})
    results.save(out)
    show(results)
    print(f"written to {out}; next: neuronforget report {out} --out report.html")


def audit(
    edit: Annotated[Path, tyro.conf.Positional],
    data: Annotated[Data, tyro.conf.arg(name="")],
    *,
    out: Folder,
    gold: str | None = None,
    derived: Folder | None = None,
    probes: tuple[str, ...] = (),
    batch_size: int = 64,
    seed: int = 0,
    kept: Folder | None = None,
) -> None:
    """Is the knowledge erased or only hidden? Writes OUT/audit.json, its tables, and OUT/audit.html.

    Args:
        edit: File written by `erase`, or the checkpoint folder of a model that was unlearned elsewhere.
        out: New folder for the audit.
        gold: Checkpoint of the gold twin, a model that never knew, if there is one.
        derived: JSONL file of questions that the request does not name, but whose answer needs a forgotten fact.
        probes: Use only these, besides plain asking:
            worst phrasing, attacks, choice, consequences, quantisation, relearning, lens, patching.
        batch_size: Examples in a forward pass.
        seed: Seed of the bootstrap and of relearning.
        kept: Folder that keeps what is measured, so that a killed audit can continue.
    """
    from neuronforget.auditing import audit as run
    from neuronforget.corpora import jsonl
    from neuronforget.edits import Edit
    from neuronforget.reporting.audit_page import audit_report
    from neuronforget.runs import whole_folder

    check_fresh(out, {"--kept": kept})
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "kept": kept}
    check_settings(run, settings)
    made = None if edit.is_dir() else Edit.load(edit)
    lm, forget, retain = data.both()
    other = made or data.load(edit)
    twin = data.load(gold) if gold else None
    what = jsonl(derived, template=data.template, max_tokens=data.max_tokens) if derived else None
    found = run(lm, other, forget, retain, gold=twin, derived=what, probes=probes or None, **settings)
    found = replace(found, results=with_command(found.results))
    with whole_folder(out) as scratch:
        found.save(scratch)
        audit_report(found, scratch / "audit.html")
    print(f"{found}\nwritten to {out}; open {out / 'audit.html'}")
