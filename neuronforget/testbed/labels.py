"""Which of the planted neurons are true ones: those that the forget facts hang on, each taken alone.

Training many neurons leaves some idle. A score is right not to find these, so they are no positives.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import ablate, slice_of
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match, nll
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.testbed.detectors import detectors

#: Rise of the forget loss, nats per answer token: nearly every neuron that nothing was planted in stays below it.
ACTIVE = 1e-3


def labelled(
    lm: LM, gold: LM, forget: Corpus, retain: Corpus, planted: Neurons, *, progress: bool = True
) -> tuple[Neurons | None, dict[str, Any]]:
    """Return the true neurons (None where no planted one does anything), and what a testbed says about its labels.

    True are those whose undoing, alone and at all positions, raises the forget loss by more than `ACTIVE`.
    """
    rises = undone(lm, gold, forget, planted, progress=progress).tolist()
    kept = frozenset(member for member, rise in zip(planted, rises, strict=True) if rise > ACTIVE)
    truth = Neurons(kept, planted.layers, planted.width)
    info = {
        "planted": len(planted),
        "planted share": len(planted) / (len(planted.layers) * planted.width),
        "dead": [list(member) for member in planted - truth],
        "active above": ACTIVE,
        "forget loss": forget_loss(lm, forget),
        "forget loss of gold": forget_loss(gold, forget),
        "accuracy": accuracy(lm, gold, planted, forget, retain),
        "detectors": detectors(lm, planted),
    }
    return truth if len(truth) else None, info


def forget_loss(lm: LM, forget: Corpus) -> float:
    """Return the mean loss in nats per answer token."""
    return float(measure(lm, forget, [nll])["nll"].mean())


def accuracy(lm: LM, gold: LM, planted: Neurons, forget: Corpus, retain: Corpus) -> dict[str, dict[str, float | None]]:
    """Return the share of examples answered exactly by the model, its gold twin, and the model with `planted` off."""
    corpora = {"forget": forget, "forget unseen": forget.paraphrased(), "retain": retain}

    def of(model: LM) -> dict[str, float | None]:
        return {
            name: float(measure(model, corpus, [exact_match])["exact_match"].mean()) if corpus else None
            for name, corpus in corpora.items()
        }

    found = {"model": of(lm), "gold": of(gold)}
    with ablate(lm, planted).on(lm):
        return found | {"planted off": of(lm)}


def undone(lm: LM, gold: LM, forget: Corpus, planted: Neurons, *, progress: bool = True) -> Float[Tensor, "neuron"]:
    """Return the rise of the forget loss (nats per answer token) when one neuron writes as in the gold twin again.

    In the order of `planted`. For grafted neurons, whose write weights are zero in the gold twin, this is exact
    zero-ablation.
    """
    start, writes = forget_loss(lm, forget), {site.layer: site.write for site in lm.sites}
    rises = []
    for layer, j in tqdm(planted, desc="undo each planted neuron", disable=not progress):
        part, index = writes[layer], torch.tensor([j])
        before, after = (slice_of(model, part, index) for model in (lm, gold))
        with Edit.build(lm, [Change(part.name, after, before, part.dim, part.index(index))], method="undo").on(lm):
            rises.append(forget_loss(lm, forget) - start)
    return torch.tensor(rises, dtype=torch.float64)
