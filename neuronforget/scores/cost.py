"""What running rows costs, told before the work: memory of one pass, floating-point operations of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neuronforget.corpora import Encoded
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.runs.memory import free_bytes
from neuronforget.scores.blocks import blocks_of
from neuronforget.scores.rows import Size

#: A pass takes as many rows as fit in this, and `batch_size` in any case.
PASS_BYTES = 2**28
#: Operations refused by default: some hours of a processor, an hour of an accelerator.
LIMITS = {"cpu": 1e15}
ACCELERATOR_LIMIT = 1e18


def row_bytes(lm: LM, size: Size, *, graph: bool = False) -> int:
    """Estimate one row's memory; `graph` keeps every block's states for a backward pass."""
    tokens, length, targets = size
    config, width = lm.model.config.get_text_config(), lm.sites[0].d_model
    heads = getattr(config, "num_attention_heads", 1)
    states = tokens * (8 * width + 4 * lm.shape[1] + heads * length) + 4 * length * width
    vocab = lm.model.get_input_embeddings().weight.shape[0]
    depth = len(blocks_of(lm)) if graph else 1
    return depth * states * lm.model.dtype.itemsize + targets * vocab * (8 + lm.model.dtype.itemsize)


def rows_per_pass(lm: LM, size: Size, at_least: int, *, graph: bool = False) -> int:
    """Return how many rows fit in 256 MiB, and `at_least` that many."""
    return max(at_least, PASS_BYTES // row_bytes(lm, size, graph=graph))


def check_memory(
    what: str,
    lm: LM,
    examples: Sequence[Encoded],
    position: int | None,
    rows: int,
    *,
    graph: bool = False,
    kept: int = 0,
) -> None:
    """Raise InputError where a pass of so many rows, beside `kept` bytes, does not fit the memory that is free."""
    need = kept + rows * max(row_bytes(lm, size_of(row, position), graph=graph) for row in examples)
    if need > (free := free_bytes(lm.device)):
        raise InputError(
            f"too little memory for {what}: a pass of {rows} rows needs about {need / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB are free; lower batch_size, or shorten the examples"
        )


def check_operations(
    what: str,
    lm: LM,
    examples: Sequence[Encoded],
    position: int | None,
    counts: Mapping[int, int],
    limit: float | None = None,
) -> None:
    """Raise InputError where `counts[layer]` rows for every example need more than `limit` operations."""
    limit = LIMITS.get(lm.device.type, ACCELERATOR_LIMIT) if limit is None else limit
    flops = sum(_operations(lm, counts, size_of(row, position)) for row in examples)
    if flops > limit:
        rows = len(examples) * sum(counts.values())
        raise InputError(
            f"{what} would run {rows:,} rows, about {flops:.1g} floating-point operations (limit {limit:.1g}): take "
            "fewer examples, position=-1 or neurons=, a shortlist of a first-order score; or raise limit="
        )


def size_of(row: Encoded, position: int | None) -> Size:
    """Return the size of an example's rows."""
    start, last = max(row.answer_start, 1), len(row.ids) - 1
    return (1, start, 1) if position is not None else (last, last, last + 1 - start)


def _operations(lm: LM, counts: Mapping[int, int], size: Size) -> float:
    """Two per weight and token, in the blocks from the row's layer upward and in the unembedding."""
    tokens, _, targets = size
    total, above = 0.0, 2.0 * targets * lm.model.get_input_embeddings().weight.numel()
    for layer, block in reversed(list(enumerate(blocks_of(lm)))):
        above += 2.0 * tokens * sum(weight.numel() for weight in block.parameters())
        total += counts.get(layer, 0) * above
    return total
