"""How transformers stacks the weights of a layer's experts, and the same weights as those of one wide MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: What transformers states of every class of experts that it can compute in several ways.
STATED = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")


@dataclass(frozen=True)
class Layout:
    """How transformers stacks the weights of `count` experts; `opened` and `stacked` are each other's inverse."""

    count: int
    gated: bool
    biased: bool
    transposed: bool
    concatenated: bool

    @classmethod
    def of(cls, experts: Any) -> Layout:
        """Read it off a module of experts."""
        gated, biased, transposed, concatenated = (getattr(experts, name) for name in STATED[:4])
        return cls(experts.num_experts, gated, biased, transposed, concatenated)

    @property
    def feed(self) -> str:
        """Name of the stacked weight that feeds the neurons."""
        return "gate_up_proj" if self.gated else "up_proj"

    @property
    def stacked_names(self) -> set[str]:
        """Names of the stacked weights."""
        weights = {self.feed, "down_proj"}
        return weights | {f"{name}_bias" for name in weights} if self.biased else weights

    @property
    def opened_names(self) -> set[str]:
        """Names of the weights of one MLP."""
        maps = ("gate", "up") if self.gated else ("up",)
        weights = {f"{name}.weight" for name in (*maps, "down")}
        return weights | {f"{name}.bias" for name in maps} | {"down_bias"} if self.biased else weights

    def opened(self, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of one MLP, `[experts * width, d_model]` and, of `down`, the transpose."""
        feed, down = stacked[self.feed], stacked["down_proj"]
        found = self._feeding("weight", feed.mT if self.transposed else feed)
        found["down.weight"] = (down if self.transposed else down.mT).flatten(0, 1).T.contiguous()
        if self.biased:
            found |= self._feeding("bias", stacked[f"{self.feed}_bias"])
            found["down_bias"] = stacked["down_proj_bias"]
        return found

    def _feeding(self, kind: str, feed: Tensor) -> dict[str, Tensor]:
        halves = self.split(feed, 1) if self.gated else (feed,)
        names = ("gate", "up")[-len(halves) :]
        return {f"{n}.{kind}": half.flatten(0, 1).contiguous() for n, half in zip(names, halves, strict=True)}

    def stacked(self, opened: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights as transformers keeps them."""
        feed, down = self._fed("weight", opened), opened["down.weight"].T.unflatten(0, (self.count, -1))
        found = {
            self.feed: (feed.mT if self.transposed else feed).contiguous(),
            "down_proj": (down if self.transposed else down.mT).contiguous(),
        }
        if self.biased:
            found |= {f"{self.feed}_bias": self._fed("bias", opened), "down_proj_bias": opened["down_bias"]}
        return found

    def _fed(self, kind: str, opened: Mapping[str, Tensor]) -> Tensor:
        up = opened[f"up.{kind}"].unflatten(0, (self.count, -1))
        return self.joined(opened[f"gate.{kind}"].unflatten(0, (self.count, -1)), up, 1) if self.gated else up

    def split(self, both: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Return gates and ups: one after the other, or in turns."""
        sizes, axis = ((2, -1), dim) if self.concatenated else ((-1, 2), dim + 1)
        gate, up = both.unflatten(dim, sizes).unbind(axis)
        return gate, up

    def joined(self, gate: Tensor, up: Tensor, dim: int) -> Tensor:
        """Undo `split`."""
        return (
            torch.cat((gate, up), dim) if self.concatenated else torch.stack((gate, up), dim + 1).flatten(dim, dim + 1)
        )
