"""Erase by training: any loss, on the selected neurons' weights alone or, as its baseline, on the whole model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.corpora.corpus import texts_of
from neuronforget.edits import Edit
from neuronforget.erase.ablate import finished
from neuronforget.erase.answering import Answering
from neuronforget.erase.beginning import operator
from neuronforget.erase.fitting import check_loss
from neuronforget.erase.footprint import Footprint, Trainees, footprint
from neuronforget.erase.lowrank import LoRA
from neuronforget.erase.rates import Rates
from neuronforget.erase.trained import Trained
from neuronforget.erase.weights import Weights
from neuronforget.errors import InputError
from neuronforget.losses import Loss, identity, name_of, npo, settings_of
from neuronforget.losses.outputs import valued
from neuronforget.models import LM, frozen
from neuronforget.neurons import Neurons
from neuronforget.runs.ranks import Ranks, launched
from neuronforget.scores.blocks import checkpointed
from neuronforget.train import Plan, draw, fit
from neuronforget.train.stopping import Budget, Stopping

Preferred = Corpus | Sequence[str] | None


@checks_kinds
@operator
def finetune(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    loss: Loss = npo,
    neurons: Neurons | None = None,
    lora: int | LoRA | None = None,
    preferred: Preferred = None,
    reinforced: Edit | None = None,
    steps: int = 60,
    lr: Rates | None = None,
    batch_size: int = 32,
    accumulate: int = 1,
    checkpointing: bool = False,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    budget: float | Budget | None = None,
    seed: int = 0,
    split: bool = True,
    sharded: bool = False,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Edit:
    """Train `loss` on the read and write weights of `neurons`, or (without them) on every parameter.

    With `lora`, a rank or a `LoRA`, what is trained are adapters of the blocks' linear maps, and the edit holds what
    they add to the weights.

    `preferred` are the answers a preference loss prefers: a corpus parallel to `forget`, or one refusal, or several to
    draw from; without it the examples' own `wrong` answers. `reinforced` is what whp contrasts the model with: an edit
    that learned the forget corpus better, `finetune(lm, forget, loss=losses.learn)`.

    `lr` defaults by size of the model (`default_lr`); a mapping or function gives it by layer (None: what lies in
    none), and 0 leaves a layer as it is. With a `budget`, the last values are kept at which the retain loss had risen
    by so many nats at most; `info` has the measurements. Dropout is off. The model is left as it was, whatever happens.

    `batch_size` are a step's examples, run in `accumulate` parts; `checkpointing` computes states again in place of
    keeping them: both save memory and change the result by no more than rounding. In a launch (torchrun) each process
    runs its share of every batch and all return the same edit; `split=False`: each works alone. With `sharded` the
    values of the whole model and their optimiser are spread over them too (`erase.sharded`): one may not hold them.
    Raises InputError if nothing changed, and before any work where the memory that it needs is not free or a process
    holds a part of the model alone: `sharded` spreads a whole one.
    """
    if retain is not None:
        check_disjoint(forget, retain)
    ranks, answers = launched(lm.device) if split else Ranks(), preferred_answers(forget, preferred, seed)
    whole = accumulate * ranks.world == 1
    check_loss(lm, forget, loss, retain=retain, preferred=answers, reinforced=reinforced, keep=whole)
    weights = Weights.of(lm, neurons, lora, lr, ranks, sharded)
    plan = Plan(steps, max(weights.rates.values()), weight_decay, clip, seed=seed)
    budget = _budget(budget, retain)
    work = Answering(lm, forget, retain, answers, batch_size, seed, reinforced=reinforced)
    run, name = _Run(work, loss, accumulate, ranks), name_of(loss) + weights.choice.label
    need = run.footprint(weights.trainees, budget=budget is not None, checkpointing=checkpointing)
    if progress and not ranks.rank:
        tqdm.write(f"{name}: about {need}", file=sys.stderr)
    info: dict[str, Any] = {**_called(loss), **weights.info, "steps": steps, "seed": seed, "batch_size": batch_size}
    info |= {"accumulate": accumulate, "weight_decay": weight_decay, "budget": asdict(budget) if budget else None}
    info |= _digests(lm, forget, retain, reinforced)
    key = _work_key(neurons, answers, {**info, "loss": identity(loss)})
    with (
        frozen(lm),
        weights.training(seed) as trained,
        checkpointed(trained.twin or lm) if checkpointing else nullcontext(),
    ):
        work.start, work.twin = trained.start, trained.twin
        stopping = Stopping(run.measure(trained, budget), budget) if budget else None
        history = fit(
            trained.values, run.of(trained), replace(plan, rates=tuple(trained.rates)), memory=work.memory,
            stopping=stopping, ranks=ranks, resume=resume, key=key, desc=name, progress=progress,
        )  # fmt: skip
        changes = trained.changes()
    info |= {"model_after_training": lm.digest(), "first_loss": history[0], "last_loss": history[-1]}
    return finished(lm, neurons, changes, **info, **_stopped(stopping))


@dataclass(frozen=True)
class _Run:
    """The loss of each step, in parts that the processes of a launch share."""

    work: Answering
    loss: Loss
    accumulate: int
    ranks: Ranks

    @property
    def parts(self) -> int:
        return self.accumulate * self.ranks.world

    def footprint(self, trainees: Trainees, *, budget: bool, checkpointing: bool) -> Footprint:
        """Return what this process needs. Raises InputError, on all, where the parts are too many or it is not free."""
        self.work.check_parts(self.parts)
        batches = self.work.largest(self.parts)
        need = footprint(self.work.lm, trainees, batches, budget=budget, checkpointing=checkpointing)
        with self.ranks.together():
            need.check(self.work.lm)
        return need

    def of(self, trained: Trained) -> Callable[[int], Iterator[Tensor]]:
        """Return what yields the loss of one part of a step's batch after another, each by its share of the whole."""

        def step(number: int) -> Iterator[Tensor]:
            trained.put()
            for place in range(self.ranks.rank * self.accumulate, (self.ranks.rank + 1) * self.accumulate):
                outputs, share = self.work.part(number, place, self.parts)
                yield valued(self.loss, outputs) * share

        return step

    def measure(self, trained: Trained, budget: Budget) -> Callable[[], float]:
        """Return what reads the retain loss with the values as they are; the first rank's is that of all."""
        read = self.work.measure(budget.examples)

        def measured() -> float:
            with self.ranks.together():
                trained.put()
                value = read()
            return self.ranks.gather(value)[0]

        return measured


def _budget(budget: float | Budget | None, retain: Corpus | None) -> Budget | None:
    if budget is not None and retain is None:
        raise InputError("a budget is of the retain loss: give a retain corpus, or leave out budget=")
    return budget if budget is None or isinstance(budget, Budget) else Budget(budget)


def _called(loss: Loss) -> dict[str, Any]:
    """What an edit's info says of its loss."""
    name = name_of(loss)
    return {"method": f"finetune:{name}", "loss": name, "loss_settings": settings_of(loss)}


def _digests(lm: LM, forget: Corpus, retain: Corpus | None, reinforced: Edit | None) -> dict[str, Any]:
    """What an edit's info says of the corpora and of the models that it was made from."""
    found = {"forget": forget.digest(), "retain": retain.digest() if retain else None}
    if reinforced is not None:
        with reinforced.on(lm):
            found["reinforced"] = lm.digest()
    return {**found, "model_before_training": lm.digest()}


def _stopped(stopping: Stopping | None) -> dict[str, Any]:
    """What an edit's info says of its budget. Raises InputError where no step was within it."""
    if stopping is None:
        return {}
    if stopping.step == 0:
        step, rise = stopping.rises[-1]
        raise InputError(
            f"the retain loss had risen by {rise:.3g} nats after {step} steps, where it was first read: more than the "
            f"budget of {stopping.budget.rise:g}; lower lr, raise the budget or read it more often: "
            "budget=Budget(rise, every=1) (--set \"budget={'rise': 0.05, 'every': 1}\")"
        )
    return {"stopped_at": stopping.step, "retain_rises": [list(pair) for pair in stopping.rises]}


def preferred_answers(forget: Corpus, preferred: Preferred, seed: int) -> Corpus | None:
    """Return `forget` with the answers that should take the old ones' place, or None where there are none.

    A bare string is one answer, to all. Raises InputError for an empty list, and a corpus that is not parallel.
    """
    if isinstance(preferred, Corpus):
        if len(preferred) != len(forget):
            raise InputError(f"preferred has {len(preferred)} examples, forget {len(forget)}: they must be parallel")
        return preferred
    if preferred is not None:
        if not (texts := texts_of(preferred)):
            raise InputError("preferred= holds no answer: give one or more, or leave it out")
        return forget.with_answers(draw(texts, len(forget), seed, 0), f"{forget.name} preferred")
    if all(example.wrong for example in forget):
        answers = [draw(example.wrong, 1, seed + i, 0)[0] for i, example in enumerate(forget)]
        return forget.with_answers(answers, f"{forget.name} preferred")
    return None


def _work_key(neurons: Neurons | None, answers: Corpus | None, info: dict[str, Any]) -> str:
    """Name the work, so that a checkpoint is continued by equal work alone."""
    members = sorted(neurons.members) if neurons is not None else None
    return str({**info, "members": members, "preferred": answers.digest() if answers else None})
