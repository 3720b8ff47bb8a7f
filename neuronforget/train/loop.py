"""The only training loop: AdamW on given parameters, resumable, and a function of its seed alone.

What is drawn at a step depends on (seed, step) only, so a run that was killed and resumed ends bit-equal to
one that was not. A step's loss may come in parts, run one after another and on several processes: gradients add up.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.errors import InputError
from neuronforget.runs import content_key
from neuronforget.runs.ranks import Ranks, as_spread, spread, whole
from neuronforget.train.resuming import Checkpoint
from neuronforget.train.stopping import Stopping

T = TypeVar("T")

#: The loss of a step, or its parts, whose sum it is: each is run back before the next is asked for.
StepLoss = Callable[[int], Tensor | Iterable[Tensor]]


@checks_kinds
@dataclass(frozen=True)
class Plan:
    """How to train: `steps` of AdamW at `lr`, gradients clipped to the norm `clip` (None: not).

    `rates` are the parameters' own learning rates, one each, in place of `lr`. Raises InputError for numbers that are
    no training's: no step, a rate, norm or decay that is NaN or has the wrong sign.
    """

    steps: int = 60
    lr: float = 1e-3
    weight_decay: float = 0.01
    clip: float | None = 1.0
    schedule: Literal["constant", "onecycle"] = "constant"
    seed: int = 0
    save_every: int = 20
    rates: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        wrong = [rate for rate in (self.lr, *(self.rates or ())) if not 0 < rate < math.inf]
        if not _counts(self.steps) or wrong:
            lr = wrong[0] if wrong else self.lr
            raise InputError(f"training needs steps >= 1 and lr > 0; found steps={self.steps}, lr={lr}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"weight_decay must be 0 or more, found {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be a norm above 0, to which gradients are cut, or None; found {self.clip}")
        if not _counts(self.save_every):
            raise InputError(f"save_every must be 1 or more steps, found {self.save_every}")


EXPLODED = 1000.0  # times the first loss, which even an ascent without bound does not reach


def fit(
    parameters: Sequence[Tensor],
    loss: StepLoss,
    plan: Plan,
    *,
    memory: Tensor | None = None,
    stopping: Stopping | None = None,
    ranks: Ranks | None = None,
    resume: str | Path | None = None,
    key: str = "",
    desc: str = "train",
    progress: bool = True,
) -> list[float]:
    """Minimise `loss(step)` over `parameters`, in place; return the loss of every step.

    `resume` is a folder for checkpoints, written every `plan.save_every` steps and removed at the end; `key`
    names the work, so that only a run with equal plan and key continues it. `memory` is what the loss itself
    changes from step to step; checkpoints hold it. `stopping` ends the run early, at the values it kept. The
    parts of a loss of several `ranks` are added over them; every rank ends with the same values. Raises
    InputError when the loss or a gradient turns NaN or infinite, when the loss explodes, where a checkpoint is damaged
    or could not be written, and on all ranks where one fails.
    """
    return list(
        steps(
            parameters, loss, plan, memory=memory, stopping=stopping, ranks=ranks, resume=resume, key=key, desc=desc,
            progress=progress,
        )
    )  # fmt: skip


def steps(
    parameters: Sequence[Tensor],
    loss: StepLoss,
    plan: Plan,
    *,
    memory: Tensor | None = None,
    stopping: Stopping | None = None,
    ranks: Ranks | None = None,
    resume: str | Path | None = None,
    key: str = "",
    desc: str = "train",
    progress: bool = True,
) -> Iterator[float]:
    """Do what `fit` does a step at a time, so that trainings of several parts of a model can take turns."""
    ranks = ranks or Ranks()
    optimizer = torch.optim.AdamW(_groups(parameters, plan), lr=plan.lr, weight_decay=plan.weight_decay)
    descent = _Descent(parameters, optimizer, plan, ranks, desc)
    name = content_key(plan=asdict(plan), key=key, tensors=len(parameters) + (memory is not None))
    with ranks.together() as claims:
        checkpoint = Checkpoint(resume, name, descent, memory, stopping)
        history = checkpoint.restore()
        claims += [name, len(history)]
    if stopping is not None:
        stopping.begin(parameters)
    yield from history
    with tqdm(total=plan.steps, initial=len(history), desc=desc, disable=not progress or ranks.rank > 0) as bar:
        for step in range(len(history), plan.steps):
            history.append(descent.step(step, loss))
            descent.check_size(history)
            bar.set_postfix(loss=f"{history[-1]:.3f}", refresh=False)
            bar.update()
            last = len(history) == plan.steps
            over = stopping is not None and stopping.look(len(history), parameters, last=last)
            if len(history) % plan.save_every == 0 and not (last or over):
                checkpoint.save(history)
            yield history[-1]
            if over:
                break
    checkpoint.remove()
    for parameter in parameters:
        parameter.grad = None


def draw(items: Sequence[T], count: int, seed: int, step: int) -> list[T]:
    """Return the `count` items of a step: passes over the items in a new random order each, by (seed, step) alone."""
    size = len(items)
    picked: list[T] = []
    for place in range(step * count, (step + 1) * count):
        epoch, offset = divmod(place, size)
        if not picked or offset == 0:
            order = list(range(size))
            random.Random(f"{seed}:{epoch}").shuffle(order)
        picked.append(items[order[offset]])
    return picked


class _Descent:
    """Steps down a loss, of this process alone or of all that work together."""

    def __init__(
        self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, plan: Plan, ranks: Ranks, desc: str
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import is_initialized
        from accelerate.utils import GradientAccumulationPlugin

        self.parameters, self.optimizer, self.plan, self.ranks, self.desc = parameters, optimizer, plan, ranks, desc
        self.schedule = _schedule(optimizer, plan)
        once = GradientAccumulationPlugin(num_steps=1)  # else the environment may divide every loss
        cpu = parameters[0].device.type == "cpu" and not is_initialized()  # it refuses to change where it once was
        self.accelerator = Accelerator(cpu=cpu, device_placement=False, gradient_accumulation_plugin=once)
        self.prepared = self.accelerator.prepare_optimizer(optimizer)
        self.spread = any(map(spread, parameters))

    @torch.enable_grad()  # whoever asks may be within no_grad
    def step(self, step: int, loss: StepLoss) -> float:
        """Do one step, and return its loss."""
        self.prepared.zero_grad()
        # passes through what is spread talk to the other ranks: an error on one alone ends its process, so the launch
        with nullcontext() if self.spread else self.ranks.together():
            value = self._back(step, loss(step))
        value = self.ranks.add_gradients(self.parameters, value)
        if self.plan.clip is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        else:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.plan.clip)
        self._check("gradient", float(whole(norm)), step)
        self.prepared.step()
        self.schedule.step()
        return value

    def check_size(self, history: Sequence[float]) -> None:
        """Raise InputError where the loss is a thousand times what it was at first, and of a thousand at least."""
        if abs(history[-1]) > EXPLODED * max(1.0, abs(history[0])):
            raise InputError(
                f"{self.desc}: the training explodes: the loss is {history[-1]:.4g} at step {len(history) - 1}, "
                f"at first it was {history[0]:.4g}: lower lr (now {self.plan.lr:g})"
            )

    def load(self, state: dict[str, Any]) -> None:
        """Take up the optimiser's state, each rank its part of what is spread."""
        for i, parameter in enumerate(p for group in self.optimizer.param_groups for p in group["params"]):
            found = state["state"].get(i, {})
            for name, value in found.items():
                if value.shape == parameter.shape:
                    found[name] = as_spread(value, parameter)
        self.optimizer.load_state_dict(state)

    def _back(self, step: int, found: Tensor | Iterable[Tensor]) -> float:
        total = 0.0
        for part in [found] if isinstance(found, Tensor) else found:
            value = float(part.detach())
            for one in self.ranks.gather(value) if self.spread else [value]:
                self._check("loss", one, step)
            self.accelerator.backward(part)
            total += value
        return total

    def _check(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            advice = f"lower lr (now {self.plan.lr:g})" if step else "check the loss and the model's weights"
            raise InputError(f"{self.desc}: the {what} is {value} at step {step}: {advice}")


def _counts(count: Any) -> bool:
    return isinstance(count, Integral) and int(count) >= 1


def _groups(parameters: Sequence[Tensor], plan: Plan) -> list[dict[str, Any]]:
    """The parameters by learning rate."""
    found: dict[float, list[Tensor]] = {}
    for parameter, rate in zip(parameters, plan.rates or [plan.lr] * len(parameters), strict=True):
        found.setdefault(rate, []).append(parameter)
    return [{"params": group, "lr": rate} for rate, group in found.items()]


def _schedule(optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
    if plan.schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=plan.steps + 1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
