"""TOFU's evaluation logs, as its authors publish them: one JSON for each model, and the aggregates from it.

A log has a block for each of four sets; a block maps each quantity to {row: value}. The aggregates are those of
`aggregate_eval_stat.py` in github.com/locuslab/tofu (Maini et al. 2024, arXiv:2401.06121), with rows paired by name.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from neuronforget.errors import InputError, reading, warn
from neuronforget.metrics.tofu import (
    SETS,
    Form,
    choice_probability,
    forget_quality,
    model_utility,
    probability,
    truth_ratio,
    truth_score,
)
from neuronforget.runs import whole_file

#: What the authors call each set's block.
BLOCKS = dict(
    zip(
        SETS,
        (
            "eval_log.json",
            "eval_log_forget.json",
            "eval_real_author_wo_options.json",
            "eval_real_world_wo_options.json",
        ),
        strict=True,
    )
)
#: What the authors call each quantity of a block.
KEYS = {
    "truth": "avg_gt_loss", "paraphrase": "avg_paraphrased_loss", "wrong": "average_perturb_loss",
    "rouge": "rougeL_recall",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Block:
    """One set: losses (nats per token) of the answer, its paraphrase and the wrong answers, and ROUGE-L recall.

    `written` holds (prompt, what the model wrote, right answer) of each row, where it is known.
    """

    rows: tuple[str, ...]
    truth: Float[ndarray, "row"]
    paraphrase: Float[ndarray, "row"]
    wrong: Float[ndarray, "row answer"]
    rouge: Float[ndarray, "row"]
    written: tuple[tuple[str, str, str], ...] = ()


Log = Mapping[str, Block]
ROUNDING = 1e-4  # below 0 or above 1: what narrow dtypes leave of a bound


def read_log(path: str | Path, sets: tuple[str, ...] = SETS) -> dict[str, Block]:
    """Read these sets of a log, plain or gzipped.

    Raises InputError for a block or a key that is not there, rows that differ between keys, and values that are no
    finite numbers.
    """
    with reading(path, "evaluation log"):
        content = Path(path).read_bytes()
        log: Any = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        if not isinstance(log, dict):
            raise InputError(f"{path}: an evaluation log must be an object of four blocks, found {type(log).__name__}")
        return {name: _block(log, BLOCKS[name], path) for name in sets}


def _block(log: dict[str, Any], name: str, path: str | Path) -> Block:
    if not isinstance(block := log.get(name), dict):
        raise InputError(f"{path} has no block {name!r}; found: {', '.join(map(str, log)) or 'nothing'}")
    for key in KEYS.values():
        if not isinstance(block.get(key), dict) or not block[key]:
            raise InputError(f"{path}, block {name!r}: no rows of {key!r}; found: {', '.join(block) or 'nothing'}")
    rows = tuple(block[KEYS["truth"]])
    for key in KEYS.values():
        if other := set(rows) ^ block[key].keys():
            raise InputError(f"{path}, block {name!r}: row {min(other)!r} is not in both avg_gt_loss and {key}")
    arrays: dict[str, Any] = {
        field: _numbers([block[key][row] for row in rows], rows, f"{path}, block {name!r}, {key}", field)
        for field, key in KEYS.items()
    }
    return Block(rows, **arrays)


def _numbers(values: list[Any], rows: tuple[str, ...], where: str, field: str) -> ndarray:
    """Return the values as an array of float64, one number or one list of equal length in each row."""
    lists, most = field == "wrong", 1.0 if field == "rouge" else np.inf
    count = len(values[0]) if lists and isinstance(values[0], list) else 0
    for row, value in zip(rows, values, strict=True):
        cells = value if lists and isinstance(value, list) else [value]
        if lists and (not isinstance(value, list) or not value or len(value) != count):
            raise InputError(f"{where}: row {row!r} is not a list of as many numbers as row {rows[0]!r}")
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and np.isfinite(x) for x in cells):
            raise InputError(f"{where}: row {row!r} is {value!r}, not finite: a broken model has not forgotten")
        if not all(-ROUNDING <= x <= most + ROUNDING for x in cells):
            raise InputError(f"{where}: row {row!r} is {value!r}: a loss is 0 or more, a recall from 0 to 1")
    return np.array(values, dtype=np.float64)


def write_log(path: str | Path, log: Log) -> None:
    """Write a log as the authors do; gzipped where the name ends in .gz."""
    found: dict[str, Any] = {}
    for name, block in log.items():
        columns = {key: getattr(block, field).tolist() for field, key in KEYS.items()}
        if block.written:
            columns["generated_text"] = [list(row) for row in block.written]
        found[BLOCKS[name]] = {key: dict(zip(block.rows, column, strict=True)) for key, column in columns.items()}
    content = json.dumps(found, indent=1, ensure_ascii=False).encode()
    with whole_file(path) as scratch:
        scratch.write_bytes(gzip.compress(content, mtime=0) if Path(path).suffix == ".gz" else content)


def scores(name: str, block: Block, form: Form = "legacy") -> dict[str, Float[ndarray, "row"]]:
    """Return each row's three scores; `name` is the set, which decides what is meant by them."""
    own = name in ("retain", "forget")
    return {
        "probability": probability(block.truth) if own else choice_probability(block.truth, block.wrong),
        "rouge": block.rouge,
        "truth_ratio": truth_score(block.paraphrase, block.wrong, forget=name == "forget", form=form),
    }


def aggregates(log: Log, retain_only: Log | None = None, form: Form = "legacy") -> dict[str, float]:
    """Return the twelve parts, `model_utility` and, with a retain-only model's log, the two of the forget quality.

    The forget quality compares two samples, so other rows of the forget set are no error; they are warned of.
    """
    parts = {f"{name}_{k}": float(v.mean()) for name in SETS for k, v in scores(name, log[name], form).items()}
    found = {"model_utility": float(model_utility(parts))}
    if retain_only is not None:
        here, there = log["forget"], retain_only["forget"]
        if other := set(here.rows) ^ set(there.rows):
            warn(
                f"the two models were asked other rows of the forget set ({len(here.rows)} and {len(there.rows)}; row "
                f"{min(other)!r} is in one alone): the forget quality compares them as two samples"
            )
        # The authors compare legacy ratios in either form of their tables.
        quality = forget_quality(*(truth_ratio(block.paraphrase, block.wrong) for block in (here, there)))
        found |= {"forget_quality_p": quality.p, "forget_quality_ks": quality.ks}
    return found | parts
