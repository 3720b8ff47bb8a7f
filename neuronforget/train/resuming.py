"""The file that a killed training goes on from: values, optimiser and what was measured, as after one of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from neuronforget.errors import reading
from neuronforget.runs import check_writable, whole_file
from neuronforget.runs.ranks import Ranks, as_spread, whole
from neuronforget.train.stopping import Stopping


@runtime_checkable
class Descent(Protocol):
    """A training under way; `spread`: each rank holds a part of its values."""

    parameters: Any
    optimizer: torch.optim.Optimizer
    schedule: Any
    ranks: Ranks
    spread: bool

    def load(self, state: dict[str, Any]) -> None:
        """Take up the optimiser's state."""


class Checkpoint:
    """The file that a killed run goes on from; one for all ranks, which the first of them writes.

    Raises InputError where it could not be written, before any work.
    """

    def __init__(
        self, folder: str | Path | None, name: str, descent: Descent, memory: Tensor | None, stopping: Stopping | None
    ) -> None:
        self.path = Path(folder) / f"{name}.pt" if folder else None
        if self.path is not None and descent.ranks.rank == 0:
            check_writable(self.path)
        self.descent, self.stopping = descent, stopping
        self.tensors = [*descent.parameters, *([] if memory is None else [memory])]

    def save(self, history: list[float]) -> None:
        """Write the run as it is now."""
        first = self.descent.ranks.rank == 0
        if self.path is None or not (first or self.descent.spread):
            return
        state: dict[str, Any] = {"tensors": [t.detach() for t in self.tensors], "history": history}
        state |= {"optimizer": self.descent.optimizer.state_dict(), "schedule": self.descent.schedule.state_dict()}
        if self.stopping is not None:
            state["stopping"] = self.stopping.state()
        if self.descent.spread:  # each rank has a part; the first one's file has all
            state = tree_map_only(Tensor, lambda t: whole(t).cpu() if first else whole(t) is None, state)
        if not first:
            return
        with whole_file(self.path) as scratch:
            torch.save(state, scratch)

    def restore(self) -> list[float]:
        """Take the run up where it was left, if it was; return the losses until then. Raises InputError if damaged."""
        if self.path is None or not self.path.is_file():
            return []
        with reading(self.path, "training to go on with: delete it to start over"), torch.no_grad():
            state = torch.load(self.path, weights_only=True, map_location="cpu")  # written on any card
            for tensor, saved in zip(self.tensors, state["tensors"], strict=True):
                tensor.copy_(as_spread(saved, tensor))
            self.descent.load(state["optimizer"])
            self.descent.schedule.load_state_dict(state["schedule"])
            if self.stopping is not None:
                self.stopping.load(state["stopping"], self.descent.parameters)
            return list(state["history"])

    def remove(self) -> None:
        """Delete the file: the run has ended."""
        if self.path is not None and self.descent.ranks.rank == 0:
            self.path.unlink(missing_ok=True)
