"""Does the model still know the answer? Teacher-forced, greedy-equivalent, one number per example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Batch
from neuronforget.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """Logits on a batch and, where there is one, those of the gold twin (the model that never knew).

    The batch is cut to the tokens from the last one before its first answer on, as the logits are. `before` is what
    the untouched model predicts: log-probabilities of the next token at each answer token, in the order of `mask`.
    """

    logits: Float[Tensor, "example token vocab"]
    batch: Batch
    gold: Float[Tensor, "example token vocab"] | None = None
    before: Float[Tensor, "answer vocab"] | None = None

    @property
    def mask(self) -> Tensor:
        """Positions whose next token is an answer token, [example, token - 1]."""
        return self.batch.answer_mask[:, 1:]

    @cached_property
    def hits(self) -> Tensor:
        """Answer tokens that are the most likely one, [example, token - 1]; of equally likely ones the first is."""
        logits, targets = (x.detach() for x in self._answered)
        top = logits.amax(-1, keepdim=True)
        hit = (logits.gather(-1, targets[:, None]) == top)[:, 0]
        tied = hit & (_count(torch.eq, logits, top) > 1)
        if tied.any():  # argmax takes ten times as long as amax on CPU
            hit[tied] = logits[tied].argmax(-1) == targets[tied]
        return self._placed(hit)

    @cached_property
    def nll(self) -> Tensor:
        """Each example's mean negative log-likelihood per answer token (nats)."""
        lost = torch.nn.functional.cross_entropy(*self._answered, reduction="none")
        return self._placed(lost).sum(1) / self.mask.sum(1)

    @cached_property
    def ranks(self) -> Tensor:
        """How many tokens are likelier than the answer token, [example, token - 1]; 0 elsewhere."""
        logits, targets = (x.detach() for x in self._answered)
        return self._placed(_count(torch.gt, logits, logits.gather(-1, targets[:, None])).long())

    @cached_property
    def logp(self) -> Tensor:
        """Log-probabilities of the next token at each answer token (nats), [answer token, vocab]."""
        return self._answered[0].log_softmax(-1)

    def divergence_from(self, reference: Tensor) -> Tensor:
        """KL(reference || model), mean over answer tokens; `reference` as `logp`: a token it excludes has no part."""
        reference = reference.to(self.logp.device)
        there = torch.where(torch.isneginf(reference), 0.0, reference - self.logp)
        return self._placed((reference.exp() * there).sum(-1)).sum(1) / self.mask.sum(1)

    @cached_property
    def broken(self) -> Tensor:
        """Examples for which the model returns NaN."""
        return torch.isnan(self.nll)

    @cached_property
    def _answered(self) -> tuple[Tensor, Tensor]:
        """Logits (fp32) at the places that predict an answer token, and these tokens: no metric looks elsewhere."""
        return self.at_answers(self.logits), self.batch.input_ids[:, 1:][self.mask].to(self.logits.device)

    def at_answers(self, logits: Tensor) -> Tensor:
        """Return the rows of `logits` (fp32) that predict an answer token."""
        return logits.flatten(0, 1).index_select(0, self._places.to(logits.device)).float()

    @cached_property
    def _places(self) -> Tensor:
        """Where, example after example, an answer token comes next."""
        return torch.nn.functional.pad(self.mask, (0, 1)).flatten().nonzero()[:, 0]

    def _placed(self, values: Tensor) -> Tensor:
        """Put a value of each answer token where it stands; 0 elsewhere."""
        found = torch.zeros(self.mask.shape, dtype=values.dtype, device=values.device)
        return found.masked_scatter(self.mask.to(values.device), values)


def _count(compare: Callable[..., Tensor], logits: Tensor, other: Tensor) -> Tensor:
    """In how many places of each row does the comparison hold? (fp32 adds up faster than what is true or false.)"""
    return compare(logits, other, out=torch.empty_like(logits)).sum(-1)


Metric = Callable[[Prediction], Float[Tensor, "example"]]


def exact_match(p: Prediction) -> Tensor:
    """1 where every answer token is the most likely one: where greedy decoding writes exactly this answer."""
    return _unless_nan((p.hits == p.mask).all(1).float(), p)


def token_accuracy(p: Prediction) -> Tensor:
    """Share of the answer tokens that are the most likely one, given the answer before them."""
    return _unless_nan(p.hits.sum(1) / p.mask.sum(1), p)


def extraction_strength(p: Prediction) -> Tensor:
    """Share of the answer, counted from its end, that the model writes by itself after what comes before: 1 - k / T.

    k is the shortest start of the answer after which every token is the most likely one (Carlini et al. 2021,
    arXiv:2012.07805); T, and a strength of 0, where not even the last token is. Its sibling, exact memorisation, the
    share of tokens that are the most likely one, is `token_accuracy`.
    """
    place = torch.arange(p.mask.shape[1], device=p.mask.device)
    missed = (p.mask & ~p.hits).long() * (place + 1)  # one more than the place of each miss
    kept = (p.mask & (place[None] + 1 > missed.amax(1, keepdim=True))).sum(1)
    return _unless_nan(kept / p.mask.sum(1), p)


def nll(p: Prediction) -> Tensor:
    """Mean negative log-likelihood per answer token (nats)."""
    return p.nll


def probability(p: Prediction) -> Tensor:
    """Length-normalised probability of the answer, exp(-nll)."""
    return (-p.nll).exp()


def rank(p: Prediction) -> Tensor:
    """Worst rank of an answer token among all tokens; 1 where greedy decoding writes the answer, ties apart."""
    return _unless_nan((p.ranks + 1).where(p.mask, 0).amax(1).float(), p)


def kl_gold(p: Prediction) -> Tensor:
    """KL(gold || model), mean over answer positions (nats): what is left, and what was over-erased."""
    if p.gold is None:
        raise InputError("kl_gold needs gold=, the model that never knew")
    return p.divergence_from(p.at_answers(p.gold).log_softmax(-1))


def kl_untouched(p: Prediction) -> Tensor:
    """KL(untouched || model), mean over answer positions (nats): how far an edit moved what was to stay."""
    if p.before is None:
        raise InputError("kl_untouched needs before=, what the untouched model predicts")
    return p.divergence_from(p.before)


def _unless_nan(values: Tensor, p: Prediction) -> Tensor:
    """A model that returns NaN has not forgotten: its metrics are NaN."""
    return torch.where(p.broken, torch.nan, values)
