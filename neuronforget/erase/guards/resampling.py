"""Resample ablation: a neuron's activation is replaced by the one it has at a token of the retain corpus.

    a[t, S] <- a[t, S] + strength (donor - a[t, S])

All selected neurons of a layer take theirs from one donor token, so that what they do together stays as they do it
(Chan et al. 2022, causal scrubbing). Zero and mean ablation put them where the model never has them; this does not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.edits.guarding import Given, Guard, before_pass, mechanism
from neuronforget.erase.beginning import operator
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.neurons import Neurons
from neuronforget.taps import TorchHooks


@checks_kinds
@operator
def resample(
    lm: LM, neurons: Neurons, retain: Corpus, *, tokens: int = 256, batch_size: int = 32, seed: int = 0
) -> Edit:
    """Replace the activations of `neurons` by those at `tokens` retain tokens, drawn by `seed`.

    The token of id `k` at place `t` of a row takes the donor `(k + t) mod tokens`: what an example is given does not
    depend on its batch. Raises InputError for an empty set and for fewer than one token.
    """
    check_neurons(lm, neurons)
    if tokens < 1:
        raise InputError(f"resample draws from retain tokens: tokens >= 1, found {tokens}")
    donors = {f"donors.{layer}": acts for layer, acts in _drawn(lm, neurons, retain, tokens, batch_size, seed).items()}
    index = {f"index.{layer}": chosen for layer, chosen in neurons.by_layer().items()}
    guard = Guard.of(lm, "resample", donors | index, layers=sorted(neurons.by_layer()))
    about = {"neurons": len(neurons), "retain": retain.digest(), "tokens": tokens, "seed": seed}
    return Edit.guarding(guard, **about, control=neurons.info.get("control"))


@torch.no_grad()
def _drawn(lm: LM, neurons: Neurons, retain: Corpus, tokens: int, batch_size: int, seed: int) -> dict[int, Tensor]:
    """Each layer's activations [donor, neuron] at the drawn tokens, in the order of the draw."""
    rows, chosen, tap = lm.encode(retain), neurons.by_layer(), TorchHooks(lm)
    every = [(row.index, t) for row in rows for t in range(len(row.ids))]
    wanted = random.Random(seed).sample(every, min(tokens, len(every)))
    order = {token: i for i, token in enumerate(wanted)}
    rows = [row for row in rows if row.index in {example for example, _ in wanted}]
    found: dict[int, list[Tensor]] = {layer: [torch.empty(0)] * len(wanted) for layer in chosen}
    with frozen(lm):
        for batch in lm.batches(rows, batch_size):
            acts = tap(batch.inputs).acts
            for i, example in enumerate(batch.index):
                for t in range(int(batch.attention_mask[i].sum())):
                    if (donor := order.get((example, t))) is not None:
                        for layer, index in chosen.items():
                            found[layer][donor] = acts[layer][i, t, index.to(acts[layer].device)].cpu()
    return {layer: torch.stack(values) for layer, values in found.items()}


@mechanism("resample")
def _install(lm: LM, guard: Guard) -> Iterator[Any]:
    donor = torch.zeros(0, dtype=torch.long)

    def draw(given: Given, _kwargs: dict[str, Any]) -> None:
        nonlocal donor
        donor = given.ids + given.place

    def replace(index: Tensor, donors: Tensor) -> Any:
        def hook(_module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            own = index.to(inputs[0].device)
            before = inputs[0].index_select(-1, own)
            given = donors[(donor % len(donors)).cpu()].to(before).view_as(before)
            after = inputs[0].index_copy(-1, own, torch.lerp(before, given, guard.strength))
            return (after, *inputs[1:])

        return hook

    yield before_pass(lm, draw)
    for site in lm.sites:
        if site.layer in guard.settings["layers"]:
            hook = replace(guard.tensors[f"index.{site.layer}"], guard.tensors[f"donors.{site.layer}"])
            yield lm.model.get_submodule(site.path).register_forward_pre_hook(hook)
