"""record(): one streaming pass over a corpus, forward and backward to activations only.

The recorded loss is `L = sum_n NLL_n`, `NLL_n` the mean over example n's answer tokens, so that an example's
gradient does not depend on the batch it came in. Each layer's activations and gradients are reduced to
moments in a tensor hook as the backward pass reaches them, and freed: memory does not grow with the corpus.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from neuronforget_kernels import PIECE_FIELDS, TABLE_FIELDS, Layout, Piece, neuron_moments
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.corpora import Batch, Corpus, batches, encode
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.moments import Moments, check_fields
from neuronforget.runs import environment
from neuronforget.taps import Tap, open_tap

Positions = Literal["all", "answer"]


def record(
    lm: LM,
    corpus: Corpus,
    *,
    tap: str | None = None,
    batch_size: int = 16,
    positions: Positions = "all",
    per_example: bool = False,
    progress: bool = True,
) -> Moments:
    """Record every neuron's moments on a corpus.

    `tap` is "transformer_lens", "torch_hooks" or "nnsight" (default: TransformerLens where it knows the
    model); all give equal moments. `positions="answer"` keeps the statistics to the positions that predict
    an answer token. `per_example` keeps the table (its memory grows with the corpus). Raises InputError for
    a corpus that does not fit the model, and for NaN in activations or gradients.
    """
    if positions not in get_args(Positions):
        raise InputError(f"positions is 'all' or 'answer', not {positions!r}")
    rows = encode(corpus, lm.tokenizer, lm.max_length)
    reader = open_tap(lm, tap)
    total: Moments | None = None
    with activations_only(lm), tqdm(total=len(rows), desc=f"record {corpus.name}", disable=not progress) as bar:
        for batch in batches(rows, batch_size, lm.pad_id, lm.device):
            part = _record_batch(reader, lm, batch, positions, per_example)
            total = part if total is None else total + part
            bar.update(len(batch.index))
    assert total is not None  # a corpus is never empty
    info = {"corpus": corpus.name, "data": corpus.digest(), "model": lm.name, "tap": reader.name}
    return _finish(total, lm, {**info, "positions": positions, **environment()})


def answer_nll(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """Return each example's mean negative log-likelihood per answer token, in nats, fp32."""
    mask = batch.answer_mask[:, 1:]
    return -(token_logp(logits, batch) * mask).sum(1) / mask.sum(1)


def answer_logp(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """Return each example's log-likelihood of the answer, summed over its tokens (nats, fp32)."""
    return (token_logp(logits, batch) * batch.answer_mask[:, 1:]).sum(1)


def token_logp(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example next"]:
    """Return the log-probability of each next token (nats, fp32); entry t is of token t + 1."""
    targets = batch.input_ids[:, 1:]
    flat = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
    return -flat.view(targets.shape)


def _record_batch(tap: Tap, lm: LM, batch: Batch, positions: Positions, per_example: bool) -> Moments:
    examples = len(batch.index)
    out = tap(batch.inputs)
    nll = answer_nll(out.logits, batch)
    layout = Layout.of(_segments(batch, positions), examples)
    got = _reduce_backwards(out.acts, nll.sum(), layout, TABLE_FIELDS if per_example else ())
    missing = [site.layer for site in lm.sites if site.layer not in got]
    if missing:
        raise InputError(f"no gradient reached layers {missing}: the model does not run its layers in order")
    layers, device = [got[site.layer] for site in lm.sites], got[lm.sites[0].layer][2].device
    fields = {name: torch.stack([piece[0][name].to(device) for piece in layers]) for name in PIECE_FIELDS}
    check_fields({**fields, **_finite_extremes(fields)})
    names = TABLE_FIELDS if per_example else ()
    return Moments(
        fields,
        tokens=int(layout.counts.sum()),
        examples=examples,
        pooled=int((layout.counts > 0).sum()),
        loss=float(nll.detach().sum()),
        layers=tuple(site.layer for site in lm.sites),
        table={name: torch.stack([piece[1][name].to(device) for piece in layers], 1).cpu() for name in names},
        index=batch.index if per_example else (),
    )


def _reduce_backwards(
    acts: dict[int, Tensor], loss: Tensor, layout: Layout, table: tuple[str, ...]
) -> dict[int, Piece]:
    """Reduce each layer when the backward pass reaches it; `acts` is emptied on the way."""
    got: dict[int, Piece] = {}

    def reduce_layer(layer: int) -> Any:
        def hook(grad: Tensor) -> None:
            act = acts.pop(layer).detach()
            got[layer] = neuron_moments(act.flatten(0, -2), grad.flatten(0, -2), layout, table=table)

        return hook

    # The lowest layer's gradient is asked for; the others are met on the way to it.
    lowest = acts[min(acts)]
    hooks = [act.register_hook(reduce_layer(layer)) for layer, act in acts.items()]
    try:
        torch.autograd.grad(loss, lowest)
    finally:
        for hook in hooks:  # a hook and the graph it hangs on hold each other: left in, neither is ever freed
            hook.remove()
    return got


def _segments(batch: Batch, positions: Positions) -> Tensor:
    """Each token's example number, -1 for tokens to leave out; [example * token]."""
    if positions == "answer":  # the position that predicts an answer token is the one before it
        keep = torch.nn.functional.pad(batch.answer_mask[:, 1:], (0, 1))
    else:
        keep = batch.attention_mask.bool()
    numbers = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)
    return torch.where(keep, numbers, -1).flatten()


def _finite_extremes(stacked: dict[str, Tensor]) -> dict[str, Tensor]:
    """A minimum of +inf only says that the batch had no token here."""
    return {"min": stacked["min"].nan_to_num(posinf=0.0), "max": stacked["max"].nan_to_num(neginf=0.0)}


def _finish(total: Moments, lm: LM, info: dict[str, Any]) -> Moments:
    order = sorted(range(len(total.index)), key=lambda i: total.index[i])  # the corpus' own order
    table = {name: values[order] for name, values in total.table.items()}
    norms = {"l1": write_norms(lm, 1), "l2": write_norms(lm, 2)}
    index = tuple(sorted(total.index))
    fields = {name: values.cpu() for name, values in total.fields.items()}  # summed where the model lies till here
    return replace(total, fields=fields, norms=norms, table=table, index=index, info=info)


def write_norms(lm: LM, order: float = 2) -> Float[Tensor, "layer neuron"]:
    """Return the norm of each neuron's write weights, fp64."""
    norms = []
    for site in lm.sites:
        weight = lm.parameters[site.write.name].detach()
        norms.append(weight.double().norm(order, dim=1 - site.write.dim).cpu())
    return torch.stack(norms)
