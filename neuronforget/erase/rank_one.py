"""Closed-form edits of write weights: ROME's rank-one edit on a set of neurons, for any number of facts.

Each fact gives a key `k` (the activations at the last subject token, else the last prompt token) and a change
`r` of the MLP's output that makes the model forget it. Per layer, with K the keys and C = E[k k^T] on retain text,

    dW_S = R (lambda I + K_S^T C_SS^-1 K_S)^-1 K_S^T C_SS^-1     [= R K_S^T (lambda C_SS + K_S K_S^T)^-1]

is the smallest change in C-norm that touches only S; one fact, all neurons and lambda = 0 is ROME
(Meng et al. 2022, arXiv:2202.05262), all neurons of several layers MEMIT (2023, arXiv:2210.07229).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuronforget.changes import Change
from neuronforget.corpora import Batch, Corpus, batches, check_disjoint, encode
from neuronforget.edits import Edit
from neuronforget.erase.ablate import check_neurons, scope_of, slice_of
from neuronforget.errors import InputError
from neuronforget.likelihood import answer_nll
from neuronforget.models import LM, activations_only
from neuronforget.neurons import Neurons
from neuronforget.sites import Site
from neuronforget.taps import TorchHooks


def rank_one(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    neurons: Neurons | None = None,
    layer: int | None = None,
    target: str | None = None,
    preserve: float | None = None,
    steps: int = 20,
    lr: float = 0.5,
    kl: float = 0.0625,
    clamp: float = 4.0,
    batch_size: int = 64,
) -> Edit:
    """Edit the write weights of `neurons` (or all of `layer`, default the middle one) so that forget facts go.

    `target` is a neutral answer to write in their place; without one the answer's distribution is driven to
    maximum entropy. `preserve` is lambda (default: the number of neurons; 0 for a single fact). The output
    changes R of all layers are found together by Adam, each at most `clamp` times the output's own norm,
    shared among the layers; a layer whose change there cannot reach the answer (the last one, when the subject
    ends before the prompt does) is held as it is. Raises InputError for corpora that share examples, an empty
    set, and layers none of which can reach an answer.
    """
    if steps < 1 or not min(lr, clamp) > 0 or not (preserve is None or preserve >= 0):
        found = f"steps={steps}, lr={lr}, clamp={clamp}, preserve={preserve}"
        raise InputError(f"rank_one needs steps >= 1, lr and clamp > 0, preserve >= 0; found {found}")
    check_disjoint(forget, retain)
    if neurons is not None and layer is not None:
        raise InputError("give neurons= or layer=, not both")
    if neurons is None:
        neurons = _whole_layer(lm, lm.sites[(len(lm.sites) - 1) // 2].layer if layer is None else layer)
    check_neurons(lm, neurons)
    chosen = neurons.by_layer()
    sites = [site for site in lm.sites if site.layer in chosen]
    aim = forget if target is None else forget.with_answers([target] * len(forget), f"{forget.name} neutral")
    rows = encode(aim, lm.tokenizer, lm.max_length)
    work = list(batches(rows, batch_size, lm.pad_id, lm.device))
    with activations_only(lm):
        moves = [_output_changes(lm, sites, batch, target is None, steps, lr, kl, clamp / len(sites)) for batch in work]
        if not any(bool(move.any()) for move in moves):
            layers = ", ".join(str(site.layer) for site in sites)
            raise InputError(f"no change of layer {layers} where the subject ends reaches an answer: take lower layers")
        second = _second_moments(lm, sites, chosen, retain, batch_size)
        changes = _solve(lm, sites, chosen, work, moves, second, preserve)
    info = {"method": "rank_one", "scope": scope_of(neurons), "neurons": len(neurons), "facts": len(forget)}
    info |= {"target": target or "maximum entropy", "steps": steps, "lr": lr, "kl": kl, "clamp": clamp}
    return Edit.build(lm, changes, **info, forget=forget.digest(), retain=retain.digest())


def _whole_layer(lm: LM, layer: int) -> Neurons:
    layers = tuple(site.layer for site in lm.sites)
    if layer not in layers:
        raise InputError(f"no neurons in layer {layer}: the model's layers are {layers}")
    return Neurons(frozenset((layer, j) for j in range(lm.shape[1])), layers, lm.shape[1])


@contextmanager
def _moved(lm: LM, sites: list[Site], moves: Tensor, where: Tensor) -> Iterator[dict[int, Tensor]]:
    """Add `moves[layer]` [example, d_model] to each site's output at position `where`; yields the outputs there."""
    seen: dict[int, Tensor] = {}

    def hook(row: int) -> Any:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            examples = torch.arange(len(where), device=output.device)
            view = output.view(len(where), -1, output.shape[-1])  # OPT flattens examples and tokens
            seen[row] = view[examples, where].detach()
            return view.index_put((examples, where), moves[row].to(output.dtype), accumulate=True).view(output.shape)

        return add

    handles = [lm.model.get_submodule(s.path).register_forward_hook(hook(i)) for i, s in enumerate(sites)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _output_changes(
    lm: LM, sites: list[Site], batch: Batch, entropy: bool, steps: int, lr: float, kl: float, clamp: float
) -> Float[Tensor, "layer example d_model"]:
    """Find by Adam the output changes that bring the answers to the target."""
    examples = torch.arange(len(batch.index), device=lm.device)
    moves = torch.zeros((len(sites), len(examples), sites[0].d_model), device=lm.device, requires_grad=True)
    optimizer = torch.optim.Adam([moves], lr=lr)
    first, last = batch.answer_mask.int().argmax(1), batch.subject_end
    stays: Tensor | None = None
    reach: Tensor | None = None
    for _ in range(steps):
        with _moved(lm, sites, moves, last) as outputs:
            logits = lm.model(**batch.inputs, use_cache=False).logits.float()
        here = logits[examples, last].log_softmax(-1)
        stays = here.detach() if stays is None else stays
        # Where the key is the position that predicts the answer, there is nothing to hold on to.
        held = (stays.exp() * (stays - here)).sum(-1) * (last < first - 1)
        aim = _from_uniform(logits, batch) if entropy else answer_nll(logits, batch)
        if reach is None:  # Adam would make a full step of the rounding noise of a gradient that should be zero
            (grad,) = torch.autograd.grad(aim.sum(), moves, retain_graph=True)
            reach = grad.ne(0).any(-1, keepdim=True)
        (grad,) = torch.autograd.grad((aim + kl * held).sum(), moves)
        moves.grad = grad * reach
        optimizer.step()
        with torch.no_grad():
            limit = clamp * torch.stack([outputs[i] for i in range(len(sites))]).float().norm(dim=-1, keepdim=True)
            moves *= (limit / moves.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return moves.detach()


def _from_uniform(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """KL(uniform || p), mean over the positions that predict an answer token (nats)."""
    mask = batch.answer_mask[:, 1:]
    logp = logits[:, :-1].log_softmax(-1)
    distance = -logp.mean(-1) - torch.log(torch.tensor(float(logits.shape[-1])))
    return (distance * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def _second_moments(
    lm: LM, sites: list[Site], chosen: dict[int, Tensor], retain: Corpus, batch_size: int
) -> dict[int, Float[Tensor, "neuron neuron"]]:
    """Mean of `a_S a_S^T` over the retain corpus' tokens, fp64."""
    totals = {s.layer: torch.zeros((len(chosen[s.layer]),) * 2, dtype=torch.float64) for s in sites}
    tokens, tap = 0, TorchHooks(lm)
    for batch in batches(encode(retain, lm.tokenizer, lm.max_length), batch_size, lm.pad_id, lm.device):
        acts, real = tap(batch.inputs).acts, batch.attention_mask.bool().flatten()
        tokens += int(real.sum())
        for layer, total in totals.items():
            a = acts[layer].flatten(0, -2)[real].index_select(-1, chosen[layer].to(lm.device)).double().cpu()
            total += a.T @ a
    return {layer: total / tokens for layer, total in totals.items()}


@torch.no_grad()
def _solve(
    lm: LM,
    sites: list[Site],
    chosen: dict[int, Tensor],
    work: list[Batch],
    moves: list[Tensor],
    second: dict[int, Tensor],
    preserve: float | None,
) -> list[Change]:
    """Solve each layer for its write weights, lowest first, with keys read under the changes below it."""
    changes: list[Change] = []
    for row, site in enumerate(sites):
        index = chosen[site.layer]
        with Edit(tuple(changes)).on(lm):
            keys = torch.cat([_keys(lm, site, index, batch) for batch in work])
        wanted = torch.cat([move[row] for move in moves]).double().cpu()
        delta = least_change(keys, wanted, second[site.layer], preserve)
        before = slice_of(lm, site.write, index)
        rows = delta.T if site.write.dim == 1 else delta
        after = (before.double().cpu() + rows).to(before)
        changes.append(Change(site.write.name, after, before, site.write.dim, site.write.index(index)))
    return changes


def _keys(lm: LM, site: Site, index: Tensor, batch: Batch) -> Float[Tensor, "example neuron"]:
    acts = TorchHooks(lm)(batch.inputs).acts[site.layer]
    examples = torch.arange(len(batch.index), device=acts.device)
    acts = acts.view(len(examples), -1, acts.shape[-1])
    return acts[examples, batch.subject_end].index_select(-1, index.to(acts.device)).double().cpu()


def least_change(
    keys: Float[Tensor, "fact neuron"],
    wanted: Float[Tensor, "fact d_model"],
    second: Float[Tensor, "neuron neuron"],
    preserve: float | None = None,
    *,
    ridge: float = 1e-4,
) -> Float[Tensor, "neuron d_model"]:
    """Return dW [neuron, d_model] with `keys @ dW` close to `wanted`, least in the norm of `second` (fp64).

    `preserve` is lambda (None: number of neurons, or 0 for one fact); `ridge` times the mean diagonal is added
    to `second`, which is singular where retain text is short.
    """
    facts, width = keys.shape
    strength = preserve if preserve is not None else (0.0 if facts == 1 else float(width))
    damped = second + ridge * second.diagonal().mean().clamp_min(1e-12) * torch.eye(width, dtype=second.dtype)
    spread = torch.linalg.solve(damped, keys.T)  # C^-1 K, [neuron, fact]
    gram = keys @ spread + strength * torch.eye(facts, dtype=keys.dtype)
    return spread @ torch.linalg.lstsq(gram, wanted).solution
