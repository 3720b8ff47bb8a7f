"""RepE: a control vector, subtracted from what chosen blocks give to the next (Zou et al. 2023, arXiv:2310.01405).

    v_l = mean over forget prompts of h_l - mean over retain prompts of h_l,   h_l <- h_l - strength v_l

at every token; `h_l` is the hidden state after block l, averaged over a prompt's tokens for `v_l`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from neuronforget.arguments import checks_kinds, numbers
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.edits.guarding import Guard, mechanism
from neuronforget.erase.beginning import operator
from neuronforget.erase.guards.reading import check_layers, corpus_means
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.scores.blocks import blocks_of, state_of, with_state


@checks_kinds
@numbers(coefficient="!= 0")
@operator
def repe(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    layers: Sequence[int] | None = None,
    coefficient: float = 1.0,
    batch_size: int = 32,
) -> Edit:
    """Steer away from what forget prompts have more of than retain prompts, by `coefficient` times the difference.

    `layers` are blocks (without any: the one half-way up). Where it is subtracted at several, later ones see states
    that were moved already: the moves add up. It acts on every prompt, forget or not. Raises InputError if the means
    do not differ.
    """
    check_disjoint(forget, retain)
    chosen = check_layers(lm, layers)
    means = [corpus_means(lm, corpus, chosen, batch_size).double().mean(0) for corpus in (forget, retain)]
    vectors = coefficient * (means[0] - means[1])
    if not vectors.any():
        raise InputError(f"repe at layers {chosen}, coefficient {coefficient}: the control vector is zero")
    sizes = (vectors.norm(dim=1) / means[1].norm(dim=1)).tolist()
    guard = Guard.of(lm, "repe", {"vectors": vectors.float()}, layers=chosen)
    about = {"forget": forget.digest(), "retain": retain.digest(), "coefficient": coefficient}
    return Edit.guarding(guard, **about, relative_to_retain_mean=[round(size, 4) for size in sizes])


@mechanism("repe")
def _install(lm: LM, guard: Guard) -> Iterator[Any]:
    def minus(vector: Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = state_of(output)
            moved = hidden - (guard.strength * vector).to(hidden)
            return with_state(output, moved)

        return hook

    for layer, vector in zip(guard.settings["layers"], guard.tensors["vectors"], strict=True):
        yield blocks_of(lm)[layer].register_forward_hook(minus(vector))
