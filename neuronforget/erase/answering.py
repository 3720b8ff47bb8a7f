"""What the loss of a step may ask for: batches by (seed, step), and passes of the model now and at the start.

The start model is the model itself with its old values put back for one forward pass without gradients
(`start`): no second model is held, and nothing of the size of the corpus times the vocabulary. It costs a
loss that asks one more forward pass of the batch. Log-likelihoods of whole answers, one number an example, are
computed for the whole corpus when first asked for, and kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Batch, Corpus, Encoded
from neuronforget.corpora.tokens import check_batch_size
from neuronforget.edits import Edit
from neuronforget.erase.fitting import block, context_ids
from neuronforget.erase.generated import alternates
from neuronforget.errors import InputError
from neuronforget.losses import Answered, Outputs, Passes
from neuronforget.losses.outputs import Who, new_memory
from neuronforget.losses.parts import missing
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_logp, answer_nll
from neuronforget.scores.blocks import state_of
from neuronforget.taps.protocol import by_example
from neuronforget.train import draw


class Answering:
    """The `Outputs` of each step, and the `Passes` they come from.

    Whoever trains sets `start`: within it the model computes as at the start; and `twin`, where another model than
    this one is in training. `memory` is the number that a loss keeps from step to step: checkpoints have to hold it.
    """

    def __init__(
        self,
        lm: LM,
        forget: Corpus,
        retain: Corpus | None,
        preferred: Corpus | None,
        batch_size: int,
        seed: int,
        *,
        reinforced: Edit | None = None,
    ) -> None:
        check_batch_size(batch_size)
        self.lm, self.size, self.seed, self.reinforced = lm, batch_size, seed, reinforced
        self.start: Callable[[], AbstractContextManager[None]] = nullcontext
        self.twin: LM | None = None
        self.memory = new_memory()
        given = {"forget": forget, "retain": retain, "preferred": preferred}
        self._corpora = {kind: corpus for kind, corpus in given.items() if corpus is not None}
        if retain is not None and preferred is not None:
            pool = list(dict.fromkeys(example.answer for example in preferred))
            self._corpora["refused"] = retain.with_answers(draw(pool, len(retain), seed, 0), f"{retain.name} refused")
        self._encoded = {kind: lm.encode(c) for kind, c in given.items() if c is not None}
        self._known: dict[str, Tensor] = {}

    def outputs(self, step: int) -> Outputs:
        """Return what the loss of this step may ask for."""
        return self.part(step)[0]

    def part(self, step: int, place: int = 0, count: int = 1) -> tuple[Outputs, float]:
        """Return one of `count` parts of a step's batch, and the share of the step's forget examples that it has.

        Its loss times that share has the gradient and the value that add up, over the parts, to those of the whole
        batch, where the loss is a sum of means over examples (the value: of means that `Answered` takes). Raises
        InputError where a part of some batch would be empty.
        """
        forget, share = self._drawn("forget", self.seed, step, place, count)
        retain, of_retain = self._drawn("retain", self.seed + 1, step, place, count)

        def of(kind: str, index: list[int], weight: float = 1.0) -> Callable[[], Answered] | None:
            return partial(self._answer, kind, index, weight) if kind in self._corpora else None

        outputs = Outputs(
            partial(self._answer, "forget", forget),
            of("retain", retain, of_retain / share),
            of("preferred", forget),
            refused=of("refused", retain, of_retain / share),
            alternates=partial(self._answer, "alternates", forget),
            memory=self.memory if count == 1 else None,
            part=count > 1,
        )
        return outputs, share

    def check_parts(self, count: int) -> None:
        """Raise InputError unless every batch has an example for each of `count` parts."""
        if count < 1:
            raise InputError(f"accumulate must be at least 1, found {count}")
        for kind, corpus in self._corpora.items():
            if count > (size := min(self.size, len(corpus))):
                raise InputError(
                    f"a step's batch of {size} {kind} examples cannot be run in {count} parts (accumulate= times the "
                    "processes of the launch): lower accumulate=, or raise batch_size="
                )

    def largest(self, count: int) -> list[tuple[int, int]]:
        """Return (examples, tokens) of the largest part, one of `count`, of each corpus' batches."""
        rows = {kind: -(-min(self.size, len(corpus)) // count) for kind, corpus in self._corpora.items()}
        return [(rows[kind], max(len(row.ids) for row in encoded)) for kind, encoded in self._encoded.items()]

    def measure(self, sample: int | None) -> Callable[[], float]:
        """Return what reads the mean NLL (nats) of the model in training on `sample` retain examples (None: all)."""
        rows = self._rows("retain")
        if sample is not None and sample < len(rows):
            rows = draw(rows, sample, self.seed, 0)

        def nll() -> float:
            parts = self.lm.batches(rows, self.size)
            return sum(float(answer_nll(self.logits(batch), batch).sum()) for batch in parts) / len(rows)

        return nll

    def logits(self, batch: Batch, who: Who = "trained", context: str = "") -> Float[Tensor, "example token vocab"]:
        """Return the logits at the batch's own tokens, which follow the text `context`."""
        inputs, shift = self._in_context(batch, context)
        with self._as(who) as lm:
            return lm.model(**inputs, use_cache=False).logits[:, shift:]

    def hidden(
        self, batch: Batch, who: Who = "trained", layer: int | None = None
    ) -> Float[Tensor, "example token width"]:
        """Return what block `layer` gives to the next one (None: the block a quarter of the way up)."""
        kept: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            kept.append(state_of(output))

        with self._as(who) as lm:
            handle = block(lm, layer).register_forward_hook(keep)
            try:
                lm.model(**batch.inputs, use_cache=False)
            finally:
                handle.remove()
        return by_example(kept[0], batch.inputs)

    @contextmanager
    def _as(self, who: Who) -> Iterator[LM]:
        """Give the model that computes as this one does; all but the one in training without gradients."""
        if who == "trained":
            yield self.twin or self.lm
            return
        if who == "reinforced" and self.reinforced is None:
            raise missing("reinforced")
        with torch.no_grad(), self.start():
            changes = self.reinforced.changes if who == "reinforced" and self.reinforced is not None else ()
            try:  # put, not `on`: whether the edit fits is compared once, not at every step
                for change in changes:
                    change.put(self.lm.model, "after")
                yield self.lm
            finally:
                for change in changes:
                    change.put(self.lm.model, "before")

    def _drawn(self, kind: str, seed: int, step: int, place: int, count: int) -> tuple[list[int], float]:
        """The examples of one part of a step's batch, and the share of the batch that they are."""
        places = range(len(self._corpora.get(kind, ())))
        whole = draw(places, min(self.size, len(places)), seed, step)
        part = whole[len(whole) * place // count : len(whole) * (place + 1) // count]
        return part, len(part) / len(whole) if whole else 1.0

    def _answer(self, kind: str, index: list[int], weight: float = 1.0) -> Answered:
        batch = self.lm.collate([self._rows(kind)[i] for i in index])
        passes = self if weight == 1 else _Weighed(self, weight)
        return Answered(batch, passes, lambda: self._start_logp(kind)[index], weight)

    def _rows(self, kind: str) -> list[Encoded]:
        if kind == "alternates" and kind not in self._corpora:  # generating takes long: only for a loss that asks
            with self._as("start"):
                made = alternates(self.lm, self._corpora["forget"], batch_size=self.size, seed=self.seed)
            self._corpora[kind] = made
        if kind not in self._encoded:
            self._encoded[kind] = self.lm.encode(self._corpora[kind])
        return self._encoded[kind]

    def _start_logp(self, kind: str) -> Tensor:
        """The start model's log-likelihood of every answer; of all at once, so that a resumed run has the same."""
        if kind not in self._known:
            logp = torch.zeros(len(self._rows(kind)))
            for batch in self.lm.batches(self._rows(kind), 2 * self.size):
                logp[list(batch.index)] = answer_logp(self.logits(batch, "start"), batch).cpu()
            self._known[kind] = logp
        return self._known[kind]

    def _in_context(self, batch: Batch, context: str) -> tuple[dict[str, Tensor], int]:
        """Return the batch's inputs with `context` before them, after the BOS if there is one, and its length."""
        if not context:
            return batch.inputs, 0
        ids = context_ids(self.lm, context, batch.input_ids.shape[1])
        first = self.lm.tokenizer.bos_token_id
        bos = int(first is not None and bool((batch.input_ids[:, 0] == first).all()))
        prefix = torch.tensor(ids, device=batch.input_ids.device).expand(len(batch.input_ids), -1)

        def put(values: Tensor, before: Tensor) -> Tensor:
            return torch.cat([values[:, :bos], before, values[:, bos:]], dim=1)

        seen = put(batch.attention_mask, torch.ones_like(prefix))
        return {"input_ids": put(batch.input_ids, prefix), "attention_mask": seen}, len(ids)


@dataclass(frozen=True)
class _Weighed:
    """Passes whose gradients count `weight` times: a part has more of one batch than of another."""

    passes: Passes
    weight: float

    def logits(self, batch: Batch, who: Who = "trained", context: str = "") -> Float[Tensor, "example token vocab"]:
        return self._weigh(self.passes.logits(batch, who, context))

    def hidden(
        self, batch: Batch, who: Who = "trained", layer: int | None = None
    ) -> Float[Tensor, "example token width"]:
        return self._weigh(self.passes.hidden(batch, who, layer))

    def _weigh(self, values: Tensor) -> Tensor:
        if values.requires_grad:
            values.register_hook(lambda grad: grad * self.weight)
        return values
