"""LLMEraser: undo a corpus' influence on what low-rank adapters learned (Ding et al. 2024, arXiv:2412.00383).

    phi' = phi + (|f| / |r|) (H + damping)^-1 dL_f,   phi = (A, B) of W = W0 + scale B A,   H of the mean retain NLL
    x = argmin  x (H + damping) x / 2 - b x,   by Adam, a batch of H at a time

The model is the one with the adapter merged in, and the edit is of its weights: `scale (B' A' - B A)`. What the base
model knew before the adapter was trained is not touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import finished
from neuronforget.erase.answering import Answering
from neuronforget.erase.beginning import operator
from neuronforget.erase.curvature import Curvature, Objective, adam, check_solver, twice_differentiable
from neuronforget.erase.finetune import Preferred, preferred_answers
from neuronforget.erase.fitting import check_loss
from neuronforget.erase.influence import check_precision, parts_of, undone
from neuronforget.erase.lowrank import Adapters, LoRA, adapted
from neuronforget.erase.rates import default_lr
from neuronforget.errors import InputError, reading
from neuronforget.losses import Loss, learn
from neuronforget.losses.outputs import valued
from neuronforget.models import LM, frozen
from neuronforget.runs import whole_folder
from neuronforget.train import Plan, fit

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Adapter:
    """What adapters learned: A `[rank, inputs]` and B `[outputs, rank]` by the name of the weight, times `scale`."""

    values: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)
    scale: float

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Read a folder that peft saved. Raises InputError where it holds no plain LoRA."""
        from safetensors.torch import load_file

        folder = Path(folder)
        with reading(folder / "adapter_config.json", "adapter"):
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        odd = [
            k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(k)
        ]
        if config.get("peft_type") != "LORA" or odd:
            raise InputError(
                f"{folder} is not a plain LoRA ({config.get('peft_type')}, {', '.join(odd) or 'no options'})"
            )
        with reading(folder / "adapter_model.safetensors", "adapter"):
            stored = {
                k.removeprefix("base_model.model."): v
                for k, v in load_file(folder / "adapter_model.safetensors").items()
            }
        ends = (".lora_A.weight", ".lora_B.weight")
        names = [key.removesuffix(ends[0]) for key in stored if key.endswith(ends[0])]
        if not names or any(not key.endswith(ends) for key in stored):
            raise InputError(f"{folder} holds other weights than LoRA's A and B: {min(stored, default='none')}")
        values = {f"{name}.weight": (stored[name + ends[0]], stored[name + ends[1]]) for name in names}
        return cls(values, config["lora_alpha"] / config["r"])

    def save(self, folder: str | Path) -> None:
        """Write it as peft does, for peft or `load` to read."""
        from safetensors.torch import save_file

        names = [name.removesuffix(".weight") for name in self.values]
        rank = len(next(iter(self.values.values()))[0])
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": self.scale * rank, "target_modules": names}
        stored = {
            f"base_model.model.{name}.lora_{end}.weight": value.detach().cpu().contiguous()
            for name, pair in zip(names, self.values.values(), strict=True)
            for end, value in zip("AB", pair, strict=True)
        }
        with whole_folder(folder) as scratch:
            save_file(stored, scratch / "adapter_model.safetensors")
            (scratch / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")

    def edit(self, lm: LM) -> Edit:
        """Return the edit that merges it into a model without it."""
        deltas = {name: self.scale * b.double() @ a.double() for name, (a, b) in self.values.items()}
        return finished(lm, None, _merged(lm, deltas), method="adapter")


@checks_kinds
@operator
def learn_adapter(
    lm: LM,
    corpus: Corpus,
    *,
    lora: int | LoRA = 8,
    loss: Loss = learn,
    retain: Corpus | None = None,
    preferred: Preferred = None,
    orthogonal_to: Mapping[str, Tensor] = NOTHING,
    steps: int = 60,
    lr: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Adapter:
    """Train adapters on a corpus and return them, the model left as it was.

    Each A keeps to the complement of the rows `orthogonal_to` of its weight. Raises InputError without peft, and where
    that complement has fewer directions than the rank.
    """
    answers = preferred_answers(corpus, preferred, seed)
    check_loss(lm, corpus, loss, retain=retain, preferred=answers, reinforced=None)
    lora = lora if isinstance(lora, LoRA) else LoRA(lora)
    plan = Plan(steps, default_lr(lm, None, adapters=True) if lr is None else lr, weight_decay=0.0, seed=seed)
    taken = {name: torch.linalg.qr(rows.double().T).Q for name, rows in orthogonal_to.items() if len(rows)}
    for name, q in taken.items():
        if (left := q.shape[0] - q.shape[1]) < lora.rank:
            raise InputError(f"{name} has {max(left, 0)} directions left for an adapter of rank {lora.rank}: lower it")
    work = Answering(lm, corpus, retain, answers, batch_size, seed)
    with frozen(lm), adapted(lm, lora, lora.names(lm), seed=seed) as found:
        work.start = found.off
        values = [value for name in found.layers for value in found.values(name)]

        def at(step: int) -> Tensor:
            _put_aside(found, taken)
            return valued(loss, work.outputs(step))

        fit(values, at, plan, memory=work.memory, desc="adapter", progress=progress)
        _put_aside(found, taken)
        kept = {n: tuple(v.detach().clone() for v in found.values(n)) for n in found.layers}
    return Adapter(kept, lora.scale)  # type: ignore[arg-type]


@torch.no_grad()
def _put_aside(found: Adapters, taken: Mapping[str, Tensor]) -> None:
    """Take out of each A what lies in the directions that are taken."""
    for name, q in taken.items():
        a, _ = found.values(name)
        wide, q = a.double(), q.to(a.device)
        a.copy_(wide - wide @ q @ q.T)


@checks_kinds
@operator
def llm_eraser(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    adapter: Adapter | str | Path,
    *,
    preferred: Corpus | Sequence[str] | None = None,
    curvature: Curvature = "gauss_newton",
    damping: float = 0.01,
    steps: int = 1000,
    lr: float = 2.0,
    tolerance: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
) -> Edit:
    """Undo the forget corpus in `adapter` (or the folder it is in), which is merged into `lm`, by its influence.

    `lr` is Adam's first step, relative to b; it falls to zero over `steps`. `info["residual"]` is over all of retain.
    Raises InputError where it is above `tolerance`, and for an adapter that does not fit the model.
    """
    check_disjoint(forget, retain)
    check_solver(damping, steps, tolerance)
    check_precision(lm)
    adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    _check_fits(lm, adapter)
    with frozen(lm), twice_differentiable(), standing_in(lm, adapter) as values:
        objective = Objective(values, parts_of(lm, retain, len(retain), batch_size))
        b = len(forget) / len(retain) * undone(lm, values, forget, preferred, batch_size, seed)
        product = partial(objective.product, kind=curvature)
        batches = [partial(product, parts=[part]) for part in objective.parts]
        found = adam(batches, b, damping=damping, steps=steps, lr=lr, tolerance=tolerance, seed=seed)
        moved = [v.detach().double() + d.double() for v, d in zip(values, objective.shaped(found.x), strict=True)]
    deltas = {}
    for (name, (a, b_old)), new_a, new_b in zip(adapter.values.items(), moved[::2], moved[1::2], strict=True):
        deltas[name] = adapter.scale * (new_b @ new_a - b_old.double().to(new_b.device) @ a.double().to(new_a.device))
    info: dict[str, Any] = {"method": "llm_eraser", "forget": forget.digest(), "retain": retain.digest()}
    info |= {"curvature": curvature, "damping": damping, "residual": found.residual, "steps": found.steps, "lr": lr}
    return finished(lm, None, _merged(lm, deltas), **info, seed=seed)


@contextmanager
def standing_in(lm: LM, adapter: Adapter) -> Iterator[list[nn.Parameter]]:
    """Within the block copies of A and B that carry gradients stand in for those that are merged into the weights.

    Yields A and B of one weight after the other.
    """
    values, handles = [], []
    for name, (a, b) in adapter.values.items():
        weight = lm.parameters[name]
        own = [nn.Parameter(v.detach().to(weight, copy=True)) for v in (a, b)]
        old = [v.detach().clone() for v in own]
        hook = partial(_difference, own=own, old=old, scale=adapter.scale)
        handles.append(lm.model.get_submodule(name.removesuffix(".weight")).register_forward_hook(hook))
        values += own
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def _difference(
    _module: Any, inputs: tuple[Tensor, ...], output: Tensor, *, own: list[Any], old: list[Tensor], scale: float
) -> Tensor:
    now, before = (inputs[0] @ a.T @ b.T for a, b in (own, old))
    return output + scale * (now - before)


def _check_fits(lm: LM, adapter: Adapter) -> None:
    parameters = lm.parameters
    for name, (a, b) in adapter.values.items():
        wanted = (b.shape[0], a.shape[1])
        shape = tuple(parameters[name].shape) if name in parameters else None
        if shape is None or shape != (wanted[::-1] if _transposed(lm, name) else wanted):
            raise InputError(f"the adapter is of another model: {name} is {shape or 'not there'}, it has {wanted}")


def _transposed(lm: LM, name: str) -> bool:
    return not isinstance(lm.model.get_submodule(name.removesuffix(".weight")), nn.Linear)


def _merged(lm: LM, deltas: Mapping[str, Tensor]) -> list[Change]:
    """The changes that add each delta `[outputs, inputs]` to its weight."""
    changes = []
    for name, delta in deltas.items():
        if name not in lm.parameters:
            raise InputError(f"the adapter is of another model: there is no {name}")
        before = lm.parameters[name].detach()
        delta = delta.T if _transposed(lm, name) else delta
        changes.append(Change(name, before.double() + delta.to(before.device), before.clone()))
    return changes
