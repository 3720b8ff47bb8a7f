"""Erase by training: any loss, on the selected neurons' weights alone or, as its baseline, on the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.changes import Change
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.erase.ablate import check_neurons, finished
from neuronforget.erase.answering import Answering
from neuronforget.errors import InputError
from neuronforget.losses import Loss, identity, name_of, npo, settings_of
from neuronforget.models import LM, frozen, swapped
from neuronforget.neurons import Neurons
from neuronforget.slices import Slices
from neuronforget.train import Plan, draw, fit

Preferred = Corpus | Sequence[str] | None


def finetune(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    loss: Loss = npo,
    neurons: Neurons | None = None,
    preferred: Preferred = None,
    reinforced: Edit | None = None,
    steps: int = 60,
    lr: float | None = None,
    batch_size: int = 32,
    weight_decay: float = 0.01,
    clip: float | None = 1.0,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Edit:
    """Train `loss` on the read and write weights of `neurons`, or (without them) on every parameter.

    `preferred` are the answers a preference loss prefers: a corpus parallel to `forget`, or refusals to draw
    from; without it the examples' own `wrong` answers. `reinforced` is what whp contrasts the model with: an edit
    that learned the forget corpus better, `finetune(lm, forget, loss=losses.learn)`. `lr` defaults by size of the
    model (`default_lr`). Dropout is off. The model is left as it was, whatever happens. Raises InputError if
    nothing changed.
    """
    if retain is not None:
        check_disjoint(forget, retain)
    if neurons is not None:
        check_neurons(lm, neurons)
    plan = Plan(steps, default_lr(lm, neurons) if lr is None else lr, weight_decay, clip, seed=seed)
    name = name_of(loss)
    info: dict[str, Any] = {"method": f"finetune:{name}", "loss": name}
    info |= {"loss_settings": settings_of(loss), "steps": steps, "lr": plan.lr, "seed": seed}
    info |= {"batch_size": batch_size, "weight_decay": weight_decay, "forget": forget.digest()}
    info |= {"retain": retain.digest() if retain else None}
    answers = preferred_answers(forget, preferred, seed)
    if reinforced is not None:
        with reinforced.on(lm):
            info["reinforced"] = lm.digest()
    info |= {"model_before_training": lm.digest()}
    key = _work_key(neurons, answers, {**info, "loss": identity(loss)})
    with frozen(lm):
        work = Answering(lm, forget, retain, answers, batch_size, seed, reinforced=reinforced)
        if neurons is not None:
            slices = Slices.of(lm, neurons)
            work.start = slices.off
            with slices.on():
                history = fit([s.values for s in slices.all()], lambda step: loss(work.outputs(step)), plan,
                              memory=work.memory, resume=resume, key=key, desc=f"{name}@neurons",
                              progress=progress)  # fmt: skip
            changes = [s.change() for s in slices.all()]
        else:
            changes, history = _train_whole(work, loss, plan, resume, key, name, progress)
    info |= {"model_after_training": lm.digest(), "first_loss": history[0], "last_loss": history[-1]}
    return finished(lm, neurons, changes, **info)


def default_lr(lm: LM, neurons: Neurons | None) -> float:
    """Return 1e-5 (whole model) or 1e-4 (slices) for large models; 3e-4 or 1e-3 under 100M parameters."""
    small = sum(p.numel() for p in lm.parameters.values()) < 100_000_000
    if neurons is None:
        return 3e-4 if small else 1e-5
    return 1e-3 if small else 1e-4


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


def _train_whole(
    work: Answering, loss: Loss, plan: Plan, resume: str | Path | None, key: str, name: str, progress: bool
) -> tuple[list[Change], list[float]]:
    """Train every parameter, and put the old values back whatever happens.

    What is trained are copies in fp32, as the slices are; the model computes in its own dtype with their rounded
    values. In bf16 alone a small step would round away at once, and in fp16 AdamW's epsilon is zero.
    """
    parameters = work.lm.parameters
    before = {n: p.detach().clone() for n, p in parameters.items()}
    work.start = partial(swapped, parameters, before)
    grads = {n: p.grad for n, p in parameters.items()}
    wide = {n: nn.Parameter(p.to(torch.promote_types(p.dtype, torch.float32), copy=True)) for n, p in before.items()}
    hooks = []

    def at(step: int) -> Tensor:
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(wide[n])
        return loss(work.outputs(step))

    try:
        work.lm.model.requires_grad_(True)
        for n, p in parameters.items():
            p.grad = None
            hooks.append(p.register_post_accumulate_grad_hook(partial(_hand_over, to=wide[n])))
        history = fit(list(wide.values()), at, plan, memory=work.memory, resume=resume, key=key, desc=name,
                      progress=progress)  # fmt: skip
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for n, p in parameters.items():
                p.copy_(before[n])
                p.grad = grads[n]
    moved = [n for n in parameters if not torch.equal(wide[n], before[n].to(wide[n].dtype))]
    return [Change(n, wide[n].detach(), before[n]) for n in moved], history


def _hand_over(parameter: Tensor, *, to: Tensor) -> None:
    """Give a parameter's gradient to its wide copy."""
    assert parameter.grad is not None
    wide = parameter.grad.to(to.dtype)
    to.grad = wide if to.grad is None else to.grad + wide
    parameter.grad = None
