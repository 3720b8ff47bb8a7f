"""The weights that a training moves: those of neurons, adapters or all, each at its rate, spread or not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from neuronforget.erase.footprint import Trainees
from neuronforget.erase.lowrank import LoRA
from neuronforget.erase.rates import Rates, as_info, default_lr, rates_of
from neuronforget.erase.sharded import check_sharded
from neuronforget.erase.sharded import sharded as spread_out
from neuronforget.erase.trained import Choice, Trained
from neuronforget.erase.units import check_neurons
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.runs.ranks import Ranks


@dataclass(frozen=True, eq=False)
class Weights:
    """A choice of weights, the rates as asked for and by parameter; where `sharded`, `ranks` hold a share each."""

    choice: Choice
    lr: Rates
    rates: dict[str, float]
    ranks: Ranks
    sharded: bool

    @classmethod
    def of(
        cls, lm: LM, neurons: Neurons | None, lora: int | LoRA | None, lr: Rates | None, ranks: Ranks, sharded: bool
    ) -> Weights:
        """Choose them. Raises InputError for neurons or rates that do not fit the model, and for what is not spread."""
        if neurons is not None:
            check_neurons(lm, neurons)
        choice = Choice(lm, neurons, lora if lora is None or isinstance(lora, LoRA) else LoRA(lora))
        if sharded:
            check_sharded(choice, ranks)
        lr = default_lr(lm, neurons, adapters=lora is not None) if lr is None else lr
        return cls(choice, lr, rates_of(lm, lr, choice.names()), ranks, sharded)

    @property
    def trainees(self) -> Trainees:
        """How much of them a process holds."""
        return Trainees.of(self.choice, self.rates, self.ranks.world if self.sharded else 1)

    @property
    def info(self) -> dict[str, Any]:
        """What an edit's info says of them."""
        lora = self.choice.lora
        found = {"lr": as_info(self.choice.lm, self.lr, self.rates), "processes": self.ranks.world}
        return {**found, "sharded": self.sharded, "lora": asdict(lora) if lora else None}

    def training(self, seed: int) -> AbstractContextManager[Trained]:
        """Return the block in which they are trained; `seed` draws the adapters."""
        if self.sharded:
            return spread_out(self.choice.lm, self.rates, self.ranks)
        return self.choice.training(self.rates, seed)
