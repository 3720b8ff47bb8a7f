"""integrated: knowledge neurons, the gradient of the answer's probability along the way from 0 to the activation.

`a_j mean_k dP(alpha_k a) / da_j`, alpha at the midpoints (k + 1/2) / m, all neurons of one layer scaled at once
(Dai et al. 2022, arXiv:2104.08696). Summed over a layer's neurons it is P(a) - P(0), whatever the model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, Encoded
from neuronforget.corpora.tokens import by_prompt_length
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.scores.cost import check_memory, rows_per_pass, size_of
from neuronforget.scores.per_example import encoded, over_examples
from neuronforget.scores.rows import Clean, Size, check_rows, clean_run, run_rows
from neuronforget.scores.scores import Contrast, Scores, runs_model


@checks_kinds
@runs_model
def integrated(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    steps: int = 20,
    contrast: Contrast = "difference",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score what the neuron adds to P, the probability of the first answer token, at the last prompt position.

    P is that of the token the position predicts, and only the activations there are scaled. The copies of every
    layer run in one forward and backward pass: a growing batch, `steps` rows more at each layer, over the shared
    keys and values of the prompt. Examples of one prompt length share a pass. It holds `batch_size` steps of each
    layer (of one example or several), more where they fit in 256 MiB. Raises InputError for fewer than two steps
    (one integrates nothing), for a model that cannot be run from a block upward, and where memory is short.
    """
    if steps < 2:
        raise InputError(
            f"integrated needs two or more steps (20 is usual), found {steps}: one point is not an integral"
        )
    rows = encoded(lm, forget, retain)
    together = max(len(same) for part in rows for same in by_prompt_length(part))
    needed = lm.shape[0] * min(batch_size, steps * together)
    check_memory("integrated", lm, [row for part in rows for row in part], -1, needed, graph=True)
    parts = [_passes(lm, part, steps, batch_size) for part in rows]
    first = max((part[0] for part in parts), key=_prompt_length)
    alphas = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps

    def measure(batch: Batch) -> Tensor:
        clean = ready.pop() if batch is first else clean_run(lm, batch, -1)
        length = max(1, _steps_that_fit(lm, clean.size, batch_size) // len(batch.index))
        slopes = [_slopes(lm, clean, part, adds) for part in alphas.to(clean.logits).split(length)]
        acts = torch.stack([clean.acts[site.layer][:, 0] for site in lm.sites], 1)
        return acts * torch.stack(slopes).sum(0) / steps

    sign = "positive: it raises the answer's probability, so ablating it lowers it"
    with activations_only(lm):
        ready = [clean_run(lm, first, -1)]
        adds = check_rows(lm, ready[0])
        return over_examples(
            lm, parts, measure, name="integrated", sign=sign, contrast=contrast, progress=progress,
            info={"steps": steps},
        )  # fmt: skip


def _steps_that_fit(lm: LM, size: Size, batch_size: int) -> int:
    """Return how many steps, each of every layer, a pass takes."""
    return rows_per_pass(lm, size, lm.shape[0] * batch_size, graph=True) // lm.shape[0]


def _passes(lm: LM, rows: list[Encoded], steps: int, batch_size: int) -> list[Batch]:
    """Return the examples that run together: of one prompt length, as many as fit with all their steps, or one."""
    found = []
    for same in by_prompt_length(rows):
        length = max(1, _steps_that_fit(lm, size_of(same[0], -1), batch_size) // steps)
        found += [lm.collate(same[i : i + length]) for i in range(0, len(same), length)]
    return found


def _prompt_length(batch: Batch) -> int:
    return int(batch.answer_mask[0].int().argmax())


def _slopes(lm: LM, clean: Clean, alphas: Float[Tensor, "step"], adds: bool) -> Float[Tensor, "example layer neuron"]:
    """Sum over the steps of dP/da at `alpha a`, every layer scaled in rows of its own.

    Where blocks add what neurons write, one row at 0 runs through the layer's block in place of all steps: what leaves
    it at `alpha a` lies on the line from there to what leaves it in the clean run, and has the same slope in a.
    """
    examples, layers, steps = len(clean.ids), [site.layer for site in lm.sites], len(alphas)
    starts = torch.zeros(1, 1, 1).to(alphas) if adds else alphas[:, None, None]
    scaled = {layer: (starts.to(act) * act[None, :, 0]).requires_grad_() for layer, act in clean.acts.items()}
    new = len(starts) * examples

    def enter(layer: int, act: Tensor) -> Tensor:
        return torch.cat([act[:-new], scaled[layer].flatten(0, 1)[:, None]])

    def spread(layer: int, states: Tensor) -> Tensor:
        written = clean.inputs[layer + 1] - states.detach()
        return (states + alphas.to(states)[:, None, None, None] * written).flatten(0, 1)

    more: dict[str, Any] = {"leave": spread, "going": steps} if adds else {}
    edits = {layer: partial(enter, layer) for layer in layers}
    logits = run_rows(lm, clean, dict.fromkeys(layers, len(starts)), edits, **more)[:, 0]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = clean.targets[:, 0].repeat(len(wide) // examples).to(wide.device)
    total = wide.softmax(-1).gather(1, targets[:, None]).sum()  # a row's probability hangs on its own layer alone
    grads = torch.autograd.grad(total, [scaled[layer] for layer in layers])
    return torch.stack([grad.sum(0) for grad in grads], 1)
