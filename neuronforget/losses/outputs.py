"""What a loss may ask for: a model's answers to a batch, as it is now and as it was at the start.

Each part is computed when first asked for, and once. Only answer tokens count: the rows of `at` are the
positions that predict one, and `mean` weighs them as `NLL` does, each example alike whatever its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuronforget.corpora import Batch
from neuronforget.errors import InputError
from neuronforget.losses.parts import missing
from neuronforget.models.likelihood import answer_logp, answer_nll

Who = Literal["trained", "start", "reinforced"]
#: A training has exploded where the NLL of what it is to keep is so many times that of guessing, and of the start.
EXPLODED = 2.0


@runtime_checkable
class Passes(Protocol):
    """Forward passes of the model in training, of the same model at the start, or of the reinforced one.

    Only those of the model in training carry gradients.
    """

    def logits(self, batch: Batch, who: Who = "trained", context: str = "") -> Float[Tensor, "example token vocab"]:
        """Return the logits at the batch's own tokens, which follow the text `context`."""

    def hidden(
        self, batch: Batch, who: Who = "trained", layer: int | None = None
    ) -> Float[Tensor, "example token width"]:
        """Return what block `layer` gives to the next one (None: the block a quarter of the way up)."""


@dataclass(frozen=True, eq=False)
class Answered:
    """Answers to one batch. `known` gives the start model's log-likelihoods where they are kept.

    Means over a part that has another share of its batch than of the forget batch count `weight` times in a loss'
    value, as they do in its gradient, which `passes` see to.
    """

    batch: Batch
    passes: Passes
    known: Callable[[], Float[Tensor, "example"]] | None = None
    weight: float = 1.0

    @cached_property
    def logits(self) -> Float[Tensor, "example token vocab"]:
        """Logits of the model in training."""
        return self.passes.logits(self.batch)

    @cached_property
    def start_logits(self) -> Float[Tensor, "example token vocab"]:
        """Logits of the start model: one more forward pass, without gradients."""
        return self.passes.logits(self.batch, "start")

    @cached_property
    def reinforced_logits(self) -> Float[Tensor, "example token vocab"]:
        """Logits of the start model after it was trained further on the forget corpus."""
        return self.passes.logits(self.batch, "reinforced")

    def in_context(self, context: str) -> Float[Tensor, "example token vocab"]:
        """Return the start model's logits where the text `context` stands before every example."""
        return self.passes.logits(self.batch, "start", context)

    def hidden(self, layer: int | None = None, who: Who = "trained") -> Float[Tensor, "answer width"]:
        """Return the hidden state after block `layer` at the positions that predict an answer token, fp32."""
        return self.at(self.passes.hidden(self.batch, who, layer))

    @cached_property
    def reference(self) -> Float[Tensor, "example"]:
        """Log-likelihood of the answer under the start model (nats, summed over tokens)."""
        return self.known() if self.known is not None else answer_logp(self.start_logits, self.batch)

    @property
    def logp(self) -> Float[Tensor, "example"]:
        """Log-likelihood of the answer (nats, summed over tokens)."""
        return answer_logp(self.logits, self.batch)

    @property
    def dlogp(self) -> Float[Tensor, "example"]:
        """Log-likelihood of the answer minus that under the start model (nats, summed over tokens)."""
        return self.logp - self.reference.to(self.logp.device)

    @property
    def nlls(self) -> Float[Tensor, "example"]:
        """Each example's mean NLL per answer token (nats)."""
        return answer_nll(self.logits, self.batch)

    @property
    def nll(self) -> Float[Tensor, ""]:
        """Mean over examples of the NLL per answer token (nats)."""
        return self.average(self.nlls)

    def check_kept(self, now: float) -> None:
        """Raise InputError where `now`, the NLL, is twice that of guessing, and twice what it was at the start."""
        guess = math.log(self.logits.shape[-1])
        if now <= EXPLODED * guess:
            return
        start = float(answer_nll(self.passes.logits(self.batch, "start"), self.batch).mean())
        if now > EXPLODED * start:
            raise InputError(
                f"the training explodes: answers that are to be kept are at {now:.1f} nats per token, at the "
                f"start they were at {start:.1f}, and guessing among all tokens gives {guess:.1f}: lower lr"
            )

    @property
    def labels(self) -> Int[Tensor, "answer"]:
        """The answer tokens, example by example; what `at` gives are the positions before them."""
        return self.batch.input_ids[:, 1:][self.batch.answer_mask[:, 1:]]

    def at(self, values: Float[Tensor, "example token d"]) -> Float[Tensor, "answer d"]:
        """Return `values` at the positions that predict an answer token, fp32."""
        return values[:, :-1][self.batch.answer_mask[:, 1:].to(values.device)].float()

    def mean(self, per_token: Float[Tensor, "answer"]) -> Float[Tensor, ""]:
        """Return the mean over examples of the mean over their answer tokens."""
        mask = self.batch.answer_mask[:, 1:]
        weights = (mask / (mask.sum(1, keepdim=True) * len(mask)))[mask]
        return self._counted((weights.to(per_token) * per_token).sum())

    def average(self, per_example: Float[Tensor, "example"]) -> Float[Tensor, ""]:
        """Return the mean over examples."""
        return self._counted(per_example.mean())

    def _counted(self, mean: Tensor) -> Tensor:
        return mean if self.weight == 1 else mean + (self.weight - 1) * mean.detach()

    @property
    def drift(self) -> Float[Tensor, ""]:
        """Mean over answer tokens of KL(start model || model in training), over the whole vocabulary (nats)."""
        now, start = (self.at(logits).log_softmax(-1) for logits in (self.logits, self.start_logits))
        return self.mean((start.exp() * (start - now)).sum(-1))


Answer = Callable[[], Answered]


class Outputs:
    """What a loss is given. Asking for a part that the caller did not give raises InputError.

    `memory` is the number that `keep` hands out. A `part` is given some of a step's examples alone.
    """

    def __init__(
        self,
        forget: Answer,
        retain: Answer | None = None,
        preferred: Answer | None = None,
        *,
        refused: Answer | None = None,
        alternates: Answer | None = None,
        memory: Tensor | None = None,
        part: bool = False,
    ) -> None:
        self._parts = {"forget": forget, "retain": retain, "preferred": preferred}
        self._parts |= {"refused": refused, "alternates": alternates}
        self._memory = new_memory() if memory is None else memory
        self._whole = not part

    @cached_property
    def forget(self) -> Answered:
        """Answers to the forget batch."""
        return self._part("forget")

    @cached_property
    def retain(self) -> Answered:
        """Answers to the retain batch."""
        return self._part("retain")

    @cached_property
    def preferred(self) -> Answered:
        """The answers that should take the forget answers' place (refusals), to the forget batch's prompts."""
        return self._part("preferred")

    @cached_property
    def refused(self) -> Answered:
        """The same refusals as answers to the retain batch's prompts, where they would be wrong."""
        return self._part("refused")

    @cached_property
    def alternates(self) -> Answered:
        """Other answers to the forget batch's prompts, generated by the start model itself."""
        return self._part("alternates")

    def keep_nll(self, alpha: float) -> Tensor:
        """Return `alpha NLL_r`; no retain corpus is needed where alpha is 0.

        Raises InputError where the answers that are to be kept have become far less likely than by guessing.
        """
        if not alpha:
            return torch.zeros(())
        nll = self.retain.nll
        self.retain.check_kept(float(nll.detach()) / self.retain.weight)
        return alpha * nll

    def keep(self, first: float) -> Float[Tensor, ""]:
        """Return a number that the loss may change in place: it lasts from step to step, and over a resume.

        `first` is its value at the first step. Raises InputError where a step is run in parts: it would change at each.
        """
        if not self._whole:
            raise missing("keep")
        if self._memory.isnan():
            self._memory.fill_(first)
        return self._memory

    def _part(self, kind: str) -> Answered:
        answer = self._parts[kind]
        if answer is None:
            raise missing(kind)
        return answer()


def new_memory() -> Float[Tensor, ""]:
    """Return what `Outputs.keep` starts from: a number that was not set yet."""
    return torch.tensor(float("nan"))


Loss = Callable[[Outputs], Tensor]


def valued(loss: Loss, outputs: Outputs) -> Float[Tensor, ""]:
    """Return what `loss` makes of the outputs. Raises InputError unless that is a number which can be trained on."""
    value: Any = loss(outputs)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"a tensor {list(value.shape)} without gradient" if isinstance(value, Tensor) else repr(value)[:60]
        raise InputError(
            f"a loss must return one number as a tensor that depends on the weights in training, found {found}"
        )
    return value.reshape(())
