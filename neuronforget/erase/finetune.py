"""Erase by training: any loss, on the selected neurons' weights alone or, as its baseline, on the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.erase.ablate import check_neurons, finished
from neuronforget.erase.answering import Answering
from neuronforget.erase.rates import Rates, as_info, default_lr, rates_of
from neuronforget.erase.trained import ByName, Trained, lowrank, sliced, sliced_names, whole
from neuronforget.errors import InputError
from neuronforget.losses import Loss, identity, name_of, npo, settings_of
from neuronforget.lowrank import LoRA
from neuronforget.models import LM, frozen
from neuronforget.neurons import Neurons
from neuronforget.stopping import Budget, Stopping
from neuronforget.train import Plan, draw, fit

Preferred = Corpus | Sequence[str] | None


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
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    budget: float | Budget | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Edit:
    """Train `loss` on the read and write weights of `neurons`, or (without them) on every parameter.

    With `lora`, a rank or a `LoRA`, what is trained are adapters of the blocks' linear maps, and the edit holds what
    they add to the weights.

    `preferred` are the answers a preference loss prefers: a corpus parallel to `forget`, or refusals to draw
    from; without it the examples' own `wrong` answers. `reinforced` is what whp contrasts the model with: an edit
    that learned the forget corpus better, `finetune(lm, forget, loss=losses.learn)`.

    `lr` defaults by size of the model (`default_lr`); a mapping or function gives it by layer (None: what lies in
    none), and 0 leaves a layer as it is. `batch_size` are a step's examples, run `accumulate` times in parts. With a
    `budget`, the last values are kept at which the retain loss had risen by so many nats at most; `info` has the
    measurements. Dropout is off. The model is left as it was, whatever happens. Raises InputError if nothing changed.
    """
    if retain is not None:
        check_disjoint(forget, retain)
    if neurons is not None:
        check_neurons(lm, neurons)
    lora = lora if lora is None or isinstance(lora, LoRA) else LoRA(lora)
    lr = default_lr(lm, neurons, adapters=lora is not None) if lr is None else lr
    rates = rates_of(lm, lr, _names(lm, neurons, lora))
    plan = Plan(steps, max(rates.values()), weight_decay, clip, seed=seed)
    budget = _budget(budget, retain)
    name = name_of(loss)
    info: dict[str, Any] = {"method": f"finetune:{name}", "loss": name}
    info |= {"loss_settings": settings_of(loss), "steps": steps, "lr": as_info(lm, lr, rates), "seed": seed}
    info |= {"batch_size": batch_size, "accumulate": accumulate, "weight_decay": weight_decay}
    info |= {"forget": forget.digest(), "retain": retain.digest() if retain else None}
    info |= {"budget": asdict(budget) if budget else None, "lora": asdict(lora) if lora else None}
    answers = preferred_answers(forget, preferred, seed)
    work = Answering(lm, forget, retain, answers, batch_size, seed, reinforced=reinforced)
    work.check_parts(accumulate)
    if reinforced is not None:
        with reinforced.on(lm):
            info["reinforced"] = lm.digest()
    info |= {"model_before_training": lm.digest()}
    where = "@neurons" if neurons else "@lora" if lora else ""
    key = _work_key(neurons, answers, {**info, "loss": identity(loss)})
    with frozen(lm), _training(lm, neurons, lora, rates, seed) as trained:
        run = _Run(work, trained, loss, accumulate)
        stopping = Stopping(run.measure(budget), budget) if budget else None
        history = fit(trained.values, run.step, replace(plan, rates=tuple(trained.rates)), memory=work.memory,
                      stopping=stopping, resume=resume, key=key, desc=name + where, progress=progress)  # fmt: skip
        changes = trained.changes()
    info |= {"model_after_training": lm.digest(), "first_loss": history[0], "last_loss": history[-1]}
    return finished(lm, neurons, changes, **info, **_stopped(stopping))


@dataclass(frozen=True)
class _Run:
    """The loss of each step, in parts, of what is trained."""

    work: Answering
    trained: Trained
    loss: Loss
    parts: int

    def __post_init__(self) -> None:
        self.work.start = self.trained.start

    def step(self, step: int) -> Iterator[Tensor]:
        """Yield the loss of one part of the step's batch after another, each by its share of the whole."""
        self.trained.put()
        for place in range(self.parts):
            outputs, share = self.work.part(step, place, self.parts)
            yield self.loss(outputs) * share

    def measure(self, budget: Budget) -> Callable[[], float]:
        """Return what reads the retain loss with the values as they are."""
        read = self.work.measure(budget.examples)

        def measured() -> float:
            self.trained.put()
            return read()

        return measured


def _names(lm: LM, neurons: Neurons | None, lora: LoRA | None) -> Iterable[str]:
    """The parameters that are trained, or adapted."""
    if neurons is not None and lora is not None:
        raise InputError("neurons= trains their weights, lora= adapters of whole maps: give one of them")
    if lora is not None:
        return lora.names(lm)
    return lm.parameters if neurons is None else sliced_names(lm, neurons)


def _training(
    lm: LM, neurons: Neurons | None, lora: LoRA | None, rates: ByName, seed: int
) -> AbstractContextManager[Trained]:
    if lora is not None:
        return lowrank(lm, lora, rates, seed)
    return whole(lm, rates) if neurons is None else sliced(lm, neurons, rates)


def _budget(budget: float | Budget | None, retain: Corpus | None) -> Budget | None:
    if budget is not None and retain is None:
        raise InputError("a budget is of the retain loss: give a retain corpus, or leave out budget=")
    return budget if budget is None or isinstance(budget, Budget) else Budget(budget)


def _stopped(stopping: Stopping | None) -> dict[str, Any]:
    """What an edit's info says of its budget. Raises InputError where no step was within it."""
    if stopping is None:
        return {}
    if stopping.step == 0:
        step, rise = stopping.rises[-1]
        raise InputError(
            f"the retain loss had risen by {rise:.3g} nats after {step} steps, where it was first read: more than the "
            f"budget of {stopping.budget.rise:g}; lower lr, raise the budget or read it more often (Budget(every=))"
        )
    return {"stopped_at": stopping.step, "retain_rises": [list(pair) for pair in stopping.rises]}


def preferred_answers(forget: Corpus, preferred: Preferred, seed: int) -> Corpus | None:
    """Return `forget` with the answers that should take the old ones' place, or None where there are none."""
    if isinstance(preferred, Corpus):
        if len(preferred) != len(forget):
            raise InputError(f"preferred has {len(preferred)} examples, forget {len(forget)}: they must be parallel")
        return preferred
    if preferred:
        return forget.with_answers(draw(list(preferred), len(forget), seed, 0), f"{forget.name} preferred")
    if all(example.wrong for example in forget):
        answers = [draw(example.wrong, 1, seed + i, 0)[0] for i, example in enumerate(forget)]
        return forget.with_answers(answers, f"{forget.name} preferred")
    return None


def _work_key(neurons: Neurons | None, answers: Corpus | None, info: dict[str, Any]) -> str:
    """Name the work, so that a checkpoint is continued by equal work alone."""
    members = sorted(neurons.members) if neurons is not None else None
    return str({**info, "members": members, "preferred": answers.digest() if answers else None})
