"""exact: what the loss does when one neuron is switched off, for every neuron: the yardstick of the other scores.

Neurons are stacked as rows: row j is the example with neuron j at zero, run from its layer upward only, or from the
layer above where that is the same (`ways`). At one position (`position=-1`) a row is a single token over the shared
keys and values of the prompt: the same numbers for a small part of the work. The last layer needs no rows where
`last_layer` finds its closed form.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Batch, Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.models.maps import Site
from neuronforget.scores.cost import check_memory, check_operations, rows_per_pass
from neuronforget.scores.last_layer import kept_bytes, last_layer
from neuronforget.scores.per_example import batched, encoded, longest, over_examples
from neuronforget.scores.rows import Clean, check_rows, clean_run
from neuronforget.scores.scores import Contrast, Scores, runs_model
from neuronforget.scores.ways import Way, above, gives_the_same, through


@checks_kinds
@runs_model
def exact(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    position: Literal[-1] | None = None,
    neurons: Iterable[tuple[int, int]] | None = None,
    contrast: Contrast = "difference",
    limit: float | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Scores:
    """Score the loss change when the neuron is set to zero, mean over examples, nats per answer token.

    `position=None` zeroes it at every position; -1 at the last prompt position alone, and the loss is then that
    of the token predicted there, the first of the answer. `neurons` measures only those (a shortlist of a
    first-order score); all others get 0. A pass holds `batch_size` rows, more where they fit in 256 MiB. Single
    effects do not add up to that of a set. Raises InputError for a model that cannot be run from a block upward,
    and, before the work, where memory is short or more than `limit` floating-point operations are needed
    (default 1e15 on a CPU, 1e18 elsewhere).
    """
    if position not in (None, -1):
        raise InputError(f"position must be None (everywhere) or -1 (the last prompt token), found {position!r}")
    chosen = _chosen(lm, neurons)
    rows = encoded(lm, forget, retain)
    every = [row for part in rows for row in part]
    counts = {layer: len(found) for layer, found in chosen.items()}
    top = chosen.get(lm.sites[-1].layer)
    check_memory("exact", lm, every, position, batch_size, kept=0 if top is None else kept_bytes(lm, top))
    check_operations("exact", lm, every, position, counts, limit)

    name = "exact" if position is None else "exact:-1"
    sign = "positive: ablating it raises the forget loss"
    info: dict[str, Any] = {"measured neurons": sum(counts.values())}
    with frozen(lm), torch.no_grad():
        check_rows(lm, probe := clean_run(lm, longest(lm, rows), position))
        ways = {site.layer: _quickest(lm, site, probe, chosen) for site in lm.sites if site.layer in chosen}
        info |= {kind: [layer for layer, (of, _) in ways.items() if of == kind] for kind in ("closed form", "above")}

        def measure(example: Batch) -> Tensor:
            return _loss_changes(lm, clean_run(lm, example, position), chosen, ways, batch_size, progress)[None]

        return over_examples(
            lm, batched(lm, rows, 1), measure, name=name, sign=sign, contrast=contrast, progress=progress, info=info
        )


def row_nll(logits: Float[Tensor, "row target vocab"], targets: Int[Tensor, "1 target"]) -> Float[Tensor, "row"]:
    """Return each row's mean negative log-likelihood of the targets, nats, in fp32 or better."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    every = torch.nn.functional.cross_entropy(
        wide.flatten(0, 1), targets.expand(len(logits), -1).flatten(), reduction="none"
    )
    return every.view(len(logits), -1).mean(1)


def _quickest(lm: LM, site: Site, probe: Clean, chosen: dict[int, Tensor]) -> tuple[str, Way]:
    """Return the quickest way to the logits without neurons of a layer, and its name."""
    if site.layer == lm.sites[-1].layer and (last := last_layer(lm, probe, chosen[site.layer])) is not None:
        return "closed form", last.logits
    if gives_the_same(lm, site, probe, way := partial(above, lm, site)):
        return "above", way
    return "through", partial(through, lm, site)


def _loss_changes(
    lm: LM, clean: Clean, chosen: dict[int, Tensor], ways: dict[int, tuple[str, Way]], batch_size: int, progress: bool
) -> Float[Tensor, "layer neuron"]:
    before = row_nll(clean.logits, clean.targets).double().cpu()
    changes = torch.zeros(lm.shape, dtype=torch.float64)
    length = rows_per_pass(lm, clean.size, batch_size)
    with tqdm(total=sum(map(len, chosen.values())), desc="neurons", leave=False, disable=not progress) as bar:
        for i, site in enumerate(lm.sites):
            for part in chosen[site.layer].split(length) if site.layer in chosen else ():
                changes[i, part] = row_nll(ways[site.layer][1](clean, part), clean.targets).double().cpu() - before
                bar.update(len(part))
    return changes


def _chosen(lm: LM, neurons: Iterable[tuple[int, int]] | None) -> dict[int, Tensor]:
    """Return the neurons to measure, by layer. Raises InputError for one that the model has not."""
    depth, width = lm.shape
    if neurons is None:
        return {site.layer: torch.arange(width) for site in lm.sites}
    found: dict[int, set[int]] = {}
    known = {site.layer for site in lm.sites}
    for pair in neurons:
        try:
            layer, j = pair
        except (TypeError, ValueError):
            raise InputError(
                f"neurons are pairs of a layer and a neuron, such as nf.select.top gives; found {pair!r}"
            ) from None
        if layer not in known or not 0 <= j < width:
            raise InputError(f"no neuron {j} in layer {layer}: the model has {depth} layers of {width}")
        found.setdefault(layer, set()).add(j)
    if not found:
        raise InputError("neurons is empty: give the neurons to measure, or None for all")
    return {layer: torch.tensor(sorted(members)) for layer, members in found.items()}
