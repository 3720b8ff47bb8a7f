"""Training losses: each a function of `Outputs` to a scalar, used on neurons and on whole models alike.

`NLL` is the mean over examples of the mean negative log-likelihood per answer token; `dlogp` is
`logp - logp_ref`, summed over answer tokens, the reference being the model before training. Log-likelihoods
of the answer, never raw logits. Another loss is another function; its settings are bound with `functools.partial`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from neuronforget.corpora import Batch
from neuronforget.errors import InputError
from neuronforget.likelihood import answer_logp, answer_nll


@dataclass(frozen=True)
class Answered:
    """A model's answers to one batch: logits, and each example's answer log-likelihood under the start model."""

    logits: Float[Tensor, "example token vocab"]
    batch: Batch
    reference: Float[Tensor, "example"]

    @property
    def nll(self) -> Tensor:
        """Mean over examples of the NLL per answer token (nats)."""
        return answer_nll(self.logits, self.batch).mean()

    @property
    def dlogp(self) -> Float[Tensor, "example"]:
        """Log-likelihood of the answer minus that under the start model (nats, summed over tokens)."""
        return answer_logp(self.logits, self.batch) - self.reference.to(self.logits.device)


Answer = Callable[[], Answered]


class Outputs:
    """What a loss may ask for; each part is computed when first asked for, and once.

    `forget` and `retain` are answers to a batch of each corpus, `preferred` are the answers that should take
    the forget answers' place (a refusal), for the examples of the forget batch. Asking for one that the
    caller did not give raises InputError.
    """

    def __init__(self, forget: Answer, retain: Answer | None = None, preferred: Answer | None = None) -> None:
        self._forget, self._retain, self._preferred = forget, retain, preferred

    @cached_property
    def forget(self) -> Answered:
        """Answers to the forget batch."""
        return self._forget()

    @cached_property
    def retain(self) -> Answered:
        """Answers to the retain batch."""
        if self._retain is None:
            raise InputError("this loss has a retain term: give a retain corpus, or set alpha=0")
        return self._retain()

    @cached_property
    def preferred(self) -> Answered:
        """Preferred answers to the forget batch's prompts."""
        if self._preferred is None:
            raise InputError("this loss needs preferred answers: give preferred=, or examples with `wrong` answers")
        return self._preferred()


Loss = Callable[[Outputs], Tensor]


def settings_of(loss: Loss) -> dict[str, Any]:
    """Return the arguments bound to a loss by `functools.partial`, by name (positional ones by their place)."""
    found: dict[str, Any] = {}
    while isinstance(loss, partial):
        found = {**{str(i): value for i, value in enumerate(loss.args)}, **loss.keywords, **found}
        loss = loss.func
    return found


def name_of(loss: Callable[..., Any]) -> str:
    """Return what a loss is called: its function's name, or its class's."""
    while isinstance(loss, partial):
        loss = loss.func
    return getattr(loss, "__name__", type(loss).__name__)


def identity(loss: Loss) -> str:
    """Return a text that differs where losses do: code, defaults, bound arguments, plain closure values.

    Work is continued only under the identity it began with. State that a loss keeps in lists, dictionaries or
    objects is no part of it.
    """
    bound = settings_of(loss)
    while isinstance(loss, partial):
        loss = loss.func
    loss = inspect.unwrap(loss)
    code = getattr(loss, "__code__", None)
    plain = (bool, int, float, str, bytes, type(None))
    cells = [cell.cell_contents for cell in getattr(loss, "__closure__", None) or ()]
    held = [value for value in (*cells, *vars(loss).values()) if isinstance(value, plain)]
    where = getattr(loss, "__module__", ""), getattr(loss, "__qualname__", type(loss).__qualname__)
    body = (code.co_code, code.co_names, [c for c in code.co_consts if isinstance(c, plain)]) if code else ()
    return repr((where, body, getattr(loss, "__defaults__", None), getattr(loss, "__kwdefaults__", None), held, bound))


def ga(outputs: Outputs) -> Tensor:
    """Gradient ascent: `-NLL_f`. Unbounded below: it keeps destroying after it has forgotten."""
    return -outputs.forget.nll


def grad_diff(outputs: Outputs, *, gamma: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Gradient difference (Liu et al. 2022): `-gamma NLL_f + alpha NLL_r`."""
    return -gamma * outputs.forget.nll + _retain_term(outputs, alpha)


def npo(outputs: Outputs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """Negative preference optimisation (Zhang et al. 2024, arXiv:2404.05868).

    `-(2/beta) log sigma(-beta dlogp_f) + alpha NLL_r`: gradient ascent whose pull fades as it forgets.
    """
    pull = -(2 / beta) * logsigmoid(-beta * outputs.forget.dlogp).mean()
    return pull + _retain_term(outputs, alpha)


def dpo(outputs: Outputs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023) of a preferred answer over the forget answer.

    `-(2/beta) log sigma(beta (dlogp_preferred - dlogp_f)) + alpha NLL_r`, 2/beta times the usual scale.
    """
    margin = outputs.preferred.dlogp - outputs.forget.dlogp
    return -(2 / beta) * logsigmoid(beta * margin).mean() + _retain_term(outputs, alpha)


def _retain_term(outputs: Outputs, alpha: float) -> Tensor:
    return alpha * outputs.retain.nll if alpha else torch.zeros(())
