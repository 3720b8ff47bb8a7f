"""Which rows belong to which example: read once from the segments, used for every layer of a batch.

A *piece* is a run of consecutive rows of one example, at most `PIECE_ROWS` long, so that fp32 sums inside a
piece stay exact to seven digits; pieces are merged in fp64. An *item* is what one program of a kernel walks:
consecutive pieces of one group, about `PIECE_ROWS` rows together. Pieces are sorted by group and example.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Small tables are made with numpy, whose calls cost a fraction of PyTorch's.
Values = NDArray[Any]
#: Longest piece in rows. An item holds less than twice as many.
PIECE_ROWS = 512
#: Rows read, evenly spaced, for the pivot that keeps a large mean from costing the variance its digits.
PIVOT_ROWS = 32


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of a batch by example: `low <= row < high` of piece `i` belong to example `owner[i]`.

    `order` (only where examples are too interleaved for runs) says which rows to gather first; `low`, `high`,
    `sample` and `weights` then count gathered rows. `counts` [example] are numbers of rows, or sums of
    weights where there are any. `weights` [row] are fp32; `group` [example] numbers the groups, 0 for all where
    none were given.
    """

    rows: int
    examples: int
    low: Tensor
    high: Tensor
    owner: Tensor
    counts: Tensor
    group: Tensor
    grouped: bool
    weights: Tensor | None
    order: Tensor | None
    sample: Tensor
    device: torch.device
    item_rows: int = PIECE_ROWS

    @classmethod
    def of(
        cls, segments: Tensor, examples: int, *, weights: Tensor | None = None, groups: Tensor | None = None
    ) -> Layout:
        """Read `segments` [row]: each row's example, or -1 for a row to leave out, whose values are never read.

        `weights` [row] (0 leaves a row out) multiply a row's share of every sum and of the count, but no minimum,
        maximum or peak. `groups` [example] numbers a group from 0 for each example: fields are then kept apart by
        group. Rows of an example need not lie together, but are read fastest where they do. Raises ValueError
        for numbers outside 0 .. examples - 1 and for negative or non-finite weights.
        """
        number, share = _numbers(segments, examples, weights)
        group, place = _group(examples, groups), number + 1  # 0 is what is left out
        counts = np.bincount(place, share, minlength=examples + 1)[1:]
        edges, order = _edges(number), None
        if len(edges) - 1 > 4 * examples + len(number) // 64:
            order = np.flatnonzero(place)
            order = order[number[order].argsort(kind="stable")]
            number, share = number[order], None if share is None else share[order]
            edges, place = _edges(number), number + 1
        where = np.flatnonzero(place)
        where = where[:: max(1, len(where) // PIVOT_ROWS)][:PIVOT_ROWS]

        def there(values: Values) -> Tensor:
            return torch.from_numpy(values).to(segments.device)

        low, high, owner = map(torch.from_numpy, _pieces(number, edges, group.numpy()))
        return cls(
            rows=len(segments),
            examples=examples,
            low=low,
            high=high,
            owner=owner,
            counts=there(counts),
            group=group,
            grouped=groups is not None,
            weights=None if share is None else there(share.astype(np.float32)),
            order=None if order is None else there(order),
            sample=there(where),
            device=segments.device,
        )

    def on(self, device: torch.device) -> Layout:
        """Return the same rows for tensors on another device."""
        if device == self.device:
            return self
        weights, order = (None if x is None else x.to(device) for x in (self.weights, self.order))
        counts, sample = self.counts.to(device), self.sample.to(device)
        return replace(self, device=device, counts=counts, weights=weights, order=order, sample=sample)

    @property
    def groups(self) -> int:
        """How many groups the fields are kept for."""
        return int(self.group.amax()) + 1 if self.examples else 1

    @cached_property
    def kept(self) -> dict[object, Any]:
        """What an implementation makes for one layer of a batch and needs again for the next."""
        return {}

    @cached_property
    def by_group(self) -> Tensor:
        """Example numbers sorted by group, then number: the order of the pieces."""
        return self.group.argsort(stable=True)

    @cached_property
    def piece_group(self) -> Tensor:
        """The group of each piece."""
        return self.group[self.owner]

    @cached_property
    def one_piece_each(self) -> bool:
        """Whether piece i is example i."""
        return torch.equal(self.owner, torch.arange(self.examples))

    @cached_property
    def segments(self) -> Tensor:
        """Each row's example, or -1, as they were given (with `order`, of the gathered rows); on the device."""
        number = np.full(self.rows if self.order is None else len(self.order), -1)
        for low, high, owner in zip(self.low.tolist(), self.high.tolist(), self.owner.tolist(), strict=True):
            number[low:high] = owner
        return torch.from_numpy(number).to(self.device)

    @cached_property
    def items(self) -> Tensor:
        """Index of each item's first piece, and the number of pieces at the end; [item + 1]."""
        length = self.high - self.low
        names = self.piece_group * (self.rows + 1) + (length.cumsum(0) - length) // self.item_rows
        return torch.from_numpy(_edges(names.numpy()))

    @cached_property
    def gaps(self) -> tuple[Tensor, Tensor]:
        """First row, and row after the last, of the runs of at most `PIECE_ROWS` rows that are left out."""
        by = self.low.argsort()
        low, high, _ = _cut(np.append(0, self.high[by]), np.append(self.low[by], self.rows))
        return torch.from_numpy(low), torch.from_numpy(high)

    def cut(self, block: int) -> Layout:
        """Return the same rows in pieces that cross no multiple of `block`, each an item of its own."""
        low, high, run = map(torch.from_numpy, _cut(self.low.numpy(), self.high.numpy(), block, aligned=True))
        return replace(self, low=low, high=high, owner=self.owner[run], item_rows=1)

    @cached_property
    def tables(self) -> dict[str, Tensor]:
        """The index tables that the kernels walk, int32 on the device; chunks are what one finishing program adds."""
        rank = torch.empty_like(self.by_group)
        rank[self.by_group] = torch.arange(self.examples)
        per_example = torch.bincount(rank[self.owner], minlength=self.examples)
        of_examples = torch.bincount(self.group, minlength=self.groups).tolist()
        of_items = torch.bincount(self.piece_group[self.items[:-1]], minlength=self.groups).tolist()
        chunk_example, chunk_item, group_chunk = [0], [0], [0]
        for examples, items in zip(of_examples, of_items, strict=True):
            chunks, example, item = max(1, isqrt(max(examples, items))), chunk_example[-1], chunk_item[-1]
            chunk_example += [example + examples * i // chunks for i in range(1, chunks + 1)]
            chunk_item += [item + items * i // chunks for i in range(1, chunks + 1)]
            group_chunk.append(len(chunk_example) - 1)
        return self.on_device(
            low=self.low,
            high=self.high,
            item=self.items,
            example=self.by_group,
            example_piece=torch.nn.functional.pad(per_example.cumsum(0), (1, 0)),
            chunk_example=torch.tensor(chunk_example),
            chunk_item=torch.tensor(chunk_item),
            group_chunk=torch.tensor(group_chunk),
        )

    def on_device(self, **host: Tensor) -> dict[str, Tensor]:
        """Move index tables in one transfer."""
        packed = torch.cat(list(host.values())).to(torch.int32).to(self.device)
        return dict(zip(host, packed.split([len(t) for t in host.values()]), strict=True))


def pivot_of(sample: Tensor) -> Tensor:
    """Return a value near each neuron's mean, fp32 [neuron], from a few rows; NaN and infinity count as 0 here."""
    return sample.float().nan_to_num(0.0, 0.0, 0.0).sum(0) / max(1, len(sample))


def _numbers(segments: Tensor, examples: int, weights: Tensor | None) -> tuple[Values, Values | None]:
    """Return each row's example, -1 where its weight is 0, and the weights. Raises ValueError as `Layout.of` says."""
    number = segments.detach().to("cpu", torch.long).numpy()
    share = None if weights is None else weights.detach().to("cpu", torch.float64).numpy()
    if share is not None:
        if share.shape != number.shape or not ((share >= 0) & (share < np.inf)).all():
            raise ValueError("weights must be one finite number of at least 0 for each row")
        number = np.where(share > 0, number, -1)
    # without its sign a negative number is a large one
    if number.ndim != 1 or (len(number) and (number + 1).view(np.uint64).max() > examples):
        raise ValueError(f"segments must be one number from -1 to {examples - 1} for each row")
    return number, share


def _group(examples: int, groups: Tensor | None) -> Tensor:
    """Return each example's group. Raises ValueError for groups that are not one number of at least 0 for each."""
    if groups is None:
        return torch.zeros(examples, dtype=torch.long)
    group = groups.detach().to("cpu", torch.long)
    if group.shape != (examples,) or (examples and int(group.amin()) < 0):
        raise ValueError(f"groups must be one number of at least 0 for each of {examples} examples")
    return group


def _edges(name: Values) -> Values:
    """Where each run of equal names begins, and the length."""
    begin = np.flatnonzero(name[1:] != name[:-1]) + 1
    return np.concatenate([np.arange(min(1, len(name))), begin, [len(name)]])


def _pieces(number: Values, edges: Values, group: Values) -> tuple[Values, Values, Values]:
    """Cut runs of rows into pieces; first row, row after the last, and example of each."""
    read = np.flatnonzero(number[edges[:-1]] >= 0)
    low, high, _ = _cut(edges[read], edges[read + 1])
    owner = number[low]
    by = (group[owner] * len(group) + owner).argsort(kind="stable")
    return low[by], high[by], owner[by]


def _cut(low: Values, high: Values, most: int = PIECE_ROWS, *, aligned: bool = False) -> tuple[Values, Values, Values]:
    """Cut ranges into parts of about equal length up to `most` (or at its multiples); also return each one's range."""
    begin = low // most * most if aligned else low
    parts = (high - begin + most - 1) // most
    if (parts == 1).all():
        return low, high, np.arange(len(low))
    run = np.repeat(np.arange(len(low)), parts)
    part = np.arange(len(run)) - (parts.cumsum() - parts)[run]
    if aligned:
        edge = begin[run] + part * most
        return np.maximum(edge, low[run]), np.minimum(edge + most, high[run]), run
    length = (high - low)[run]
    return low[run] + length * part // parts[run], low[run] + length * (part + 1) // parts[run], run
