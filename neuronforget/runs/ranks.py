"""The processes of one launch (`torchrun`, `accelerate launch`): who works on what, and how all stay together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from neuronforget.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `world`; a process of its own is 0 of 1."""

    rank: int = 0
    world: int = 1

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def add_gradients(self, parameters: Sequence[torch.Tensor], value: float) -> float:
        """Add up every parameter's gradient over the ranks, in place; return the sum of their `value`s.

        Where a rank has no gradient for a parameter that another has one for, its own counts as 0. Of what is
        spread over the ranks the gradients came as means over them.
        """
        for parameter in parameters:
            if spread(parameter) and parameter.grad is not None:
                parameter.grad *= self.world
        parameters = [p for p in parameters if not spread(p)]
        found = self.gather(([p.grad is not None for p in parameters], value))
        if self.world > 1:
            for parameter, *has in zip(parameters, *(flags for flags, _ in found), strict=True):
                if any(has):
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    dist.all_reduce(parameter.grad)
        return sum(theirs for _, theirs in found)

    def each(self, value: T) -> Iterator[T]:
        """Yield every rank's value in rank order; only one of them is held beside the own."""
        for rank in range(self.world):
            if self.world == 1:
                yield value
                continue
            box: list[Any] = [value if rank == self.rank else None]
            dist.broadcast_object_list(box, src=rank)
            yield box[0]

    @contextmanager
    def together(self) -> Iterator[list[Any]]:
        """End the block on every rank or on none: an error on one is raised on all, so that nobody waits for it.

        What the block puts into the list has to be equal on all ranks. Raises InputError on the ranks that did
        not fail themselves, and on all where the lists differ. The block must not talk to other ranks.
        """
        claims: list[Any] = []
        try:
            yield claims
        except Exception as error:
            self.gather((f"{type(error).__name__}: {error}", None))
            raise
        found = self.gather((None, claims))
        for rank, (message, _) in enumerate(found):
            if message is not None:
                raise InputError(f"rank {rank} of {self.world} failed: {message}")
        if any(theirs != claims for _, theirs in found):
            raise InputError(
                f"the {self.world} ranks of this launch do different work: give each the same model, settings and "
                "whole corpus, which is divided among them (or record with split=False)"
            )


def spread(tensor: torch.Tensor) -> bool:
    """Do several ranks hold a part each?"""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in one piece; where it is spread all ranks have to ask."""
    return tensor.full_tensor() if spread(tensor) else tensor  # type: ignore[attr-defined]


def as_spread(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor that all ranks have, in parts where `like` is; all of them have to ask."""
    tensor = tensor.to(like.device)
    if not spread(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]


def own_device(device: torch.device | str) -> torch.device:
    """Return the device that is meant: in a launch `cuda` without a number is this process' own card.

    That is card LOCAL_RANK, counted round where there are fewer, as `accelerate` counts. Raises InputError for a
    device that PyTorch does not know or that this machine does not have.
    """
    try:
        meant = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {str(device)!r}: PyTorch knows no such device (cpu, cuda, cuda:1)") from error
    if meant.type != "cuda":
        _check_there(meant)
        return meant
    if not (cards := torch.cuda.device_count()):
        raise InputError(f"device {str(device)!r}: this PyTorch finds no GPU on this machine; use cpu")
    if meant.index is None and in_launch():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % cards)
    if (meant.index or 0) >= cards:
        raise InputError(f"device {str(device)!r}: this machine has {cards} GPUs, numbered from 0")
    return meant


def _check_there(device: torch.device) -> None:
    """Raise InputError for a device on which this PyTorch cannot hold a number."""
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device refuses in its own way
        raise InputError(f"device {str(device)!r}: this PyTorch has none on this machine; use cpu") from error


def launched(device: torch.device) -> Ranks:
    """Return this process' place in a launch; `accelerate` joins the processes if nobody has done so yet."""
    if not dist.is_available():
        return Ranks()
    if in_launch() and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=device.type == "cpu")
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


def in_launch() -> bool:
    """Is this one of several processes that `torchrun` or `accelerate launch` started?"""
    launch = all(name in os.environ for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
    return launch and int(os.environ.get("WORLD_SIZE", 1)) > 1
