"""TOFU (Maini et al. 2024, arXiv:2401.06121): a model asked the four sets, scored as the authors' logs are.

The model's own log is in the authors' format, and what is reported are that log's aggregates: both paths are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.from_tofu import ROWS_PER_AUTHOR
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import generate
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import nll
from neuronforget.metrics.text import rouge_l
from neuronforget.metrics.tofu import SETS, Form, model_utility
from neuronforget.models import LM
from neuronforget.results import Results, model_tables
from neuronforget.results.intervals import resampled
from neuronforget.runs import check_writable, environment
from neuronforget.suites.answers import check_name, constant
from neuronforget.suites.tofu_logs import Block, Log, aggregates, scores, write_log
from neuronforget.suites.tofu_questions import Protocol, Questions, check_room, questions

FORMS: dict[Form, str] = {"legacy": "", "paper": "_paper"}
MISSING = "it compares with a model that never saw the forget set; give retain_lm (--retain-model)"


@checks_kinds
def tofu(
    lm: LM,
    split: str = "forget10",
    *,
    path: str | Path | None = None,
    retain_lm: LM | None = None,
    n: int | None = None,
    protocol: Protocol | None = None,
    batch_size: int = 32,
    seed: int = 0,
    kept: str | Path | None = None,
    log: str | Path | None = None,
    name: str = "model",
    progress: bool = True,
) -> Results:
    """Measure a model on TOFU: probability, ROUGE-L recall and truth ratio of four sets, utility and forget quality.

    Rows are of the corpora "retain", "forget", "real_authors", "real_world" and, for the model utility, "all"; metrics
    that end in "_paper" have the truth ratio in the paper's form, the others in the legacy form of published tables;
    "words" is how long the written answers are, as ROUGE recall does not fall with what else is said; rows of the edit
    "best constant" are the recall of one and the same answer to every question of a set (`answers.constant`).
    Intervals are over authors on the first two sets, over questions on the others. The forget quality has none: rows
    drawn with repeats are no sample for its test. Raises InputError for an unknown split, rows that are not TOFU's or
    do not fit the model, and a loss that is NaN.

    Args:
        path: Folder with the four `*_perturbed.jsonl` files (default: the hub).
        retain_lm: A model that never saw the forget set; it is asked that set too. Without it there is no forget
            quality, and `info["forget_quality"]` says so.
        n: Ask the first n rows of each set (the authors: 300).
        kept: Folder for losses and written answers: a killed run goes on, and answers can be scored again.
        log: File for the log in the authors' format (`.json`, `.json.gz`).
        name: What the model is called in the rows.
    """
    check_name(name, "retain_only")
    if log is not None:
        check_writable(log)
    protocol = protocol or Protocol()
    sets = questions(split, path, n, protocol)
    models = {name: (lm, sets)} | ({"retain_only": (retain_lm, {"forget": sets["forget"]})} if retain_lm else {})
    for model, own in models.values():
        check_room(model, own, protocol.decoding)
    settings: dict[str, Any] = {"batch_size": batch_size, "kept": kept, "progress": progress}
    logs = {key: ask(model, own, protocol, **settings) for key, (model, own) in models.items()}
    if log is not None:
        write_log(log, logs[name])
    info: dict[str, Any] = {"suite": "tofu", "split": split, "model": lm.name, "digest": lm.digest()}
    info |= {"device": str(lm.device), "seed": seed}
    info |= {"dtype": str(next(iter(lm.parameters.values())).dtype), "protocol": asdict(protocol)}
    info |= {"truth_ratio": "legacy (published tables); *_paper: as the paper defines it", "versions": environment()}
    info |= {"forget_quality": f"against {retain_lm.name}" if retain_lm else f"not measured: {MISSING}"}
    info |= {"missing": {} if retain_lm else {"forget quality": MISSING}}
    info |= {"data": {corpus: own.answers.digest() for corpus, own in sets.items()}}
    best = {corpus: constant(rouge_l, [[e.answer] for e in own.truth]) for corpus, own in sets.items()}
    info |= {"best constants": {corpus: {"rouge": text} for corpus, (text, _) in best.items()}}
    columns = [(corpus, "rouge", values, _units(corpus, len(values))) for corpus, (_, values) in best.items()]
    found = results(logs, seed, info)
    return replace(found, rows=found.rows + model_tables("best constant", columns, seed)[0])


def ask(
    lm: LM,
    sets: Mapping[str, Questions],
    protocol: Protocol,
    *,
    batch_size: int = 32,
    kept: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Block]:
    """Return the model's log: the loss of every answer, and what it writes. Raises InputError for a NaN loss."""
    log = {}
    for name, own in tqdm(sets.items(), desc="tofu", disable=not progress):
        loss = measure(lm, own.answers, [nll], batch_size=batch_size, kept=kept)["nll"]
        if not np.isfinite(loss).all():
            raise InputError(f"{own.truth.name}: the model's loss is NaN or infinite: it is broken, not forgetful")
        texts = generate(lm, own.truth, protocol.decoding, batch_size=batch_size, kept=kept, progress=progress)
        pairs, n = list(zip(own.truth, texts, strict=True)), len(texts)
        log[name] = Block(
            rows=tuple(map(str, range(n))),
            truth=loss[:n],
            paraphrase=loss[n : 2 * n],
            wrong=loss[2 * n :].reshape(n, -1),
            rouge=np.array([rouge_l(text, [example.answer]) for example, text in pairs], dtype=float),
            written=tuple((example.prompt, text, example.answer) for example, text in pairs),
        )
    return log


def results(logs: Mapping[str, Log], seed: int, info: dict[str, Any]) -> Results:
    """Return the rows of the first log and, as a reference, of the retain-only model's forget set."""
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    for edit, log in logs.items():
        columns = [
            (corpus, metric, values, _units(corpus, len(values)))
            for corpus, block in log.items()
            for metric, values in _columns(corpus, block).items()
        ]
        own, behind = model_tables(edit, columns, seed)
        rows += own
        examples += behind
    edit, *others = logs
    rows += _aggregated(edit, logs[edit], logs[others[0]] if others else None, seed)
    return Results(tuple(rows), tuple(examples), info)


def _columns(corpus: str, block: Block) -> dict[str, ndarray]:
    """Return each row's scores, the truth ratio in both forms, and how many words were written."""
    words = np.array([float(len(text.split())) for _, text, _ in block.written])
    found = scores(corpus, block) | {"truth_ratio_paper": scores(corpus, block, "paper")["truth_ratio"]}
    return found | ({"words": words} if block.written else {})


def _units(corpus: str, count: int) -> ndarray:
    """Twenty questions of one author stand and fall together; those of the real sets are each their own."""
    return np.arange(count) // (ROWS_PER_AUTHOR if corpus in ("retain", "forget") else 1)


def _aggregated(edit: str, log: Log, retain_only: Log | None, seed: int) -> list[dict[str, Any]]:
    """Return the rows of what is one number for the whole model."""
    units = {corpus: _units(corpus, len(block.rows)) for corpus, block in log.items()}
    kept = np.concatenate([[f"{corpus} {unit}" for unit in units[corpus]] for corpus in SETS if corpus != "forget"])
    found = [
        (f"model_utility{ending}", "all", *_utility(log, units, form, seed), kept) for form, ending in FORMS.items()
    ]
    if retain_only is not None:
        quality = aggregates(log, retain_only)
        for metric in ("forget_quality_p", "forget_quality_ks"):
            found.append((metric, "forget", quality[metric], np.nan, np.nan, units["forget"]))
    names = {"edit": edit, "scope": "reference", "strength": 0.0, "point": "full"}
    return [
        {**names, "corpus": corpus, "metric": metric, "value": value, "low": low, "high": high}
        | {"n": len(own), "units": len(np.unique(own)), "nan": 0, "seed": seed}
        for metric, corpus, value, low, high, own in found
    ]


def _utility(log: Log, units: Mapping[str, ndarray], form: Form, seed: int) -> tuple[float, float, float]:
    """Return (model utility, low, high); the three scores of a question are drawn together, the sets apart."""
    drawn = {
        f"{corpus}_{metric}": resampled(values, seed + i, units=units[corpus])
        for i, corpus in enumerate(SETS)
        for metric, values in scores(corpus, log[corpus], form).items()
    }
    low, high = np.quantile(model_utility(drawn), [0.025, 0.975])
    return aggregates(log, form=form)["model_utility"], float(low), float(high)
