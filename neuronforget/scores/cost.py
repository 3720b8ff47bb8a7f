"""What running rows costs, told before the work: memory of one pass, floating-point operations of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from neuronforget.corpora import Encoded
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.scores.rows import blocks_of

#: A pass takes as many rows as fit in this, and `batch_size` in any case.
PASS_BYTES = 2**28
#: Operations refused by default: some hours of a processor, an hour of an accelerator.
LIMITS = {"cpu": 1e15}
ACCELERATOR_LIMIT = 1e18


def row_bytes(lm: LM, tokens: int, length: int, targets: int) -> int:
    """Estimate one row's memory: `tokens` run anew among `length` attended, logits of `targets` in fp32 twice."""
    config, width = lm.model.config.get_text_config(), lm.sites[0].d_model
    heads = getattr(config, "num_attention_heads", 1)
    states = tokens * (8 * width + 4 * lm.shape[1] + heads * length) + 4 * length * width
    vocab = lm.model.get_input_embeddings().weight.shape[0]
    return states * lm.model.dtype.itemsize + targets * vocab * (8 + lm.model.dtype.itemsize)


def rows_per_pass(lm: LM, tokens: int, length: int, targets: int, batch_size: int) -> int:
    """Return `batch_size`, or more where more rows fit in 256 MiB."""
    return max(batch_size, PASS_BYTES // row_bytes(lm, tokens, length, targets))


def check_cost(
    what: str,
    lm: LM,
    examples: Sequence[Encoded],
    counts: Mapping[int, int],
    position: int | None,
    batch_size: int,
    limit: float | None = None,
) -> None:
    """Raise InputError where a pass does not fit the memory, or all `counts[layer]` rows per example cost too much."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    sizes = [_size(row, position) for row in examples]
    need = batch_size * max(row_bytes(lm, *size) for size in sizes)
    if need > (free := free_bytes(lm.device)):
        raise InputError(
            f"too little memory for {what}: a pass of batch_size={batch_size} rows needs about {need / 2**20:.0f} MiB, "
            f"{free / 2**20:.0f} MiB are free; lower batch_size"
        )
    limit = LIMITS.get(lm.device.type, ACCELERATOR_LIMIT) if limit is None else limit
    flops = sum(_operations(lm, counts, tokens, targets) for tokens, _, targets in sizes)
    if flops > limit:
        rows = len(examples) * sum(counts.values())
        raise InputError(
            f"{what} would run {rows:,} rows, about {flops:.1g} floating-point operations (limit {limit:.1g}): take "
            "fewer examples, position=-1 or neurons=, a shortlist of a first-order score; or raise limit="
        )


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _size(row: Encoded, position: int | None) -> tuple[int, int, int]:
    """(tokens run anew, tokens attended, targets) of an example."""
    start = max(row.answer_start, 1)
    return (1, start, 1) if position is not None else (len(row.ids) - 1, len(row.ids) - 1, len(row.ids) - start)


def _operations(lm: LM, counts: Mapping[int, int], tokens: int, targets: int) -> float:
    """Two operations per weight and token, in the blocks from the row's layer upward and in the unembedding."""
    total, above = 0.0, 2.0 * targets * lm.model.get_input_embeddings().weight.numel()
    for layer, block in reversed(list(enumerate(blocks_of(lm)))):
        above += 2.0 * tokens * sum(weight.numel() for weight in block.parameters())
        total += counts.get(layer, 0) * above
    return total
