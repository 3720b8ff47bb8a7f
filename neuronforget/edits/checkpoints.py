"""An edited model as an ordinary checkpoint folder, with what was done to it beside it: JSON and a model card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neuronforget.edits.cards import base_name, model_card
from neuronforget.edits.changes import Change, mlp_biases
from neuronforget.edits.precision import rounding_of
from neuronforget.errors import InputError, reading, warn
from neuronforget.models import LM, load_plain, swapped
from neuronforget.models.routed import has_opened, open_experts
from neuronforget.runs import whole_folder

#: The file that tells what was done, in an exported checkpoint and in a ledger's own folder.
RECORD = "neuronforget.json"
FORMAT = "neuronforget ledger 1"


@contextmanager
def checkpoint(
    lm: LM,
    folder: str | Path,
    entries: Sequence[Mapping[str, Any]],
    *,
    held: Sequence[Change],
    edits: Mapping[int, Sequence[Change]],
    dtype: torch.dtype | None = None,
    **record: Any,
) -> Iterator[Path]:
    """Write the model as it is now, which holds `held`, and what was done to it; the folder is whole or not there.

    `edits` are the changes behind the entries, by place, so that what `dtype` loses of each is counted. Within the
    block more can be put beside them. Raises InputError, and writes nothing, where an edit does not outlive the
    dtype, the dtype cannot hold a weight, or the stored values differ from `held`.
    """
    kept = [dict(entry) for entry in entries]
    for place, changes in edits.items():
        kept[place]["stored"] = outlives(changes, dtype, str(kept[place].get("request") or "the edit"))
    with whole_folder(folder) as scratch:
        biases = any(c.before is None for changes in edits.values() for c in changes)
        with mlp_biases(lm, biases), _stored_in(lm, dtype):
            lm.save(scratch)
            about = {**record, "base_model": record.get("base_model") or base_name(lm.name), "model": lm.digest()}
        _check_saved(lm, scratch, held, dtype)
        write_record(scratch, kept, about)
        (scratch / "README.md").write_text(model_card(read_record(scratch), lm.name), encoding="utf-8")
        yield scratch


def outlives(changes: Sequence[Change], dtype: torch.dtype | None, request: str) -> dict[str, Any]:
    """Count what storing an edit in `dtype` loses of it, and warn where it matters.

    Raises InputError where none of its changed values differs from before any more.
    """
    kept, own = rounding_of(changes, dtype), changes[0].after.dtype if changes else None
    if own is None:
        return {}
    words = f"{request}: {kept.words(dtype or own)}"
    if kept.gone:
        raise InputError(f"{words}: the edit would be gone from this checkpoint; store it in {own}")
    if kept.matters:
        warn(words)
    return {"dtype": str(dtype or own).removeprefix("torch."), **kept.info}


def check_holds(lm: LM, changes: Sequence[Change]) -> None:
    """Raise InputError where plain transformers would drop a bias that `changes` add, and for a model with adapters."""
    if hasattr(lm.model, "peft_config"):
        raise InputError(
            f"{type(lm.model).__name__} has adapters, which no checkpoint of the model itself holds: merge them into "
            "it first (peft's merge_and_unload), and make the edit of that model"
        )
    added = [c.name for c in changes if c.before is None]
    holds = hasattr(lm.model.config, "mlp_bias") and not has_opened(lm.model)  # it is of dense MLPs
    if added and not holds:
        raise InputError(
            f"{type(lm.model).__name__} cannot hold the bias this edit adds ({added[0]}): plain transformers would "
            "drop it; use on() or apply(), or an edit without it (ablate(mode='zero'))"
        )


def write_record(folder: Path, entries: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write what was done as JSON."""
    record = {"format": FORMAT, **about, "entries": list(entries)}
    (folder / RECORD).write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any]:
    """Read what `write_record` wrote. Raises InputError for a folder without it."""
    path = folder / RECORD
    with reading(path, "ledger"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if (kind := found.get("format")) != FORMAT:
            raise InputError(f"{path} has the format {kind!r}, but this version reads {FORMAT!r}")
        return found


@contextmanager
def _stored_in(lm: LM, dtype: torch.dtype | None) -> Iterator[None]:
    """Within the block the weights are rounded to `dtype` (None: as they are); the configuration comes back too."""
    config = lm.model.config
    was = config.dtype
    cast = {n: p.detach().to(dtype) if dtype and p.is_floating_point() else p.data for n, p in lm.parameters.items()}
    for name, value in cast.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{name} does not fit into {dtype}: some of its values become infinite or NaN")
    try:
        with swapped(lm.parameters, cast):
            yield
    finally:
        config.dtype = was


def _check_saved(lm: LM, folder: Path, held: Sequence[Change], dtype: torch.dtype | None) -> None:
    """Raise InputError unless transformers reads exactly the values of `held`, rounded to `dtype`, out of `folder`."""
    loaded, report = load_plain(lm.model, folder, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"transformers finds no {missing[0]} in a checkpoint of this model, and would draw it at random: something "
            "stores it under another name (a parametrisation); remove that before you export"
        )
    if has_opened(lm.model):
        open_experts(loaded)
    read = LM(loaded).parameters  # by the model's names, whatever they are called in the file
    if unknown := {change.name for change in held} - read.keys():
        raise InputError(f"the checkpoint has no weight called {min(unknown)}: whether it holds the edit is unknown")
    for change in held:
        wanted = change.after.to(dtype) if dtype and change.after.is_floating_point() else change.after
        if not torch.equal(change.read(read[change.name]).to(wanted.dtype), wanted.detach().cpu()):
            raise InputError(f"{change.name} is stored with other values than the edit's: its dtype loses the edit")
