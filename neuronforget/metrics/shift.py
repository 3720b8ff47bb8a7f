"""Where an edit moved the activations: RMS of `a_after - a_before`, by neuron or by layer."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.edits.guarding import asked
from neuronforget.models import LM, frozen
from neuronforget.taps import TorchHooks


@checks_kinds
@torch.no_grad()
def neuron_shift(lm: LM, edit: Edit | LM, corpus: Corpus, *, batch_size: int = 64) -> Float[Tensor, "layer neuron"]:
    """Return `sqrt(mean (a_after - a_before)^2)` over tokens, of each neuron (float64).

    `edit` may be another model of the same layers, read by the same tokens.
    """
    after = edit if isinstance(edit, LM) else lm
    total, count = torch.zeros(lm.shape, dtype=torch.float64), 0
    with frozen(lm), frozen(after):
        for batch in lm.batches(corpus, batch_size):
            here = TorchHooks(lm)(batch.inputs).acts
            if isinstance(edit, LM):
                there = TorchHooks(edit)(batch.inputs).acts
            else:
                with edit.on(lm), asked(lm, batch):
                    there = TorchHooks(lm)(batch.inputs).acts
            real = batch.attention_mask.bool().flatten()
            count += int(real.sum())
            for i, site in enumerate(lm.sites):
                moved = (there[site.layer] - here[site.layer]).flatten(0, -2)[real]
                total[i] += moved.double().square().sum(0).cpu()
    return (total / count).sqrt()


@checks_kinds
def activation_shift(lm: LM, edit: Edit | LM, corpus: Corpus, *, batch_size: int = 64) -> list[float]:
    """Return, for each layer, `sqrt(mean (a_after - a_before)^2)` over tokens and neurons."""
    return by_layer(neuron_shift(lm, edit, corpus, batch_size=batch_size).numpy())


def by_layer(shift: Float[np.ndarray, "layer neuron"]) -> list[float]:
    """Return the root mean square over the neurons of each layer."""
    return np.sqrt(np.square(shift).mean(1)).tolist()
