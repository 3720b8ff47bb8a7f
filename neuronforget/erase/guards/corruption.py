"""ECO: a classifier of prompts, and noise on the embeddings of those that it flags (Liu et al. 2024, arXiv:2406.07933).

    flagged = w . x + b > 0,   x the standardised mean of the hidden state after one block over the prompt's tokens
    e[t] <- e[t] + strength sigma rms(E) n[t],   n[t] ~ N(0, 1) of place t, for the tokens t of a flagged prompt

The classifier is logistic regression on forget against retain prompts. The paper trains a language model for it and
tunes sigma by a retrained surrogate; here the model reads its own prompts, in a pass of its own, and sigma is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.edits import Edit
from neuronforget.edits.guarding import Given, Guard, before_pass, mechanism
from neuronforget.erase.beginning import operator
from neuronforget.erase.guards.classifier import Classifier, fitted, held_out
from neuronforget.erase.guards.reading import check_layers, corpus_means, prompt_means
from neuronforget.errors import InputError
from neuronforget.models import LM

_PIECE = 64  # places whose noise is drawn together, so that it does not depend on a row's length


@checks_kinds
@operator
def eco(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    sigma: float = 3.0,
    layer: int | None = None,
    ridge: float = 1e-2,
    batch_size: int = 32,
    seed: int = 0,
) -> Edit:
    """Corrupt the prompts that a classifier takes for forget prompts; others are answered as before, bit for bit.

    `sigma` is in units of the embedding's root mean square, `layer` the block whose output is read (None: half-way
    up), `ridge` the classifier's penalty. `info` tells the share of prompts flagged in each corpus, on
    examples left out of the fit (5 folds): what was not flagged there was not guarded. Raises InputError if no
    forget prompt is flagged.
    """
    check_disjoint(forget, retain)
    if not (0 < sigma < math.inf and 0 < ridge < math.inf):
        raise InputError(f"eco needs sigma > 0 and ridge > 0, both finite; found {sigma}, {ridge}")
    layers = check_layers(lm, None if layer is None else [layer])
    forgotten, kept = (corpus_means(lm, corpus, layers, batch_size)[:, 0].double() for corpus in (forget, retain))
    classifier = fitted(forgotten, kept, ridge)
    if not classifier.flags(forgotten).any():
        raise InputError(f"eco: the classifier at block {layers[0]} flags no forget prompt; choose another layer")
    shares = held_out(forgotten, kept, ridge, seed)
    guard = Guard.of(lm, "eco", classifier.tensors, layer=layers[0], sigma=sigma, seed=seed)
    about = {"forget": forget.digest(), "retain": retain.digest(), "ridge": ridge}
    return Edit.guarding(guard, **about, forget_flagged=shares[0], retain_flagged=shares[1])


@mechanism("eco")
def _install(lm: LM, guard: Guard) -> Iterator[Any]:
    classifier, embedding = Classifier(**guard.tensors), lm.model.get_input_embeddings()
    corrupted: Given | None = None
    flagged = torch.zeros(0, dtype=torch.bool)

    def classify(given: Given, _kwargs: dict[str, Any]) -> None:
        nonlocal corrupted, flagged
        corrupted = None  # the classifier's own pass reads clean prompts
        if not given.goes_on:
            flagged = classifier.flags(prompt_means(lm, given.ids, given.prompt, [guard.settings["layer"]])[:, 0])
            corrupted = given

    def corrupt(_module: Any, _inputs: Any, output: Tensor) -> Tensor | None:
        if corrupted is None or not flagged.any():
            return None
        size = guard.strength * guard.settings["sigma"] * embedding.weight.detach().float().square().mean().sqrt()
        noise = _noise(int(corrupted.place.max()) + 1, output.shape[-1], guard.settings["seed"])
        noise = noise.to(output.device)[corrupted.place.to(output.device)] * size
        hit = (flagged.to(output.device)[:, None] & corrupted.prompt.to(output.device))[..., None]
        return torch.where(hit, (output.float() + noise).to(output.dtype), output)

    yield before_pass(lm, classify)
    yield embedding.register_forward_hook(corrupt)


def _noise(count: int, width: int, seed: int) -> Tensor:
    """Standard normal noise [place, width]; that of a place is the same however many are asked for."""
    pieces = []
    for piece in range(-(-count // _PIECE)):
        draw = torch.Generator().manual_seed(1_000_003 * seed + piece)
        pieces.append(torch.randn(_PIECE, width, generator=draw))
    return torch.cat(pieces)[:count]
