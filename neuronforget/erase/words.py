"""Value-vector edits: change what a neuron's write weights say in the vocabulary, `l = U w_j` (U the unembedding).

The final norm is left out, as in `scores.lens`. A neuron whose activation is negative promotes the tokens at the bottom
of this list; so that neither sign promotes it, a token is put in the middle of it rather than at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.corpora import Corpus
from neuronforget.corpora.corpus import texts_of
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.erase.ablate import finished, slice_of
from neuronforget.erase.beginning import operator
from neuronforget.erase.units import check_neurons
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.models.maps import Site
from neuronforget.neurons import Neurons
from neuronforget.scores.vocabulary import unembedding_of

#: Tokens by id or as text (all its tokens; a bare string is one text), or a corpus, whose answers' tokens are meant.
Tokens = Corpus | Sequence[int | str]


@checks_kinds
@numbers(sigma="> 0")
@operator
def concept_vector(
    lm: LM,
    neurons: Neurons,
    forget: Tokens,
    *,
    most: int | None = None,
    mode: Literal["zero", "noise"] = "zero",
    sigma: float = 0.1,
    seed: int = 0,
) -> Edit:
    """Remove what the write weights of `neurons` say about the tokens of `forget`, or drown it in noise.

    The tokens' directions are their rows of U less the mean row. "zero" projects them out, after which the neuron
    gives each of these tokens the mean logit of its vocabulary; "noise" adds N(0, sigma^2) along each axis of their
    span. (ConceptVectors itself, Hong et al. 2024, arXiv:2406.11614, adds noise to the whole vector: `noise`.) `most`
    keeps the tokens that these neurons rank highest, on average. Raises InputError for an empty set, tokens that the
    model has not, and where the tokens span all directions.
    """
    check_neurons(lm, neurons)
    unembedding = unembedding_of(lm).double().cpu()
    tokens = _foremost(lm, neurons, unembedding, token_ids(lm, forget), most)
    rows = unembedding[tokens] - unembedding.mean(0)
    _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
    axes = axes[sizes > 1e-10 * sizes.max()]
    if len(axes) >= rows.shape[1]:
        raise InputError(f"{len(tokens)} tokens span all {rows.shape[1]} directions: take fewer (most=), or ablate")
    draw = torch.Generator().manual_seed(seed)

    def changed(vectors: Tensor) -> Tensor:
        along = sigma * torch.randn((len(vectors), len(axes)), generator=draw).double()
        return vectors + along @ axes if mode == "noise" else vectors - vectors @ axes.T @ axes

    info = {"method": f"concept_vector:{mode}", "tokens": len(tokens)}
    info |= {"sigma": sigma, "seed": seed} if mode == "noise" else {}
    return finished(lm, neurons, _rewritten(lm, neurons, changed), **info)


@checks_kinds
@operator
def revs(lm: LM, neurons: Neurons, forget: Tokens, *, most: int | None = None, rank: int | None = None) -> Edit:
    """Lower the tokens of `forget` in each neuron's vocabulary until at least `rank` other tokens stand above each.

    Lowered logits are mapped back to weights by the pseudo-inverse (REVS, Ashuach et al. 2024, arXiv:2406.09325), here
    of the logits less their mean, all tokens together: with T the tokens that are too high,
    `w' = w - (U'U)^-1 U_T' (U_T (U'U)^-1 U_T')^-1 c` is the change that lowers them by c and moves the other logits
    least. It is repeated, c being what is missing to `rank`, until the weights as stored have them there; `rank`
    defaults to half of the vocabulary. A neuron that has them there already is not changed. `most` keeps the tokens
    that these neurons rank highest, on average. Raises InputError for an empty set, tokens or a rank that the model
    has not, and where tokens stay up.
    """
    check_neurons(lm, neurons)
    unembedding = unembedding_of(lm).double().cpu()
    tokens = _foremost(lm, neurons, unembedding, token_ids(lm, forget), most)
    asked = len(unembedding) // 2 if rank is None else rank
    if not 1 <= asked <= len(unembedding) - len(tokens):
        most = len(unembedding) - len(tokens)
        raise InputError(
            f"rank is how many tokens are to stand above: 1 to {most} for {len(tokens)} tokens, not {rank}"
        )
    down = _lowering(unembedding, tokens)
    dtype = lm.parameters[lm.sites[0].write.name].dtype

    def lowered(vectors: Tensor) -> Tensor:
        return torch.stack([_lowered(v, unembedding, tokens, down, asked, dtype) for v in vectors])

    changes = _rewritten(lm, neurons, lowered)
    return finished(lm, neurons, changes, method="revs", tokens=len(tokens), rank=asked)


def token_ids(lm: LM, tokens: Tokens) -> list[int]:
    """Return the sorted ids that are meant. Raises InputError where there is none, or the model has not one."""
    special = set(getattr(lm.tokenizer, "all_special_ids", None) or ())
    found: set[int] = set()
    if isinstance(tokens, Corpus):
        for row in lm.encode(tokens):
            found |= set(row.ids[max(row.answer_start, 1) :]) - special
    else:
        for token in texts_of(tokens):
            found |= {token} if isinstance(token, int) else set(lm.tokenizer(token, add_special_tokens=False).input_ids)
    size = len(unembedding_of(lm))
    if not found or min(found) < 0 or max(found) >= size:
        raise InputError(f"tokens must be ids below {size}, texts or a corpus of answers; found {sorted(found)[:8]}")
    return sorted(found)


def ranks_of(logits: Float[Tensor, "vocab"], tokens: list[int]) -> Tensor:
    """Return how many tokens have a larger logit than each of `tokens`."""
    return (logits > logits[tokens, None]).sum(1)


def _foremost(lm: LM, neurons: Neurons, unembedding: Tensor, tokens: list[int], most: int | None) -> list[int]:
    """Keep the `most` tokens that the neurons' write weights rank highest, on average."""
    if most is not None and most < 1:
        raise InputError(f"most is the number of tokens to keep: at least 1, found {most}")
    if most is None or len(tokens) <= most:
        return tokens
    total = torch.zeros(len(tokens))
    for site, index in _chosen(lm, neurons):
        vectors = slice_of(lm, site.write, index).double().cpu()
        for vector in vectors.T if site.write.dim == 1 else vectors:
            total += ranks_of(unembedding @ vector, tokens)
    return sorted(tokens[i] for i in total.argsort(stable=True)[:most].tolist())


def _lowering(unembedding: Tensor, tokens: list[int]) -> Float[Tensor, "d_model token"]:
    """Return, for each token, the change of weights that lowers its logit by 1, no other token's of these, and else
    as little as can be. Raises InputError where the tokens' directions depend on each other."""
    centred = unembedding - unembedding.mean(0)
    back = torch.linalg.pinv(centred.T @ centred, hermitian=True) @ centred[tokens].T
    gram = centred[tokens] @ back
    if int(torch.linalg.matrix_rank(gram, hermitian=True)) < len(tokens):
        raise InputError(
            f"{len(tokens)} tokens cannot be lowered one by one in {len(back)} directions: take fewer (most=)"
        )
    return -torch.linalg.solve(gram, back.T).T


def _lowered(
    vector: Tensor, unembedding: Tensor, tokens: list[int], down: Tensor, asked: int, dtype: torch.dtype
) -> Float[Tensor, "d_model"]:
    """Return one neuron's write weights with every token at the asked rank or below, as the dtype stores them."""
    others = torch.ones(len(unembedding), dtype=torch.bool)
    others[tokens] = False
    for _ in range(300):
        stored = vector.to(dtype).double()
        logits = unembedding @ stored
        high = ranks_of(logits, tokens) < asked
        if not high.any() or not stored.any():  # zero weights say nothing about any token
            return stored
        level = logits[others].topk(asked).values[-1]
        # Just below that level, again and again: the others move too, and the dtype rounds.
        missing = (logits[tokens] - level).clamp_min(0) + 1e-3 * logits.std()
        vector = vector + down @ torch.where(high, missing, 0.0)
    names = ", ".join(map(str, tokens[:8]))
    raise InputError(
        f"revs cannot bring tokens {names} under {asked} others: lower rank=, or take fewer tokens (most=)"
    )


def _rewritten(lm: LM, neurons: Neurons, rewrite: Callable[[Tensor], Tensor]) -> list[Change]:
    """Give each chosen neuron the write vector that `rewrite` makes of it; [neuron, d_model], fp64."""
    changes = []
    for site, index in _chosen(lm, neurons):
        part = site.write
        before = slice_of(lm, part, index)
        vectors = before.double().cpu()
        after = rewrite(vectors.T).T if part.dim == 1 else rewrite(vectors)
        changes.append(Change(part.name, after.to(before.device), before, part.dim, part.index(index)))
    return changes


def _chosen(lm: LM, neurons: Neurons) -> list[tuple[Site, Tensor]]:
    chosen = neurons.by_layer()
    return [(site, chosen[site.layer]) for site in lm.sites if site.layer in chosen]
