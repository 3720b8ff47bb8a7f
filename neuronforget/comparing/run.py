"""compare(): the whole path on one pair of corpora, with every control that makes its numbers mean something.

Attribution, a selection, the neuron-level operators on it and on random and matched neurons, the same losses
on the whole model, and the evaluation of them all at full strength, over a frontier and at matched damage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neuronforget import select
from neuronforget.arguments import checks_kinds, numbers
from neuronforget.attribution import attribute, check_score
from neuronforget.auditing import Audit, audit
from neuronforget.comparing.arms import Arms
from neuronforget.comparing.comparison import Comparison
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.edits.guarding import guard_on
from neuronforget.erase.catalogue import Operator, takes
from neuronforget.errors import InputError
from neuronforget.evaluation import check_references, evaluate
from neuronforget.findings.closeups import closeups
from neuronforget.metrics import neuron_shift
from neuronforget.metrics.shift import by_layer
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.recording import record
from neuronforget.runs import content_key, whole_folder
from neuronforget.scores import grad_x_act
from neuronforget.scores.scores import Score, needs

#: Edits of which a report shows what they did to single neurons.
CLOSE = ("ablate", "npo@neurons", "npo")


@checks_kinds
@numbers(steps=">= 1", controls=">= 0", measured=">= 1", damage="> 0", divergence="> 0")
def compare(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    gold: LM | None = None,
    truth: Neurons | None = None,
    preferred: Corpus | tuple[str, ...] | None = None,
    operators: Sequence[Operator] = (),
    score: Score = grad_x_act,
    share: float = 0.05,
    steps: int = 60,
    controls: int = 3,
    measured: int = 300,
    damage: float = 0.05,
    divergence: float | None = 0.05,
    audited: Sequence[str] = ("ablate", "npo"),
    derived: Corpus | None = None,
    tap: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare neuron-level erasure with full-model unlearning, random neurons and the model that never knew.

    `share` of each layer is selected by `score`; `controls` random sets of equal size per layer, and one matched in
    write norm and one in activation, are ablated beside it. `operators` are further ones to run, on the selection, on
    a random set and (where they can) on what they choose themselves. `preferred` serves DPO (left out where there is
    none). Retain is measured on `measured` random examples. `damage` and `divergence` are as in `evaluate`. The edits
    named `audited` are asked whether they erase or only hide (`audit`, `derived` as there). `resume`
    is a folder where finished edits and measurements wait for a run that was killed. A method that cannot make its
    edit is left out, and the findings say why; if none can, InputError is raised. An operator that cannot be called at
    all, as its loss asks for what is not given, is refused before any work. `batch_size` is that of the forward passes;
    a training step takes half as many forget and half as many retain examples.
    """
    arms = Arms(lm, forget, retain, preferred, operators, controls, steps, batch_size, seed)
    check_references(lm, gold)
    check_score(score, forget, retain, {})
    arms.check(audited, share)
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    recorded = _recorded(arms, score, tap, **settings)
    if needs(score) == "model":
        scores = attribute(lm, forget, retain, score=score, **settings)
    else:
        scores = score(recorded["forget"], recorded["retain"])
    neurons = select.per_layer(scores, share)
    others = arms.others(neurons, recorded["retain"])
    edits, failed = arms.made(neurons, others, recorded, resume=resume, progress=progress)
    sample = retain.sample(measured, seed)
    results = evaluate(
        lm, edits, forget, sample, gold=gold, damage=damage, divergence=divergence, seed=seed, kept=resume, **settings
    )
    moved = _moved(lm, edits, forget, sample)
    near = {name: edits[name] for name in CLOSE if name in edits}
    seen = closeups(
        lm, forget, recorded, scores, neurons, near, {name: moved[name] for name in near}, batch_size=batch_size
    )
    audits, refused = _audits(
        lm, {name: edits[name] for name in audited if name in edits}, forget, retain, resume,
        gold=gold, derived=derived, seed=seed, progress=progress,
    )  # fmt: skip
    info = {"tap": recorded["forget"].info["tap"], "score": scores.name, "selected share per layer": share}
    info |= {"retain examples measured": len(sample), "steps": steps, "not made": failed, "not audited": refused}
    info |= {"certificates": {name: edit.certificate(lm).entry() for name, edit in edits.items()}}
    results = replace(results, info={**results.info, **info})
    drawn = tuple(others.values())
    shifts = {name: {kind: by_layer(values) for kind, values in shift.items()} for name, shift in moved.items()}
    return Comparison(results, scores, neurons, truth, drawn, shifts, seen, edits, audits)


def _recorded(arms: Arms, score: Score, tap: str | None, **settings: Any) -> dict[str, Moments]:
    """The moments of both corpora, with their per-example tables where the score or an operator reads those."""
    table = needs(score) == "examples" or any(takes(operator, "forget_peaks") for operator in arms.operators)
    corpora = {"forget": arms.forget, "retain": arms.retain}
    return {kind: record(arms.lm, corpus, tap=tap, per_example=table, **settings) for kind, corpus in corpora.items()}


def _moved(
    lm: LM, edits: Mapping[str, Edit], forget: Corpus, retain: Corpus
) -> dict[str, dict[str, Float[np.ndarray, "layer neuron"]]]:
    """How far each edit moved every neuron's activation on either corpus; of several controls the first of a kind."""
    return {
        name: {kind: neuron_shift(lm, edit, c).numpy() for kind, c in (("forget", forget), ("retain", retain))}
        for name, edit in edits.items()
        if edit.info["scope"] != "control" or name.endswith(" 0")
    }


def _audits(
    lm: LM,
    edits: Mapping[str, Edit],
    forget: Corpus,
    retain: Corpus,
    resume: str | Path | None,
    **settings: Any,
) -> tuple[dict[str, Audit], dict[str, str]]:
    """Audit every edit, and return the reasons why some could not be; `resume` reads finished audits back."""
    audits: dict[str, Audit] = {}
    refused: dict[str, str] = {}
    about = (
        {key: value.digest() for key in ("gold", "derived") if (value := settings[key]) is not None} if resume else {}
    )
    about |= {"data": (forget.digest(), retain.digest()), "seed": settings["seed"]}
    for name, edit in edits.items():
        folder = None
        if resume:
            with edit.on(lm):
                folder = Path(resume) / f"audit-{content_key(model=lm.digest(), guard=guard_on(lm), **about)}"
        if folder is not None and folder.is_dir():
            audits[name] = Audit.load(folder)
            continue
        try:
            audits[name] = audit(lm, edit, forget, retain, kept=resume, **settings)
        except InputError as error:
            refused[name] = str(error)
            continue
        if folder is not None:
            with whole_folder(folder, replace=True) as scratch:  # another run may have written the same meanwhile
                audits[name].save(scratch)
    return audits, refused
