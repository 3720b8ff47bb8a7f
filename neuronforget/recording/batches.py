"""record_batch(): one forward pass and one backward pass to the activations, reduced to moments on the way.

Each layer's activations and gradients are reduced as the backward pass reaches them (small layers a few together),
and freed. What is found stays on the model's device: a GPU is waited for once a batch, when all has been asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import torch
from neuronforget_kernels import PIECE_FIELDS, TABLE_FIELDS, Layout, moment_rows
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll
from neuronforget.moments import Moments, check_fields
from neuronforget.taps import Tap

Positions = Literal["all", "answer"]
#: A layer's fields and table entries, as `moment_rows` gives them.
Rows = tuple[Tensor, Tensor]
#: Layers of a small model wait until they hold so many activations: reduced in a row, they find code and buffers in
#: the cache.
TOGETHER = 2**21


@checks_kinds
def record_batch(
    tap: Tap, lm: LM, batch: Batch, *, positions: Positions = "all", per_example: bool = False, compiled: bool = False
) -> Moments:
    """Record one batch of token ids, for scripts that make their own; call it in `models.activations_only(lm)`.

    The moments add up; `norms` and `info` are left empty. Fields are where the layers are (`Moments.on` moves them),
    the table is on CPU. Raises InputError for NaN in activations or gradients.
    """
    examples = len(batch.index)
    read = Layout.of(segments_of(batch, positions).cpu(), examples)  # here: later a GPU would be waited for
    out = tap(batch.inputs)
    acts, nll = out.acts, answer_nll(out.logits, batch)
    del out  # the backward pass does not need the logits, often the largest tensor of all
    entries = TABLE_FIELDS if per_example else ()
    reduced = partial(moment_rows, fields=PIECE_FIELDS, table=entries, compiled=compiled)
    got = _reduce_backwards(acts, nll.sum(), cache(read.on), reduced)  # for each device that holds layers
    if missing := [site.layer for site in lm.sites if site.layer not in got]:
        raise InputError(f"no gradient reached layers {missing}: the model does not run its layers in order")
    rows = [got[site.layer] for site in lm.sites]
    home = _home(rows)
    fields = {name: torch.stack([row[0][0, i].to(home) for row in rows]) for i, name in enumerate(PIECE_FIELDS)}
    check_fields({**fields, **_finite_extremes(fields)})
    table = {name: torch.stack([row[1][i].to(home) for row in rows], 1).cpu() for i, name in enumerate(entries)}
    return Moments(
        fields,
        tokens=int(read.counts.sum()),
        examples=examples,
        pooled=int((read.counts > 0).sum()),
        loss=float(nll.detach().sum()),
        layers=tuple(site.layer for site in lm.sites),
        table=table,
        index=batch.index if per_example else (),
    )


def _reduce_backwards(
    acts: dict[int, Tensor], loss: Tensor, layout: Callable[[torch.device], Layout], reduced: Callable[..., Rows]
) -> dict[int, Rows]:
    """Reduce layers when the backward pass has reached them; `acts` is emptied on the way."""
    got: dict[int, Rows] = {}
    if without := [layer for layer, act in acts.items() if not act.requires_grad]:
        raise InputError(
            f"the activations of layers {without} carry no gradient: the model runs these layers under no_grad or "
            "in reentrant checkpoints; use checkpoint(..., use_reentrant=False), or none"
        )

    waiting: dict[int, tuple[Tensor, Tensor]] = {}

    def reduce_waiting() -> None:
        for layer, (act, grad) in waiting.items():
            got[layer] = reduced(act.flatten(0, -2), grad.flatten(0, -2), layout(act.device))
        waiting.clear()

    def keep(layer: int) -> Any:
        def hook(grad: Tensor) -> None:
            waiting[layer] = acts.pop(layer).detach(), grad
            if sum(act.numel() for act, _ in waiting.values()) >= TOGETHER:
                reduce_waiting()

        return hook

    # The lowest layer's gradient is asked for; the others are met on the way to it.
    lowest = acts[min(acts)]
    hooks = [act.register_hook(keep(layer)) for layer, act in acts.items()]
    try:
        torch.autograd.grad(loss, lowest)
        reduce_waiting()
    finally:
        for hook in hooks:  # a hook and the graph it hangs on hold each other: left in, neither is ever freed
            hook.remove()
    return got


def _home(rows: Sequence[Rows]) -> torch.device:
    """Where a batch's layers are put together: the device of all of them, or CPU where they lie on several."""
    devices = {row[0].device for row in rows}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")


def segments_of(batch: Batch, positions: Positions) -> Tensor:
    """Return each token's example number, -1 for tokens to leave out; [example * token]."""
    if positions == "answer":  # the position that predicts an answer token is the one before it
        keep = torch.nn.functional.pad(batch.answer_mask[:, 1:], (0, 1))
    else:
        keep = batch.attention_mask.bool()
    numbers = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)
    return torch.where(keep, numbers, -1).flatten()


def _finite_extremes(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    """A minimum of +inf only says that the batch had no token here."""
    return {"min": fields["min"].nan_to_num(posinf=0.0), "max": fields["max"].nan_to_num(neginf=0.0)}
