"""Scores that tell the residual stream from the blocks: direct effects, and gradients with a block left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from typing import Literal

import torch
from jaxtyping import Float
from neuronforget_kernels import Layout, fused_attribution
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus, Encoded
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only
from neuronforget.models.likelihood import answer_nll
from neuronforget.models.maps import Site
from neuronforget.recording.batches import segments_of
from neuronforget.scores.blocks import blocks_of, writings
from neuronforget.scores.per_example import batched, encoded, over_examples
from neuronforget.scores.rules import direct_paths, droppable_blocks, frozen_norms
from neuronforget.scores.scores import Contrast, Scores, runs_model
from neuronforget.taps import Pass, TorchHooks

Against = Literal["mean", "wrong"]
#: Where a wrong answer parts from the right one: position of the differing token, the right one, the wrong one.
Fork = tuple[int, int, int]
#: From logits `[example, token, vocab]` and their batch to a difference of logits, `[example]`.
Margin = Callable[[Tensor, Batch], Tensor]


@checks_kinds
@runs_model
def direct(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    against: Against = "mean",
    contrast: Contrast = "difference",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score `a (w_j . d_t)`: what the neuron itself writes for the answer's logit, past all later blocks (DLA).

    `d_t` is the direction of the answer token's logit minus the mean logit over the vocabulary, through the final
    norm (and the block's own after the MLP, where it has one) with its scale held fixed; mean over answer tokens, in
    logits (a cap on these counts by its slope). `against="wrong"` takes instead the answer's token minus the wrong
    answer's where the two first differ, mean over the example's `wrong` answers. Effects by way of later blocks
    are not in it. Raises InputError for a norm whose scale cannot be frozen, and for examples without a wrong answer
    that differs, if they are to be used.
    """
    rows, tap = encoded(lm, forget, retain), TorchHooks(lm)
    margin: Margin = _answer_margin
    if against == "wrong":
        margin, rows = _wrong_margin(lm, [corpus for corpus in (forget, retain) if corpus is not None], rows)

    def measure(batch: Batch) -> Tensor:
        out, layout = tap(batch.inputs), cache(Layout.of(segments_of(batch, "all").cpu(), len(batch.index)).on)
        outputs = [written.pop(site.layer) for site in lm.sites]
        directions = torch.autograd.grad(margin(out.logits, batch).sum(), outputs)
        found = (
            _projected(lm, site, out.acts.pop(site.layer), direction, layout)
            for site, direction in zip(lm.sites, directions, strict=True)
        )
        return torch.stack(list(found), 1)

    name = "direct" if against == "mean" else "direct:wrong"
    sign = "positive: it writes towards the answer, so ablating it lowers the answer's logit"
    with activations_only(lm), frozen_norms(lm), direct_paths(lm), writings(lm) as written:
        return over_examples(
            lm, batched(lm, rows, batch_size), measure, name=name, sign=sign, contrast=contrast, progress=progress
        )


@checks_kinds
@runs_model
def gradient_drop(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    contrast: Contrast = "difference",
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score the mean of `|sum_t a g|` over passes that each drop one block's gradient (AtP*, Kramar et al. 2024).

    Direct and indirect effects that cancel in one gradient do not cancel in all (arXiv:2403.00745). One forward and
    as many backward passes as blocks; in the pass that drops its own block a neuron has none, so the sum is divided
    by the other blocks' number. Unsigned. Raises InputError for a model of one block.
    """
    depth = len(blocks_of(lm))
    if depth < 2:
        raise InputError("gradient_drop leaves one block out at a time and needs two or more; use grad_x_act")
    parts, tap = batched(lm, encoded(lm, forget, retain), batch_size), TorchHooks(lm)
    sign = "large: the forget loss depends on it"
    with activations_only(lm), droppable_blocks(lm) as dropped:

        def measure(batch: Batch) -> Tensor:
            out = tap(batch.inputs)
            loss, total = answer_nll(out.logits, batch).sum(), torch.zeros(())
            for layer in range(depth):
                dropped[:] = [layer]
                total = total + _products(out, loss, keep=layer + 1 < depth).abs()
            return total / (depth - 1)

        return over_examples(lm, parts, measure, name="gradient_drop", sign=sign, contrast=contrast, progress=progress)


def _projected(
    lm: LM, site: Site, act: Tensor, direction: Tensor, layout: Callable[[torch.device], Layout]
) -> Float[Tensor, "example neuron"]:
    """Return each example's `sum_t a (w_j . d_t)` of a layer; `w_j . d_t` is made for this layer alone, if at all."""
    write = site.write.rows(lm.parameters, site.d_mlp)
    a, delta = act.detach().flatten(0, -2), direction.flatten(0, -2)
    return fused_attribution(delta, write, a, layout(act.device), fields=(), table=("s",))[1]["s"].cpu()


def _products(out: Pass, total: Tensor, keep: bool = False) -> Float[Tensor, "example layer neuron"]:
    """Return `sum_t a g` of each example, `g` the gradient of `total`."""
    layers = sorted(out.acts)
    grads = torch.autograd.grad(total, [out.acts[layer] for layer in layers], retain_graph=keep)
    return torch.stack(
        [(out.acts[k].detach().float() * g.float()).sum(1) for k, g in zip(layers, grads, strict=True)], 1
    ).cpu()


def _answer_margin(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
    """Mean over answer tokens of the token's logit minus the mean logit."""
    mask, wide = batch.answer_mask[:, 1:], logits[:, :-1].float()
    margin = wide.gather(-1, batch.input_ids[:, 1:, None])[..., 0] - wide.mean(-1)
    return (margin * mask).sum(1) / mask.sum(1)


def _wrong_margin(lm: LM, corpora: list[Corpus], rows: list[list[Encoded]]) -> tuple[Margin, list[list[Encoded]]]:
    """Return the margin over the wrong answers, and the rows numbered through, by which it knows their forks."""
    forks = [fork for corpus, part in zip(corpora, rows, strict=True) for fork in _forks(lm, corpus, part)]
    numbers = iter(range(len(forks)))

    def margin(logits: Float[Tensor, "example token vocab"], batch: Batch) -> Float[Tensor, "example"]:
        found = []
        for row, number in zip(logits, batch.index, strict=True):
            at, right, wrong = torch.tensor(forks[number], device=logits.device).T
            found.append((row[at - 1, right] - row[at - 1, wrong]).float().mean())
        return torch.stack(found)

    return margin, [[replace(row, index=next(numbers)) for row in part] for part in rows]


def _forks(lm: LM, corpus: Corpus, rows: list[Encoded]) -> list[list[Fork]]:
    """Each example's forks, one for each wrong answer. Raises InputError where there is none."""
    found = []
    for i, (example, row) in enumerate(zip(corpus, rows, strict=True)):
        coded = [_encoded_wrong(lm, corpus, i, wrong) for wrong in example.wrong]
        parted = [fork for other in coded if (fork := _fork(row, other)) is not None]
        if len(parted) < max(len(coded), 1):
            reason = "a wrong answer that parts from the right one nowhere in it" if coded else "no wrong answer"
            raise InputError(
                f"corpus {corpus.name!r}, example {i} ({example.prompt[:40]!r}) has {reason}: direct(against='wrong') "
                "needs `wrong` answers that differ in a token after the first of the text; or use against='mean'"
            )
        found.append(parted)
    return found


def _encoded_wrong(lm: LM, corpus: Corpus, i: int, wrong: str) -> Encoded:
    example = replace(corpus.examples[i], answer=wrong)
    try:
        return lm.encode(replace(corpus, examples=(example,)))[0]
    except InputError as error:
        raise InputError(
            f"corpus {corpus.name!r}, example {i}: its wrong answer {wrong[:40]!r} cannot be used: {error}"
        ) from None


def _fork(row: Encoded, other: Encoded) -> Fork | None:
    """Where two token sequences first differ; None where one continues the other, or no token precedes the fork."""
    pairs = enumerate(zip_longest(row.ids, other.ids, fillvalue=-1))
    at, right, wrong = next(((at, *pair) for at, pair in pairs if pair[0] != pair[1]), (0, -1, -1))
    return (at, right, wrong) if at and min(right, wrong) >= 0 else None
