"""audit(): is the knowledge erased, or only hidden? Every probe, every subject, one verdict with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.auditing.audits import Audit
from neuronforget.auditing.cases import (
    DAMAGE,
    EDITED,
    GOLD,
    UNTOUCHED,
    Case,
    NotTested,
    Probe,
    Reading,
    Subject,
    consequences,
    plain,
)
from neuronforget.auditing.depth import lens, patching
from neuronforget.auditing.neurons import moved, units
from neuronforget.auditing.prompts import attacks, choice, worst_phrasing
from neuronforget.auditing.quantisation import quantisation
from neuronforget.auditing.relearning import relearning
from neuronforget.auditing.verdicts import decide, judge
from neuronforget.corpora import Corpus, check_disjoint, digests_of
from neuronforget.corpora.corpus import texts_of
from neuronforget.edits import Edit
from neuronforget.errors import InputError
from neuronforget.evaluation import check_references
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import Metric, kl_gold
from neuronforget.models import LM, check_whole
from neuronforget.models.sites import expert_info
from neuronforget.results import Results, Tables, example_rows, tidy_row
from neuronforget.results.intervals import difference, mean, over
from neuronforget.runs import environment

#: Every probe by name. One's own is a function `(case, metric) -> readings`, given by name beside these.
PROBES: dict[str, Probe] = {
    "asked": plain, "worst phrasing": worst_phrasing, "attacks": attacks, "choice": choice,
    "consequences": consequences, "quantisation": quantisation, "relearning": relearning, "lens": lens,
    "patching": patching,
}  # fmt: skip


@checks_kinds
def audit(
    lm: LM,
    edit: Edit | LM,
    forget: Corpus,
    retain: Corpus,
    *,
    gold: LM | None = None,
    derived: Corpus | None = None,
    probes: Sequence[str] | None = None,
    own: dict[str, Probe] | None = None,
    batch_size: int = 64,
    kept: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Ask the edited model in every way for what it should not know, beside the untouched model and the gold twin.

    `edit` may be a model that somebody else unlearned, of the same architecture. `gold` is the model that never knew:
    whatever it shows too is no knowledge. Without it each probe says what stood in for it, or that it was not asked.
    `derived` are questions that take a forgotten fact (in two steps, say) and that the request does not name.
    `probes` are names of `PROBES` (default: all), `own` more of one's own. `kept` is a folder for what is measured: a
    killed audit goes on, losing a batch, or one model's relearning, at most. All models are left as they were. Raises
    InputError for corpora that share examples, models that do not fit, and unknown probes.
    """
    check_disjoint(forget, retain)
    if derived is not None:
        check_disjoint(forget, derived)
    check_whole(lm)
    check_references(lm, gold)
    chosen = _chosen(probes, own or {})
    subjects = _subjects(lm, edit, gold)
    case = Case(subjects, forget, retain, batch_size, seed, derived, Path(kept) if kept is not None else None)
    metric = case.metric()
    readings, not_tested = _asked(case, chosen, metric, progress)
    checks = judge(readings, seed)
    try:
        neurons = _neurons(case)
    except InputError as why:  # all that was asked is not to be lost for it
        neurons, not_tested["neurons"] = {"units": units(case)}, str(why)
    guard = edit.guard.kind if isinstance(edit, Edit) and edit.guard is not None else None
    damage = {**_damage(case, metric, readings), "guard": guard}
    results = Results(*_tables(readings, seed), info=_info(lm, edit, gold, (forget, retain, derived), seed))
    verdict = decide(checks, guard, damage["nan"], damage["destroyed"])
    return Audit(verdict, tuple(checks), {**not_tested, **case.skipped}, damage, case.curves, neurons, results)


def _subjects(lm: LM, edit: Edit | LM, gold: LM | None) -> tuple[Subject, ...]:
    """Return the models that are asked. Raises InputError for an edit, or an edited model, that does not fit."""
    edited = Subject(EDITED, edit) if isinstance(edit, LM) else Subject(EDITED, lm, edit)
    if edited.lm.shape != lm.shape:
        raise InputError(f"the model to audit has layers and neurons {edited.lm.shape}, the untouched one {lm.shape}")
    with edited.on():  # an edit that does not fit is refused here
        pass
    return (Subject(UNTOUCHED, lm), edited, *([Subject(GOLD, gold)] if gold is not None else []))


def _asked(
    case: Case, probes: dict[str, Probe], metric: Metric, progress: bool
) -> tuple[list[Reading], dict[str, str]]:
    """Return what the probes read, and why some were not made; the first NaN of the edited model ends them."""
    readings: list[Reading] = []
    not_tested: dict[str, str] = {}
    with tqdm(probes.items(), desc="audit", disable=not progress) as bar:
        for name, probe in bar:
            bar.set_postfix(probe=name, refresh=False)
            if _nan(readings):
                not_tested[name] = "the edited model returns NaN when it is asked"
                continue
            try:
                readings += _read(name, probe, case, metric)
            except NotTested as why:
                not_tested[name] = str(why)
    return readings, not_tested


def _read(name: str, probe: Probe, case: Case, metric: Metric) -> list[Reading]:
    """Return a probe's readings. Raises InputError for one of one's own that gives anything else."""
    found: Any = probe(case, metric)
    try:
        given = iter(found)
    except TypeError:  # not of what the probe does while it yields
        given = iter([found])
    readings = list(given)
    if wrong := [x for x in readings if not isinstance(x, Reading)]:
        raise InputError(f"the probe {name!r} gave {wrong[0]!r}: a probe returns Readings, or yields them")
    return readings


def _chosen(names: Sequence[str] | None, own: dict[str, Probe]) -> dict[str, Probe]:
    known = {**PROBES, **own}
    wanted = list(known) if names is None else ["asked", *(n for n in texts_of(names) if n != "asked"), *own]
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"no probe is called {unknown[0]!r}; there are {', '.join(known)}")
    return {name: known[name] for name in dict.fromkeys(wanted)}


def _damage(case: Case, metric: Metric, readings: Sequence[Reading]) -> dict[str, Any]:
    """What the edit did to the retain corpus, and how far it is from the gold twin on forget."""
    kept = {r.subject: r for r in readings if r.probe == "asked" and r.corpus == "retain"}
    before, after = (kept[name].values for name in (UNTOUCHED, EDITED))
    lost, low, _ = difference(before - after, case.seed, units=over(kept[EDITED].units)[0])
    found: dict[str, Any] = {
        "metric": metric.__name__,
        "retain before": mean(before),
        "retain after": mean(after),
        "destroyed": bool(lost > DAMAGE * mean(before) and low > 0),  # of one example there is no interval
        "nan": _nan(readings),
    }
    if case.gold is not None:
        for name, key in ((EDITED, "KL from gold"), (UNTOUCHED, "KL from gold, untouched")):
            with case.subject(name).on() as lm:
                found[key] = mean(_far(case, lm))
    return found


def _nan(readings: Sequence[Reading]) -> int:
    """On how many examples does the edited model return NaN where it is asked plainly?"""
    return int(sum(np.isnan(r.values).sum() for r in readings if r.subject == EDITED and r.probe == "asked"))


def _far(case: Case, lm: LM) -> np.ndarray:
    assert case.gold is not None
    return measure(lm, case.forget, [kl_gold], gold=case.gold.lm, batch_size=case.batch_size, kept=case.kept)["kl_gold"]


def _neurons(case: Case) -> dict[str, Any]:
    found = moved(case)
    layers = [site.layer for site in case.subjects[0].lm.sites]
    strongest = {name: [(layers[i], j, v) for i, j, v in rows] for name, rows in found.strongest().items()}
    about = expert_info(case.subjects[0].lm.model, case.subjects[0].lm.sites)
    return {**found.summary(), **about, **strongest, "units": units(case)}


def _tables(readings: Sequence[Reading], seed: int) -> Tables:
    """Readings as rows and examples of `Results`: the subject is the edit, the probe the point."""
    rows, examples = [], []
    for r in readings:
        about = {"edit": r.subject, "point": r.probe, "corpus": r.corpus, "metric": r.metric}
        scope = {"scope": "edited" if r.subject == EDITED else "reference", "strength": float(r.subject == EDITED)}
        rows.append(tidy_row({**about, **scope}, r.values, r.units, seed))
        examples += example_rows(about, r.values, r.units)
    return tuple(rows), tuple(examples)


def _info(lm: LM, edit: Edit | LM, gold: LM | None, corpora: Sequence[Corpus | None], seed: int) -> dict[str, Any]:
    return {
        "model": lm.name,
        "digest": lm.digest(),
        "edit": edit.name if isinstance(edit, LM) else dict(edit.info),
        "gold": gold.name if gold is not None else None,
        "device": str(lm.device),
        "dtype": str(next(iter(lm.parameters.values())).dtype),
        "seed": seed,
        "data": digests_of(corpora),
        "versions": environment(),
    }
