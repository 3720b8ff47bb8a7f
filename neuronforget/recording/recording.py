"""record(): one streaming pass over a corpus, forward and backward to activations only.

The recorded loss is `L = sum_n NLL_n`, `NLL_n` the mean over example n's answer tokens, so that an example's
gradient does not depend on the batch it came in. Batches are reduced one by one (`batches`) and added up where the
model is: memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Encoded, Fingerprint, Source, encoded_batches
from neuronforget.errors import InputError
from neuronforget.models import LM, activations_only, check_whole
from neuronforget.models.sites import expert_info
from neuronforget.moments import Moments, merge
from neuronforget.recording.batches import Positions, record_batch
from neuronforget.recording.unfinished import Tally, Unfinished
from neuronforget.runs import environment
from neuronforget.runs.ranks import Ranks, launched
from neuronforget.taps import Tap, open_tap

#: How a RuntimeError that is no OutOfMemoryError says the same (on CPU, on other accelerators).
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@checks_kinds
def record(
    lm: LM,
    corpus: Source,
    *,
    tap: str | None = None,
    batch_size: int = 16,
    positions: Positions = "all",
    per_example: bool = False,
    compiled: bool = False,
    resume: str | Path | Unfinished | None = None,
    split: bool = True,
    progress: bool = True,
) -> Moments:
    """Record every neuron's moments on a corpus or stream.

    `tap` is "transformer_lens", "torch_hooks" or "nnsight" (default: TransformerLens where it knows the
    model); all give equal moments. `positions="answer"` keeps the statistics to the positions that predict
    an answer token. `per_example` keeps the table (its memory grows with the corpus). `compiled` lets `torch.compile`
    make the CPU's reduction, where there is a C++ compiler: quicker, once each kind of batch has been compiled.
    `resume` is a folder from which a killed recording goes on, losing and repeating no example; it is cleared at the
    end. Under `torchrun` or `accelerate launch` each process records its share of the batches and all return the whole;
    `split=False` lets each record everything. Raises InputError for a corpus that does not fit the model, for NaN in
    activations or gradients, for too little memory, and for a model of which a process holds only a part.
    """
    ranks = launched(next(lm.model.parameters()).device) if split else Ranks()
    unfinished = None
    with ranks.together() as claims:
        check_whole(lm)
        reader = open_tap(lm, tap)
        work = _work(lm, corpus, reader, (batch_size, positions, per_example, *(["compiled"] if compiled else [])))
        claims.append(work)
        if resume is not None:
            unfinished = resume if isinstance(resume, Unfinished) else Unfinished(resume)
        tally = unfinished.tally(model=lm.digest(), rank=(ranks.rank, ranks.world), **work) if unfinished else Tally()
    fingerprint = Fingerprint([corpus.template, corpus.eos, corpus.max_tokens])
    groups = encoded_batches(corpus, lm.encode, batch_size, fingerprint)
    measure = partial(_measure, reader, lm, positions=positions, per_example=per_example, compiled=compiled)
    size = len(corpus) if isinstance(corpus, Corpus) else None
    quiet = not progress or ranks.rank > 0
    with activations_only(lm), tqdm(total=size, desc=f"record {corpus.name}", disable=quiet) as bar:
        _add_rounds(tally, groups, fingerprint, ranks, measure, bar)
    total = merge(part for part in ranks.each(tally.total) if part is not None)
    if unfinished is not None and unfinished is not resume:
        unfinished.clear(ranks)  # else its owner has more to do, and clears it
    info = {"corpus": corpus.name, "data": fingerprint.digest(), "model": lm.name, **expert_info(lm.model, lm.sites)}
    return _finish(total, lm, {**info, "tap": reader.name, "positions": positions, **environment()})


def _work(lm: LM, corpus: Source, tap: Tap, settings: tuple[Any, ...]) -> dict[str, Any]:
    """What two recordings have in common that are the same work; of a stream, the content shows as it is read."""
    data = corpus.digest() if isinstance(corpus, Corpus) else corpus.window
    form = (corpus.name, data, corpus.template, corpus.eos, corpus.max_tokens)
    return {"corpus": form, "settings": settings, "tap": tap.name, "sites": [site.path for site in lm.sites]}


def _add_rounds(
    tally: Tally,
    groups: Iterator[list[Encoded]],
    fingerprint: Fingerprint,
    ranks: Ranks,
    measure: Callable[[list[Encoded]], Moments],
    bar: Any,
) -> None:
    """Add this rank's batch of each round that `tally` does not count yet; a round is a batch for every rank."""
    for number in count():
        with ranks.together() as claims:
            found = list(islice(groups, ranks.world))
            read = fingerprint.digest()
            claims += [read, not found]
            tally.check(number, read, over=not found)
            if not found:
                tally.save()
                return
            if number >= tally.rounds:
                own = found[ranks.rank : ranks.rank + 1]  # the last round may have none
                tally.add(measure(own[0]) if own else None, read)
            bar.update(sum(map(len, found)))


def _measure(tap: Tap, lm: LM, rows: list[Encoded], **settings: Any) -> Moments:
    """Record one batch. Raises InputError, with a size that may fit, where the memory does not hold it."""
    try:
        batch = lm.collate(rows)
        return record_batch(tap, lm, batch, **settings)
    except RuntimeError as error:
        reason = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in reason for words in NO_MEMORY):
            raise
    # Raised out here, the error does not hold on to the memory that the batch has filled.
    advice = f"try batch_size={len(rows) // 2}" if len(rows) > 1 else "cut it by the corpus' max_tokens"
    raise InputError(
        f"out of memory on {lm.device} with {len(rows)} examples of up to {len(rows[0].ids)} tokens: {advice}, "
        "or load the model in a smaller dtype"
    )


def _finish(total: Moments, lm: LM, info: dict[str, Any]) -> Moments:
    order = sorted(range(len(total.index)), key=lambda i: total.index[i])  # the corpus' own order
    table = {name: values[order] for name, values in total.table.items()}
    norms = {"l1": write_norms(lm, 1), "l2": write_norms(lm, 2)}
    index = tuple(sorted(total.index))
    return replace(total, norms=norms, table=table, index=index, info=info)


def write_norms(lm: LM, order: float = 2) -> Float[Tensor, "layer neuron"]:
    """Return the norm of each neuron's write weights, fp64."""
    norms = []
    for site in lm.sites:
        weight = lm.parameters[site.write.name].detach()
        norms.append(weight.double().norm(order, dim=1 - site.write.dim).cpu())
    return torch.stack(norms)
