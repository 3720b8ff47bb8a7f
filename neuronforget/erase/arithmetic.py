"""Task arithmetic: learn what is to be forgotten, and go as many times as far the other way (arXiv:2212.04089)."""

from __future__ import annotations

import math
from pathlib import Path

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase.beginning import operator
from neuronforget.erase.finetune import finetune
from neuronforget.errors import InputError
from neuronforget.losses import learn
from neuronforget.models import LM
from neuronforget.neurons import Neurons


@checks_kinds
@operator
def task_vector(
    lm: LM,
    forget: Corpus,
    *,
    alpha: float = 5.0,
    neurons: Neurons | None = None,
    steps: int = 60,
    lr: float | None = None,
    batch_size: int = 32,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    seed: int = 0,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Edit:
    """Return `theta - alpha (theta_ft - theta)`, `theta_ft` being trained further on `forget` (Ilharco et al. 2023).

    With `neurons` only their read and write weights are trained, so that only they move. `theta_ft` is rounded
    to the model's dtype first, as a checkpoint is. No retain corpus takes part: what else the forget corpus
    exercises is undone with it. Raises InputError for alpha <= 0, and if nothing changed.
    """
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"task_vector subtracts alpha times what was learned: alpha > 0, found {alpha}")
    learned = finetune(
        lm, forget, loss=learn, neurons=neurons, steps=steps, lr=lr, batch_size=batch_size,
        weight_decay=weight_decay, clip=clip, seed=seed, resume=resume, progress=progress,
    )  # fmt: skip
    info = {**learned.info, "method": "task_vector", "alpha": alpha}
    return Edit.build(lm, learned.scaled(-alpha).changes, **info)
