"""What the edit did to each neuron: was its knowledge taken away, or did others learn to speak against it?

A neuron's direct contribution to an answer is `a (w . u)`: activation, write weights, and the answer token's row of the
unembedding less the mean row. Where it was positive and is less, knowledge was taken away; where it is newly negative,
the neuron suppresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.auditing.cases import EDITED, UNTOUCHED, Case, Subject
from neuronforget.corpora import Corpus
from neuronforget.edits.guarding import asked
from neuronforget.erase.ablate import all_of
from neuronforget.erase.units import count_units, units_of
from neuronforget.metrics import neuron_shift
from neuronforget.models import LM, frozen
from neuronforget.scores.vocabulary import unembedding_of
from neuronforget.taps import TorchHooks
from neuronforget.taps.protocol import by_example

ByNeuron = Float[np.ndarray, "layer neuron"]
CHANGED = 1e-6  # of a vector's length: less is rounding


@torch.no_grad()
def contributions(lm: LM, corpus: Corpus, *, batch_size: int = 64) -> ByNeuron:
    """Return each neuron's direct contribution to the answers' logits, mean over answer tokens (logit units).

    The last norm is left out, so they compare between models of one lineage, not between layers.
    """
    directions = unembedding_of(lm).float()
    directions = directions - directions.mean(0)
    tap, total, count = TorchHooks(lm), torch.zeros(lm.shape, dtype=torch.float64), 0
    writes = [write.float() for write in write_vectors(lm)]
    with frozen(lm):
        for batch in lm.batches(corpus, batch_size):
            with asked(lm, batch):
                acts = tap(batch.inputs).acts
            mask, targets = batch.answer_mask[:, 1:], batch.input_ids[:, 1:]
            wanted = directions[targets[mask]]
            count += len(wanted)
            for i, site in enumerate(lm.sites):
                own = by_example(acts[site.layer], batch.inputs)[:, :-1][mask].float()
                total[i] += (own * (wanted @ writes[i].T)).sum(0).double().cpu()
    return (total / count).numpy()


def write_vectors(lm: LM) -> list[Float[Tensor, "neuron d_model"]]:
    """Return what the neurons of each layer write, a view of the weights where they are kept so."""
    return [site.write.rows(lm.parameters, site.d_mlp) for site in lm.sites]


@dataclass(frozen=True)
class Moved:
    """By neuron: contribution before and after, RMS shift of its activation on forget and retain, change of its write
    vector relative to its length."""

    before: ByNeuron
    after: ByNeuron
    shift_forget: ByNeuron
    shift_retain: ByNeuron
    written: ByNeuron

    @property
    def taken(self) -> ByNeuron:
        """How much positive contribution is gone."""
        return np.clip(np.clip(self.before, 0, None) - np.clip(self.after, 0, None), 0, None)

    @property
    def suppressing(self) -> ByNeuron:
        """How much negative contribution is new."""
        return np.clip(np.clip(-self.after, 0, None) - np.clip(-self.before, 0, None), 0, None)

    def summary(self) -> dict[str, Any]:
        """Return totals, and how much of the shift lies in neurons whose own write vector the edit changed."""
        edited = self.written > CHANGED
        square = self.shift_forget**2
        return {
            "contribution before": float(self.before.sum()),
            "contribution after": float(self.after.sum()),
            "taken away": float(self.taken.sum()),
            "newly suppressing": float(self.suppressing.sum()),
            "neurons whose write vector changed": int(edited.sum()),
            "largest relative change of one": float(self.written.max()),
            "shift on forget": float(np.sqrt(square.mean())),
            "shift on retain": float(np.sqrt((self.shift_retain**2).mean())),
            "share of the forget shift in changed neurons": float(square[edited].sum() / square.sum())
            if square.sum() > 0
            else float("nan"),
        }

    def strongest(self, count: int = 10) -> dict[str, list[tuple[int, int, float]]]:
        """Return the neurons (row, neuron, value) that lost most, and those that suppress most."""
        found = {}
        for name, values in (("lost most", self.taken), ("suppress most", self.suppressing)):
            order = np.argsort(-values, axis=None, kind="stable")[:count]
            places = zip(*np.unravel_index(order, values.shape), strict=True)
            found[name] = [(int(i), int(j), float(values[i, j])) for i, j in places if values[i, j] > 0]
        return found


def moved(case: Case) -> Moved:
    """Compare the edited model with the untouched one, neuron by neuron."""
    before, after = case.subject(UNTOUCHED), case.subject(EDITED)
    found = {}
    for subject in (before, after):
        with subject.on() as lm:
            found[subject.name] = contributions(lm, case.forget, batch_size=case.batch_size)
    other = after.lm if after.edit is None else after.edit
    forget, retain = (
        neuron_shift(before.lm, other, corpus, batch_size=case.batch_size).numpy()
        for corpus in (case.forget, case.retain)
    )
    return Moved(found[UNTOUCHED], found[EDITED], forget, retain, written(before, after))


def units(case: Case) -> dict[str, str]:
    """Return how many units are live, sleeping or dead, untouched and edited: dead ones can learn nothing again."""
    found = {}
    for name in (UNTOUCHED, EDITED):
        with case.subject(name).on() as lm:
            found[name] = count_units(units_of(lm, all_of(lm, [site.layer for site in lm.sites])).values())
    return found


def written(before: Subject, after: Subject) -> ByNeuron:
    """Return the length of each write vector's change, over its length before."""
    vectors = []
    for subject in (before, after):
        with subject.on() as lm:
            vectors.append(torch.stack([write.double().cpu().clone() for write in write_vectors(lm)]))
    length = vectors[0].norm(dim=-1).clamp(min=torch.finfo(torch.float64).tiny)
    return ((vectors[1] - vectors[0]).norm(dim=-1) / length).numpy()
