"""integrated: knowledge neurons, the gradient of the answer's probability along the way from 0 to the activation.

`a_j mean_k dP(alpha_k a) / da_j`, alpha at the midpoints (k + 1/2) / m, all neurons of one layer scaled at once
(Dai et al. 2022, arXiv:2104.08696). Summed over a layer's neurons it is P(a) - P(0), whatever the model.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Batch, Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.scores.cost import check_memory, rows_per_pass
from neuronforget.scores.per_example import encoded, longest, over_examples
from neuronforget.scores.rows import Clean, check_rows, clean_run, run_rows
from neuronforget.scores.scores import Contrast, Scores, runs_model


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
    keys and values of the prompt. A pass holds `batch_size` steps of each layer, more where they fit in 256 MiB.
    Raises InputError for fewer than two steps (one integrates nothing), for a model that cannot be run from a
    block upward, and where memory is short.
    """
    if steps < 2:
        raise InputError(f"integrated needs two or more steps (20 is usual), found {steps}: one point is no integral")
    rows = encoded(lm, forget, retain)
    every = [row for part in rows for row in part]
    check_memory("integrated", lm, every, -1, lm.shape[0] * min(batch_size, steps), graph=True)
    alphas = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps

    def measure(example: Batch) -> Tensor:
        clean = clean_run(lm, example, -1)
        fit = rows_per_pass(lm, clean.size, lm.shape[0] * batch_size, graph=True) // lm.shape[0]
        slopes = [_slopes(lm, clean, part) for part in alphas.to(clean.logits).split(fit)]
        acts = torch.stack([clean.acts[site.layer][0, 0] for site in lm.sites])
        return (acts * torch.stack(slopes).sum(0) / steps)[None]

    sign = "positive: it raises the answer's probability, so ablating it lowers it"
    with activations_only(lm):
        check_rows(lm, longest(lm, rows), -1)
        return over_examples(
            lm, rows, measure, name="integrated", sign=sign, contrast=contrast, batch_size=1, progress=progress,
            info={"steps": steps},
        )  # fmt: skip


def _slopes(lm: LM, clean: Clean, alphas: Float[Tensor, "step"]) -> Float[Tensor, "layer neuron"]:
    """Sum over the steps of dP/da at `alpha a`, every layer scaled in rows of its own."""
    scaled = {layer: (alphas[:, None] * act[0]).requires_grad_() for layer, act in clean.acts.items()}

    def enter(layer: int, act: Tensor) -> Tensor:
        return torch.cat([act[: -len(alphas)], scaled[layer][:, None]])

    entering = {site.layer: len(alphas) for site in lm.sites}
    logits = run_rows(lm, clean, entering, {layer: partial(enter, layer) for layer in entering})[:, 0]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = wide.softmax(-1)[:, clean.targets[0]].sum()  # a row's probability hangs on its own layer alone
    grads = torch.autograd.grad(total, [scaled[site.layer] for site in lm.sites])
    return torch.stack([grad.sum(0) for grad in grads])
