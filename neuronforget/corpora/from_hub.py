"""Rows of a data set on the Hugging Face hub, whole or as a stream."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from neuronforget.errors import InputError, reason


def hub_rows(
    hub_id: str, config: str | None, *, split: str = "train", streaming: bool = False, instead: str
) -> Iterable[dict[str, Any]]:
    """Return the rows of a split; raises InputError, which says what to give `instead`, if they cannot be read."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise InputError(f"{hub_id} needs the hub, which HF_HUB_OFFLINE=1 forbids: give {instead}")
    from datasets import load_dataset

    try:
        return load_dataset(hub_id, config, split=split, streaming=streaming)
    except (OSError, ConnectionError, ValueError) as error:
        raise InputError(f"cannot read {hub_id} from the hub ({reason(error)}): give {instead}") from None
