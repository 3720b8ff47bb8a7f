"""What the same numbers cost elsewhere: each function returns what our call does, [layer, neuron], mean over examples.

They are written as the libraries' own guides do it, batch by batch or layer by layer. `lm` is one of our LMs, for its
`model` and the paths of its output projections; `batches` hold equally long examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuronforget.corpora import Batch
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_nll

#: Rows of a stacked pass.
ROWS = 256


def lens_cache(lm: LM, batches: Sequence[Batch]) -> Tensor:
    """grad x act by TransformerLens: forward and backward hooks that fill two caches."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from neuronforget.models import shared_twin

    bridge = build_bridge_from_module(shared_twin(lm.model), type(lm.model).__name__, hf_config=lm.model.config)
    names = [f"blocks.{site.layer}.mlp.out.hook_in" for site in lm.sites]
    total = torch.zeros(lm.shape)
    for batch in batches:
        acts: dict[str, Tensor] = {}
        grads: dict[str, Tensor] = {}

        def save(value: Tensor, hook: Any, into: dict[str, Tensor]) -> None:
            into[hook.name] = value.detach()

        forward = [(name, partial(save, into=acts)) for name in names]
        backward = [(name, partial(save, into=grads)) for name in names]
        with bridge.hooks(fwd_hooks=forward, bwd_hooks=backward):
            answer_nll(bridge(batch.input_ids, return_type="logits"), batch).sum().backward()
        total -= torch.stack([(acts[name] * grads[name]).sum((0, 1)) for name in names])
        bridge.zero_grad()
    return total / _examples(batches)


def nnsight_trace(lm: LM, batches: Sequence[Batch]) -> Tensor:
    """grad x act by nnsight: a trace that saves every layer's activations, gradients after it."""
    from nnsight import NNsight

    net, total = NNsight(lm.model), torch.zeros(lm.shape)
    for batch in batches:
        acts = []
        with net.trace(**batch.inputs):
            for site in lm.sites:
                act = net.get(site.path).input
                act.retain_grad()
                acts.append(act.save())
            logits = net.output.logits.save()
        answer_nll(logits, batch).sum().backward()
        total -= torch.stack([(act * act.grad).sum((0, 1)).detach() for act in acts])
        lm.model.zero_grad()
    return total / _examples(batches)


def captum_layers(lm: LM, batches: Sequence[Batch]) -> Tensor:
    """grad x act by captum: `LayerGradientXActivation`, layer by layer."""
    from captum.attr import LayerGradientXActivation

    total = torch.zeros(lm.shape)
    for batch in batches:

        def loss(ids: Tensor, batch: Batch = batch) -> Tensor:
            return answer_nll(lm.model(input_ids=ids, use_cache=False).logits, batch)

        for row, site in enumerate(lm.sites):
            method = LayerGradientXActivation(loss, lm.model.get_submodule(site.path))
            total[row] -= method.attribute(batch.input_ids, attribute_to_layer_input=True).detach().sum((0, 1))
    return total / _examples(batches)


def captum_integrated(lm: LM, batches: Sequence[Batch], steps: int) -> Tensor:
    """`integrated` by captum: `LayerIntegratedGradients` on the last position's activations, layer by layer.

    The path begins at the activations of embeddings of 0, which in a Llama (no biases) are 0.
    """
    from captum.attr import LayerIntegratedGradients

    total = torch.zeros(lm.shape)
    for batch in batches:
        prompt, target = _question(batch)
        embedded = lm.model.get_input_embeddings()(prompt).detach()

        def answer(embeddings: Tensor, target: Tensor = target) -> Tensor:
            logits = lm.model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[:, -1]
            return logits.softmax(-1).gather(1, target.repeat(len(logits) // len(target))[:, None])[:, 0]

        for row, site in enumerate(lm.sites):
            with _last_position(lm, site.path, nn.Identity()) as point:
                found = LayerIntegratedGradients(answer, point).attribute(
                    embedded, torch.zeros_like(embedded), n_steps=steps, method="riemann_middle"
                )
            total[row] += found.detach().sum((0, 1))
    return total / _examples(batches)


def plain_integrated(lm: LM, batches: Sequence[Batch], steps: int) -> Tensor:
    """`integrated` in plain torch: one layer and one example at a time, its steps stacked on the batch."""
    alphas = (torch.arange(steps) + 0.5) / steps
    total = torch.zeros(lm.shape)
    for prompt, target in _each(batches):
        for row, site in enumerate(lm.sites):
            kept: list[Tensor] = []

            def scale(act: Tensor, kept: list[Tensor] = kept) -> Tensor:
                kept += [act[0, 0].detach(), (alphas[:, None, None] * act.detach()).requires_grad_()]
                return kept[1]

            with _last_position(lm, site.path, _Apply(scale)):
                ids = prompt.expand(steps, -1)
                logits = lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            (slopes,) = torch.autograd.grad(logits.softmax(-1)[:, target].sum(), kept[1])
            total[row] += kept[0] * slopes.mean((0, 1))
    return total / _examples(batches)


@torch.no_grad()
def stacked_ablation(lm: LM, batches: Sequence[Batch]) -> Tensor:
    """`exact` at the last prompt position in plain torch: neurons stacked on the batch, through the whole model."""
    total = torch.zeros(lm.shape)
    for prompt, target in _each(batches):

        def loss(rows: int, prompt: Tensor = prompt, target: int = target) -> Tensor:
            ids = prompt.expand(rows, -1)
            return -lm.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1].log_softmax(-1)[:, target]

        clean = loss(1)
        for row, site in enumerate(lm.sites):
            for neurons in torch.arange(site.d_mlp).split(ROWS):

                def ablate(act: Tensor, neurons: Tensor = neurons) -> Tensor:
                    return act.index_put((torch.arange(len(act)), torch.tensor(0), neurons), torch.zeros(()))

                with _last_position(lm, site.path, _Apply(ablate)):
                    total[row, neurons] += loss(len(neurons)) - clean
    return total / _examples(batches)


class _Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, act: Tensor) -> Tensor:
        return self.function(act)


@contextmanager
def _last_position(lm: LM, path: str, module: nn.Module) -> Iterator[nn.Module]:
    """Send the last position's activations `[row, 1, neuron]` through `module`."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (torch.cat([inputs[0][:, :-1], module(inputs[0][:, -1:])], 1),)

    handle = lm.model.get_submodule(path).register_forward_pre_hook(hook)
    try:
        yield module
    finally:
        handle.remove()


def _question(batch: Batch) -> tuple[Tensor, Tensor]:
    """Prompts [example, token] of one length, and the first token of each answer."""
    start = int(batch.answer_mask[0].int().argmax())
    return batch.input_ids[:, :start], batch.input_ids[:, start]


def _each(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, int]]:
    for batch in batches:
        for prompt, target in zip(*_question(batch), strict=True):
            yield prompt[None], int(target)


def _examples(batches: Sequence[Batch]) -> int:
    return sum(len(batch.index) for batch in batches)
