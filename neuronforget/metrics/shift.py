"""Where an edit moved the activations: RMS of `a_after - a_before` by layer."""

from __future__ import annotations

import torch

from neuronforget.corpora import Corpus, batches, encode
from neuronforget.edits import Edit
from neuronforget.guarding import asked
from neuronforget.models import LM, frozen
from neuronforget.taps import TorchHooks


@torch.no_grad()
def activation_shift(lm: LM, edit: Edit, corpus: Corpus, *, batch_size: int = 64) -> list[float]:
    """Return, for each layer, `sqrt(mean (a_after - a_before)^2)` over tokens and neurons."""
    tap, total, count = TorchHooks(lm), torch.zeros(len(lm.sites), dtype=torch.float64), 0
    with frozen(lm):
        for batch in batches(encode(corpus, lm.tokenizer, lm.max_length), batch_size, lm.pad_id, lm.device):
            before = tap(batch.inputs).acts
            with edit.on(lm), asked(lm, batch):
                after = tap(batch.inputs).acts
            real = batch.attention_mask.bool().flatten()
            count += int(real.sum()) * lm.shape[1]
            for i, site in enumerate(lm.sites):
                moved = (after[site.layer] - before[site.layer]).flatten(0, -2)[real]
                total[i] += moved.double().square().sum().cpu()
    return (total / count).sqrt().tolist()
