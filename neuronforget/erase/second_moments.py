"""Second moments `C = E[a_S a_S^T]` of neurons over a corpus' tokens: what a closed-form edit is to leave alone.

Streamed in fp64, one pass for all layers. A folder `cache` keeps them by content (model, tokens, layer, neurons): a
file that is of other content, cut short or changed is computed anew, never trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuronforget.corpora import Corpus, Encoded
from neuronforget.errors import InputError, reading
from neuronforget.models import LM
from neuronforget.runs import check_writable, content_key, whole_file
from neuronforget.runs.memory import free_bytes
from neuronforget.taps import TorchHooks

Second = Float[Tensor, "neuron neuron"]


def check_room(chosen: Mapping[int, Tensor]) -> None:
    """Raise InputError where second moments of so many neurons do not fit the memory that is free.

    Those of all layers are kept, and a layer's are copied twice to be solved for.
    """
    widest = max(map(len, chosen.values()))
    need = 8 * (sum(len(index) ** 2 for index in chosen.values()) + 2 * widest**2)
    if need > (free := free_bytes(torch.device("cpu"))):
        raise InputError(
            f"too little memory: second moments of {widest} neurons of a layer need about {need / 2**30:.1f} GiB in "
            f"all, {free / 2**30:.1f} GiB are free: give neurons=, a selection, or fewer layers"
        )


def second_moments(
    lm: LM,
    chosen: Mapping[int, Tensor],
    corpus: Corpus,
    *,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> dict[int, Second]:
    """Return the mean of `a_S a_S^T` over the corpus' tokens for each layer's neurons `chosen[layer]`, fp64.

    `cache` is a folder where they are kept and looked for. Raises InputError for one that cannot be written, and for
    a corpus that does not fit the model.
    """
    rows = lm.encode(corpus)
    if cache is None:
        return _measured(lm, chosen, rows, batch_size)
    work = {"model": lm.digest(), "tokens": content_key(rows=[row.ids for row in rows])}
    keys = {layer: content_key(**work, layer=layer, neurons=index.tolist()) for layer, index in chosen.items()}
    paths = {layer: Path(cache) / f"second-moments-{key}.safetensors" for layer, key in keys.items()}
    check_writable(next(iter(paths.values())))
    kept = {layer: _kept(path, keys[layer], len(chosen[layer])) for layer, path in paths.items()}
    found = {layer: second for layer, second in kept.items() if second is not None}
    missing = {layer: index for layer, index in chosen.items() if layer not in found}
    for layer, second in (_measured(lm, missing, rows, batch_size) if missing else {}).items():
        _keep(paths[layer], keys[layer], second)
        found[layer] = second
    return found


@torch.no_grad()
def _measured(lm: LM, chosen: Mapping[int, Tensor], rows: list[Encoded], batch_size: int) -> dict[int, Second]:
    totals = {k: torch.zeros((len(index), len(index)), dtype=torch.float64) for k, index in chosen.items()}
    tokens, tap = 0, TorchHooks(lm)
    for batch in lm.batches(rows, batch_size):
        acts, real = tap(batch.inputs).acts, batch.attention_mask.bool().flatten()
        tokens += int(real.sum())
        for layer, total in totals.items():
            act = acts[layer].flatten(0, -2)
            own = act[real.to(act.device)].index_select(-1, chosen[layer].to(act.device)).double().cpu()
            total += own.T @ own
    return {layer: total / tokens for layer, total in totals.items()}


def _keep(path: Path, key: str, second: Second) -> None:
    from safetensors.torch import save_file

    with whole_file(path) as scratch:
        save_file({"second": second.contiguous()}, str(scratch), {"key": key, "values": _digest(second)})


def _kept(path: Path, key: str, width: int) -> Second | None:
    """Return what the file holds, or None where it is missing, broken, of other content or changed since."""
    from safetensors import safe_open

    try:
        with reading(path, "second moments"), safe_open(str(path), "pt") as file:
            meta: dict[str, Any] = file.metadata() or {}
            second = file.get_tensor("second").clone()  # the file's own memory would change with the file
    except InputError:
        return None
    sound = second.shape == (width, width) and second.dtype == torch.float64
    return second if sound and meta.get("key") == key and meta.get("values") == _digest(second) else None


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()
