"""Learned gates: one number on each neuron, trained with the model frozen, says which neurons an answer needs.

Every activation becomes `m_j a_j`; the only parameters are the L x F gates. With `NLL` the mean over examples
of the loss per answer token, two objectives are offered:

keep    `NLL_f(m) + sparsity * open(m)`: the fewest open gates with which the model still gives the forget
        answers (Chang et al. 2024, arXiv:2311.09060, "Hard Concrete" and "Slimming"). The same is learned on
        retain, where it is given, and subtracted: neurons that any answer needs are in both.
erase   `alpha NLL_r(m) - min(NLL_f(m), ln V) + sparsity * (1 - open(m))`: the fewest closed gates with which
        the forget answers are no likelier than a guess among V tokens, and the retain answers stay.
        `alpha` weighs specificity: on grafted testbeds, whose true neurons do nothing for retain, more of it found
        more of them; where both corpora share neurons a large one may leave few to close.

`hard_concrete` draws its gates (Louizos et al. 2018, arXiv:1712.01312): `m = clip(s (z - c) + c, 0, 1)`,
`s = sigmoid((logit(u) + x_j) / b)`, u uniform, c = -0.1, z = 1.1, b = 2/3, so that gates are exactly 0 or 1
with positive probability and `open` is the mean of `P(m_j > 0) = sigmoid(x_j - b ln(-c / z))`. `slimming` (Liu
et al. 2017, arXiv:1708.06519) learns `m` itself, clipped to [0, 1], and `open` is its mean: an L1 penalty.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Encoded
from neuronforget.errors import InputError
from neuronforget.models import LM, check_whole, frozen
from neuronforget.models.likelihood import answer_nll
from neuronforget.scores.scores import Scores, runs_model
from neuronforget.taps import TorchHooks
from neuronforget.train import Plan, draw, fit

Objective = Literal["erase", "keep"]
LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
#: Logit at which gates start: P(m > 0) = 0.98, so that training starts from nearly the whole model.
START = 2.0
SIGNS = {
    "erase": "large: its closed gate takes the forget answers away (starts from {start:g})",
    "keep": "positive: the forget answers need it, and more than the retain answers where those are given",
}


def hard_concrete_gate(
    x: Float[Tensor, "layer neuron"], uniform: Float[Tensor, "layer neuron"]
) -> Float[Tensor, "layer neuron"]:
    """Return the gates in [0, 1] that `uniform` draws from logits `x`: differentiable, exactly 0 or 1 at the ends."""
    stretched = torch.sigmoid((torch.logit(uniform) + x) / TEMPERATURE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def hard_concrete_open(x: Float[Tensor, "layer neuron"]) -> Float[Tensor, "layer neuron"]:
    """Return `P(m > 0)` of each gate: its mean is the expected share of open gates (the L0 penalty)."""
    return torch.sigmoid(x - TEMPERATURE * math.log(-LOW / HIGH))


@checks_kinds
@runs_model
def hard_concrete(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    objective: Objective = "erase",
    sparsity: float = 1.0,
    alpha: float = 30.0,
    steps: int = 200,
    lr: float = 0.1,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """Score neurons by gates that are 0 or 1 by chance, trained under an L0 penalty; the module says how.

    "erase": minus the gate's logit; "keep": the logit, minus that of retain where it is given. Deterministic
    by `seed`; the model is left as it was. Raises InputError for settings that cannot be trained.
    """
    work = _Gating(lm, objective, sparsity, alpha, Plan(steps, lr, 0.0, None, seed=seed), batch_size, progress)

    def gates(x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)  # by step alone, on any device alike
        uniform = torch.rand(x.shape, generator=generator, dtype=x.dtype).clamp(1e-6, 1 - 1e-6).to(x.device)
        return hard_concrete_gate(x, uniform), hard_concrete_open(x)

    return work.scores("hard_concrete", START, gates, forget, retain)


@checks_kinds
@runs_model
def slimming(
    lm: LM,
    forget: Corpus,
    retain: Corpus | None = None,
    *,
    objective: Objective = "erase",
    sparsity: float = 1.0,
    alpha: float = 30.0,
    steps: int = 200,
    lr: float = 0.05,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Scores:
    """Score neurons by continuous gates in [0, 1], trained under an L1 penalty; the module says how.

    "erase": minus the gate; "keep": the gate, minus that of retain where it is given. Deterministic by
    `seed`; the model is left as it was. Raises InputError for settings that cannot be trained.
    """
    work = _Gating(lm, objective, sparsity, alpha, Plan(steps, lr, 0.0, None, seed=seed), batch_size, progress)

    def gates(x: Tensor, _step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():  # projected gradient: a clamp in the graph would leave closed gates without one
            x.clamp_(0, 1)
        return x, x

    return work.scores("slimming", 1.0, gates, forget, retain)


#: From parameters and step to (gates, how open each is), [layer, neuron].
Gates = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class _Gating:
    """What is trained, and how."""

    lm: LM
    objective: Objective
    sparsity: float
    alpha: float
    plan: Plan
    batch_size: int
    progress: bool

    def __post_init__(self) -> None:
        if not (self.sparsity >= 0 and self.alpha >= 0 and math.isfinite(self.sparsity + self.alpha)):
            raise InputError(f"sparsity and alpha must be weights of 0 or more; found {self.sparsity}, {self.alpha}")
        check_whole(self.lm)

    def scores(self, name: str, start: float, gates: Gates, forget: Corpus, retain: Corpus | None) -> Scores:
        """Train gates from `start`, and read them as scores; both corpora are tokenised before any training."""
        rows = [self.lm.encode(c) for c in (forget, retain) if c is not None]
        layers = tuple(site.layer for site in self.lm.sites)
        with frozen(self.lm), torch.enable_grad():
            fits = [self.fit(name, start, gates, rows)] if self.objective == "erase" else []
            fits = fits or [self.fit(name, start, gates, [row]) for row in rows]
        values = -fits[0] if self.objective == "erase" else fits[0] - sum(fits[1:])
        info: dict[str, Any] = {"objective": self.objective, "sparsity": self.sparsity}
        info |= {"steps": self.plan.steps, "lr": self.plan.lr}
        info |= {"alpha": self.alpha} if self.objective == "erase" else {}
        info |= {"seed": self.plan.seed, "batch_size": self.batch_size}
        info |= {"forget": {}, "retain": None if retain is None else {}}
        return Scores(
            values, f"{name}:{self.objective}", SIGNS[self.objective].format(start=-start), layers, None, info
        )

    def fit(self, name: str, start: float, gates: Gates, rows: list[list[Encoded]]) -> Tensor:
        """Return the trained parameters, fp64 [layer, neuron]."""
        x = torch.full(self.lm.shape, start, device=self.lm.device, requires_grad=True)
        loss = self.loss(gates, rows)
        fit([x], lambda step: loss(x, step), self.plan, desc=name, progress=self.progress)
        gates(x, self.plan.steps)  # puts slimming's last step back into [0, 1]
        return x.detach().double().cpu()

    def loss(self, gates: Gates, rows: list[list[Encoded]]) -> Callable[[Tensor, int], Tensor]:
        """Return the objective as a function of parameters and step; `rows` are forget (and, to erase, retain)."""
        guess = math.log(self.lm.model.get_output_embeddings().weight.shape[0])

        def at(x: Tensor, step: int) -> Tensor:
            m, opened = gates(x, step)
            nll = [self.nll(m, part, self.plan.seed + i, step) for i, part in enumerate(rows)]
            if self.objective == "keep":
                return nll[0].mean() + self.sparsity * opened.mean()
            kept = self.alpha * nll[1].mean() if len(nll) > 1 else 0.0
            # Each example is pushed until its answer is as likely as a guess, and no further.
            return kept - nll[0].clamp(max=guess).mean() + self.sparsity * (1 - opened.mean())

        return at

    def nll(self, m: Tensor, rows: list[Encoded], seed: int, step: int) -> Float[Tensor, "example"]:
        """Return the loss of each example of the step's batch, with every activation times its gate."""
        chosen = draw(rows, min(self.batch_size, len(rows)), seed, step)
        batch = self.lm.collate(chosen)
        edits = {site.layer: _times(m[i]) for i, site in enumerate(self.lm.sites)}
        return answer_nll(TorchHooks(self.lm)(batch.inputs, edits).logits, batch)


def _times(gate: Tensor) -> Any:
    return lambda a: a * gate.to(a)
