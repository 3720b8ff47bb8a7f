"""Is the knowledge still in the stream between the blocks, where the output no longer shows it?

`lens` reads each block's states with the model's own last norm and unembedding (nostalgebraist 2020). `patching` puts
the edited model's states into the untouched one, block by block: what the gold twin's states take away there, and the
edited one's do not, is still in them (unlearning depth score; Lee, Kim and Jo 2026, arXiv:2605.24614).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.auditing.cases import EDITED, GOLD, Case, NotTested, Reading, Subject
from neuronforget.corpora import Batch, subjects_of
from neuronforget.edits.guarding import asked
from neuronforget.metrics import Metric
from neuronforget.models import LM, frozen
from neuronforget.models.likelihood import answer_nll
from neuronforget.results.kept import Kept
from neuronforget.scores.blocks import blocks_of, forward_of, state_of, with_state
from neuronforget.taps import TorchHooks
from neuronforget.taps.protocol import by_example

ONE_SIDED = 0.1  # the share cannot be below zero, so that chance alone puts it above
CARRIES = 0.05  # nats an answer token: a block carries the knowledge if the gold twin's states there cost as much


def lens(case: Case, metric: Metric) -> Iterator[Reading]:
    """Read the answer's probability off every block; the highest over blocks counts.

    The highest of several is above what the model says even where nothing is known: without a gold twin it is shown,
    not judged.
    """
    for subject in case.subjects:
        with subject.on() as lm, frozen(lm), torch.no_grad():
            rows = lm.encode(case.forget)
            store = Kept.of(case.kept, "lens", lm, rows, batch_size=case.batch_size)
            found = np.array(store.fill(lm.batches(rows, case.batch_size), partial(_read_off, lm))).T
        case.curves.setdefault("lens", {})[subject.name] = found.mean(1).tolist()
        yield Reading("lens", subject.name, "forget", "probability at the best block", found.max(0),
                      subjects_of(case.forget), sign=int(case.gold is not None), rate=True)  # fmt: skip


def _read_off(lm: LM, batch: Batch) -> list[list[float]]:
    """Return the answer's probability, by example and block."""
    here = Outs.of(lm, batch)
    last = len(here.outs) - 1
    read = [-answer_nll(here.with_state(lm, last, here.state(layer)), batch) for layer in range(last + 1)]
    return torch.stack(read, 1).exp().tolist()


def patching(case: Case, metric: Metric) -> Iterator[Reading]:
    """Put each subject's states into the untouched model; the share of what gold's take away that is still there.

    By block, at the positions that predict the answer, once the whole stream and once the neurons' activations alone.
    An example's blocks are those that carry the knowledge (`CARRIES`). Blocks and examples are weighed by how much: the
    mean over examples is nats still there over nats that gold's states take away. Where a subject's states take away
    more than gold's, over all examples, the block counts as gone and makes up for no other; of one example more is not
    cut off: cut there, any second model that never knew would seem to hold something.
    """
    if case.gold is None:
        raise NotTested("it measures against what a gold twin's states take away: give gold=")
    sources = (case.subject(EDITED), case.gold)
    if len({subject.lm.shape for subject in (*sources, case.subjects[0])}) > 1:
        raise NotTested("the gold twin has other layers than the model: their states do not fit into each other")
    for kind, patch in (("states", _states), ("neurons", _neurons)):
        lost = {subject.name: drops(case, subject, patch) for subject in sources}
        carries = lost[GOLD] > CARRIES
        with np.errstate(divide="ignore", invalid="ignore"):
            for name, drop in lost.items():
                short = np.where(carries, lost[GOLD] - drop, 0)
                short[short.mean(1) < 0] = 0
                left = short.sum(0) / np.where(carries, lost[GOLD], 0).sum(0).mean()
                case.curves.setdefault(f"patching, {kind}", {})[name] = drop.mean(1).tolist()
                yield Reading(f"patching, {kind}", name, "forget", "share still there", left, subjects_of(case.forget),
                              least=ONE_SIDED)  # fmt: skip


def drops(case: Case, subject: Subject, patch: Patch) -> Float[np.ndarray, "layer example"]:
    """Return how much less likely (nats an answer token) the untouched model's answers get with a subject's states."""
    base = case.subjects[0].lm
    rows = base.encode(case.forget)
    untouched = base.digest() if case.kept else ""
    with subject.on() as lm:
        store = Kept.of(case.kept, "patching", lm, rows, base=untouched, patch=patch, batch_size=case.batch_size)

    def values(batch: Batch) -> list[list[float]]:
        with subject.on() as lm:
            there = patch(lm, batch)
        here = Outs.of(base, batch)
        before = answer_nll(here.logits, batch)
        places = torch.nn.functional.pad(batch.answer_mask[:, 1:], (0, 1))[..., None]
        return torch.stack([answer_nll(put(base, here, places), batch) - before for put in there], 1).tolist()

    with frozen(base), frozen(subject.lm), torch.no_grad():
        made = base.batches(rows, case.batch_size)
        return np.array(store.fill(made, values)).T


@dataclass(frozen=True, eq=False)
class Outs:
    """What each block of a model gave in one pass, as it gave it, and the logits."""

    batch: Batch
    outs: list[Any]
    logits: Float[Tensor, "example token vocab"]

    @classmethod
    def of(cls, lm: LM, batch: Batch) -> Outs:
        """Run the model on a batch."""
        outs: list[Any] = []
        handles = [block.register_forward_hook(lambda _m, _a, out: outs.append(out)) for block in blocks_of(lm)]
        try:
            with asked(lm, batch):
                logits = lm.model(**batch.inputs, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        return cls(batch, outs[-len(blocks_of(lm)) :], logits)  # some guards run the model more than once

    def state(self, layer: int) -> Float[Tensor, "example token width"]:
        """Return what a block handed on."""
        return state_of(self.outs[layer])

    def with_state(self, lm: LM, layer: int, state: Tensor) -> Float[Tensor, "example token vocab"]:
        """Return the logits if block `layer` had handed on `state`; what lies below is not run again."""
        given = [*self.outs[:layer], with_state(self.outs[layer], state)]
        with ExitStack() as stack:
            for block, out in zip(blocks_of(lm), given, strict=False):
                stack.enter_context(forward_of(block, partial(_give, out)))
            return lm.model(**self.batch.inputs, use_cache=False).logits


#: Runs a subject on a batch, and returns for each block what puts its values into another model's pass.
Patch = Callable[[LM, Batch], list[Callable[[LM, Outs, Tensor], Tensor]]]


def _states(lm: LM, batch: Batch) -> list[Callable[[LM, Outs, Tensor], Tensor]]:
    source = Outs.of(lm, batch)

    def put(layer: int, base: LM, here: Outs, places: Tensor) -> Tensor:
        return here.with_state(base, layer, torch.where(places, source.state(layer), here.state(layer)))

    return [partial(put, layer) for layer in range(len(source.outs))]


def _neurons(lm: LM, batch: Batch) -> list[Callable[[LM, Outs, Tensor], Tensor]]:
    with asked(lm, batch):
        acts = TorchHooks(lm)(batch.inputs).acts

    def put(layer: int, base: LM, here: Outs, places: Tensor) -> Tensor:
        own = by_example(acts[layer], batch.inputs)
        edit = {layer: lambda a: torch.where(places, own, by_example(a, batch.inputs)).view(a.shape)}
        return TorchHooks(base)(batch.inputs, edit).logits

    return [partial(put, site.layer) for site in lm.sites]


def _give(out: Any, *_: Any, **__: Any) -> Any:
    return out
