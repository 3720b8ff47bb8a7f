"""Weights rounded to few bits and back: does what an edit hid come back when the model is made smaller?

A small change of weights can round away while the knowledge under it stays: models that kept 21% of it in full
precision had 83% at 4 bits (Zhang et al. 2024, arXiv:2410.16454). The round trip is done on any device, without a
kernel of that width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from neuronforget.auditing.cases import Case, Reading, asked
from neuronforget.metrics import Metric
from neuronforget.models import LM, swapped
from neuronforget.models.routed import RoutedMLP
from neuronforget.scores.blocks import blocks_of

BLOCK = 64  # values that share a scale at 4 bits


def int8(weight: Tensor) -> Tensor:
    """Return a weight matrix `[out, in]` after 8 bits: 255 even steps of each row's largest absolute value."""
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return ((wide / scale).round() * scale).to(weight.dtype)


def nf4(weight: Tensor) -> Tensor:
    """Return a weight matrix after 4 bits: blocks of 64 values, each the nearest of 16 levels of its largest one.

    The levels are quantiles of a normal distribution, with an exact zero (NF4; Dettmers et al. 2023, arXiv:2305.14314).
    """
    flat = weight.float().flatten()
    padded = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = padded.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    known = levels().to(padded.device)
    middle = (known[1:] + known[:-1]) / 2
    near = known[torch.bucketize(padded / scale, middle)]
    return (near * scale).flatten()[: len(flat)].view(weight.shape).to(weight.dtype)


@cache
def levels() -> Tensor:
    """Return NF4's 16 levels, from -1 to 1: eight quantiles of a normal above zero, seven below, and zero."""
    from scipy.stats import norm

    end = 0.9677083  # between the outermost quantiles of the two halves, so that neither is infinite
    above = norm.ppf(torch.linspace(end, 0.5, 9)[:-1].numpy())
    below = -norm.ppf(torch.linspace(end, 0.5, 8)[:-1].numpy())
    found = torch.tensor([*above, 0.0, *below], dtype=torch.float64).sort().values
    return (found / found.max()).float()


#: Round trips by name: functions of one weight matrix.
TRIPS: dict[str, Callable[[Tensor], Tensor]] = {"int8": int8, "nf4": nf4}


@contextmanager
def quantised(lm: LM, how: str) -> Iterator[None]:
    """Within the block every weight matrix of the model's blocks has been through a round trip of `TRIPS`.

    Embeddings, unembedding, norms and biases stay, as deployed models leave them. Routed experts go one by one.
    """
    found, values = {}, {}
    experts: dict[str, tuple[int, int]] = {}
    for name, module in blocks_of(lm).named_modules():
        if isinstance(module, RoutedMLP):
            experts |= {f"{name}.{part}": (module.layout.count, int(part == "down")) for part in ("gate", "up", "down")}
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2:
            found[name] = weight
            turned = type(module).__name__ == "Conv1D"  # GPT-2 keeps its maps as [in, out]
            with torch.no_grad():
                count, dim = experts.get(name, (1, 0))
                own = (weight.detach().T if turned else weight.detach()).chunk(count, dim)
                made = torch.cat([TRIPS[how](part) for part in own], dim)
            values[name] = made.T if turned else made
    with swapped(found, values):
        yield


def quantisation(case: Case, metric: Metric) -> Iterator[Reading]:
    """Ask every subject again after 8 bits and after 4. Without a gold twin, what it answered before is the floor."""
    for how in TRIPS:
        for subject in case.subjects:
            with subject.on() as lm, quantised(lm, how):
                yield from asked(case, subject.name, lm, how, case.corpora, metric)
