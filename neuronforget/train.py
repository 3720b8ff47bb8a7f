"""The only training loop: AdamW on given parameters, resumable, and a function of its seed alone.

What is drawn at a step depends on (seed, step) only, so a run that was killed and resumed ends bit-equal to
one that was not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.errors import InputError
from neuronforget.runs import content_key, whole_file

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How to train: `steps` of AdamW at `lr`, gradients clipped to the norm `clip` (None: not)."""

    steps: int = 60
    lr: float = 1e-3
    weight_decay: float = 0.01
    clip: float | None = 1.0
    schedule: Literal["constant", "onecycle"] = "constant"
    seed: int = 0
    save_every: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0:
            raise InputError(f"training needs steps >= 1 and lr > 0; found steps={self.steps}, lr={self.lr}")


def fit(
    parameters: Sequence[Tensor],
    loss: Callable[[int], Tensor],
    plan: Plan,
    *,
    memory: Tensor | None = None,
    resume: str | Path | None = None,
    key: str = "",
    desc: str = "train",
    progress: bool = True,
) -> list[float]:
    """Minimise `loss(step)` over `parameters`, in place; return the loss of every step.

    `resume` is a folder for checkpoints, written every `plan.save_every` steps and removed at the end; `key`
    names the work, so that only a run with equal plan and key continues it. `memory` is what the loss itself
    changes from step to step; checkpoints hold it. Raises InputError when the loss turns NaN or infinite.
    """
    return list(steps(parameters, loss, plan, memory=memory, resume=resume, key=key, desc=desc, progress=progress))


def steps(
    parameters: Sequence[Tensor],
    loss: Callable[[int], Tensor],
    plan: Plan,
    *,
    memory: Tensor | None = None,
    resume: str | Path | None = None,
    key: str = "",
    desc: str = "train",
    progress: bool = True,
) -> Iterator[float]:
    """Do what `fit` does a step at a time, so that trainings of several parts of a model can take turns."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=parameters[0].device.type == "cpu")
    optimizer = torch.optim.AdamW(list(parameters), lr=plan.lr, weight_decay=plan.weight_decay)
    schedule = _schedule(optimizer, plan)
    prepared = accelerator.prepare_optimizer(optimizer)
    tensors = [*parameters, *([] if memory is None else [memory])]
    name = content_key(plan=asdict(plan), key=key, tensors=len(tensors))
    path = Path(resume) / f"{name}.pt" if resume else None
    history = _restore(path, tensors, optimizer, schedule)
    yield from history
    with tqdm(total=plan.steps, initial=len(history), desc=desc, disable=not progress) as bar:
        for step in range(len(history), plan.steps):
            value = loss(step)
            if not torch.isfinite(value):
                advice = f"lower lr (now {plan.lr:g})" if step else "check the loss and the model's weights"
                raise InputError(f"{desc}: the loss is {float(value.detach())} at step {step}: {advice}")
            prepared.zero_grad()
            accelerator.backward(value)
            if plan.clip is not None:
                accelerator.clip_grad_norm_(parameters, plan.clip)
            prepared.step()
            schedule.step()
            history.append(float(value.detach()))
            bar.set_postfix(loss=f"{history[-1]:.3f}", refresh=False)
            bar.update()
            if path and len(history) % plan.save_every == 0 and len(history) < plan.steps:
                _save(path, tensors, optimizer, schedule, history)
            yield history[-1]
    if path:
        path.unlink(missing_ok=True)
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


def _schedule(optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
    if plan.schedule == "onecycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.lr, total_steps=plan.steps + 1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def _save(path: Path, tensors: Sequence[Tensor], optimizer: Any, schedule: Any, history: list[float]) -> None:
    with whole_file(path) as scratch:
        state = {"tensors": [t.detach() for t in tensors], "optimizer": optimizer.state_dict()}
        torch.save({**state, "schedule": schedule.state_dict(), "history": history}, scratch)


def _restore(path: Path | None, tensors: Sequence[Tensor], optimizer: Any, schedule: Any) -> list[float]:
    if path is None or not path.is_file():
        return []
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for tensor, saved in zip(tensors, state["tensors"], strict=True):
            tensor.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return list(state["history"])
