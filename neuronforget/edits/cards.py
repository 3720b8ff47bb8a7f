"""The model card of an edited checkpoint: what was erased and how, what was measured, and what that does not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

This is {{ base }} with {{ count }}, applied by neuronforget. It is an ordinary checkpoint. `neuronforget.json`
holds everything on this page in full: settings, seeds, hashes of the data, versions, neurons.

## What was erased, and how

| request | state | method | seed | values changed | parameters | relative change | nothing else moved |
|---|---|---|---|---|---|---|---|
{%- for e in entries %}
| {{ e.cells | join(" | ") }} |
{%- endfor %}

For "nothing else moved", every weight outside the edit was compared before the edit, after it, and after undoing it.
{%- for e in entries %}{% for note in e.notes %}
- {{ e.request }}: {{ note }}
{%- endfor %}{% endfor %}
{% for e in entries if e.lost %}
{{ e.request }}: {{ e.lost }}
{% endfor %}
## What was measured

{% if rows -%}
| edit | corpus | metric | value | 95% interval | n |
|---|---|---|---|---|---|
{%- for r in rows %}
| {{ r.edit }} | {{ r.corpus }} | {{ r.metric }} | {{ r.value }} | {{ r.interval }} | {{ r.n }} |
{%- endfor %}
{%- else -%}
Nothing is stated here, because the export was given no results. Whether the requests are fulfilled is unknown.
{%- endif %}

## Limits

- An answer that the model no longer gives may be erased or only hidden. Relearning, quantisation, other prompts and
  other languages may bring it back. What is not in the table above was not tried.
- Requests were fulfilled one after the other. Each edit was made for the model that the earlier ones had left.
- This page covers edits of weights only. A guard (a filter, a prompt, a control vector) changes no weight, erases
  nothing and cannot be part of a checkpoint.
- {{ undo }}
"""


def model_card(record: Mapping[str, Any], name: str) -> str:
    """Return the card's Markdown with its metadata, from what `neuronforget.json` holds; `name` is the base model's.

    Licence and languages are those of the base model's own card, where it is on this disk: the network is not asked.
    """
    from huggingface_hub import ModelCard, ModelCardData

    hub_id = name if _on_hub(name) and name == record["base_model"] else None
    data = ModelCardData(
        base_model=hub_id, library_name="transformers", pipeline_tag="text-generation",
        tags=["unlearning", "neuronforget"], **_inherited(name),
    )  # fmt: skip
    applied = sum(entry.get("state", "applied") == "applied" for entry in record["entries"])
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=f"{record['base_model']}, edited",
        base=f"`{record['base_model']}`",
        count=f"{applied} edit{'s' if applied != 1 else ''} of its weights",
        entries=[_told(entry) for entry in record["entries"]],
        rows=list(_measured(record.get("measured", ()))),
        undo=_undo(record),
    ).content


def _inherited(name: str) -> dict[str, Any]:
    """Return what holds for an edited model as for its base, from the card beside the base's weights."""
    from huggingface_hub import metadata_load, try_to_load_from_cache
    from yaml import YAMLError

    path: Any = Path(name) / "README.md" if _local(name) else None
    if _on_hub(name):
        path = try_to_load_from_cache(name, "README.md")
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    try:
        stated = metadata_load(path) or {}
    except (ValueError, TypeError, YAMLError):  # a page whose metadata are not a card's
        return {}
    return {key: stated[key] for key in ("license", "license_name", "license_link", "language") if key in stated}


def base_name(name: str) -> str:
    """Return a model's hub id, or the last part of its folder: where it lies on a disk is nobody else's business."""
    return Path(name).name if _local(name) else name


def _local(name: str) -> bool:
    return Path(name).is_absolute() or Path(name).exists() or name.startswith(".")


def _on_hub(name: str) -> bool:
    """May the Hub have a model of this name? A folder that is no longer here, or a name in words, it cannot have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not _local(name)


def _told(entry: Mapping[str, Any]) -> dict[str, Any]:
    stored = entry.get("stored") or {}
    lost = stored.get("values_lost_to_dtype", 0)
    return {
        "request": _cell(entry["request"]),
        "cells": [
            _cell(entry["request"]),
            entry.get("state", "applied"),
            _cell(entry["method"]),
            entry["info"].get("seed", ""),
            {**entry["info"], **stored}.get("values_changed", entry["values"]),
            entry["parameters"],
            f"{entry['relative']:.3g}",
            "yes" if (entry.get("certificate") or {}).get("holds") else "NO",
        ],
        "notes": entry.get("notes", ()),
        "lost": f"{lost} changed values are lost in {stored.get('dtype')}: {stored.get('share_lost_to_dtype', 0):.2g} "
        "of the change's L2 norm." if lost else "",
    }  # fmt: skip


def _measured(rows: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """The rows at full strength, as they are shown."""
    for row in rows:
        if row.get("point", "full") == "full":
            interval = f"{row['low']:.3f} to {row['high']:.3f}"
            shown = {"value": f"{row['value']:.3f}", "interval": interval, "n": row["n"]}
            yield {key: _cell(row[key]) for key in ("edit", "corpus", "metric")} | shown


def _undo(record: Mapping[str, Any]) -> str:
    if record.get("undo"):
        return "`edits/` contains the erased weights, so that requests can be undone. They hold what was erased."
    return "The erased weights are not in this folder, but whoever has the base model has them."


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
