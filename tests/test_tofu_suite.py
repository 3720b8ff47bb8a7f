"""TOFU: every formula by hand and by a plain loop, the authors' logs, a model run over the four sets."""

from __future__ import annotations

import gzip
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from neuronforget.cli import main
from neuronforget.errors import InputError
from neuronforget.metrics import tofu as formulas
from neuronforget.suites.tofu_logs import BLOCKS, aggregates, read_log, write_log

COUNTS = {"retain": (7, 5), "forget": (9, 5), "real_authors": (6, 3), "real_world": (4, 3)}


def published(seed: int, shift: float = 0.0) -> dict[str, Any]:
    """A log as the authors write it: {block: {quantity: {row: value}}}."""
    draw, log = np.random.default_rng(seed), {}
    for name, (rows, wrong) in COUNTS.items():
        log[BLOCKS[name]] = {
            "avg_gt_loss": {str(i): float(draw.uniform(0.1, 4)) for i in range(rows)},
            "average_perturb_loss": {str(i): (shift + draw.uniform(0.1, 4, wrong)).tolist() for i in range(rows)},
            "avg_paraphrased_loss": {str(i): float(draw.uniform(0.1, 4)) for i in range(rows)},
            "rougeL_recall": {str(i): float(draw.uniform()) for i in range(rows)},
            "generated_text": {str(i): ["q", "w", "a"] for i in range(rows)},
        }
    return log


def by_loop(log: dict[str, Any], retain: dict[str, Any], form: str) -> dict[str, float]:
    """The aggregates, one row and one number at a time."""
    found: dict[str, float] = {}
    for name, key in BLOCKS.items():
        block, sums = log[key], {"probability": 0.0, "rouge": 0.0, "truth_ratio": 0.0}
        for row, loss in block["avg_gt_loss"].items():
            wrong = block["average_perturb_loss"][row]
            p = math.exp(-loss)
            whole = 1.0 if "log" in key else p + sum(math.exp(-x) for x in wrong)
            sums["probability"] += p / whole
            sums["rouge"] += block["rougeL_recall"][row]
            if form == "paper":
                odds = sum(math.exp(-x) for x in wrong) / len(wrong) / math.exp(-block["avg_paraphrased_loss"][row])
            else:
                odds = math.exp(block["avg_paraphrased_loss"][row] - sum(wrong) / len(wrong))
            sums["truth_ratio"] += min(odds, 1 / odds) if name == "forget" else max(0.0, 1 - odds)
        found |= {f"{name}_{score}": total / len(block["avg_gt_loss"]) for score, total in sums.items()}
    nine = [value for name, value in found.items() if not name.startswith("forget")]
    ratios = [
        [
            math.exp(sum(wrong) / len(wrong) - b["avg_paraphrased_loss"][row])
            for row, wrong in b["average_perturb_loss"].items()
        ]
        for b in (log["eval_log_forget.json"], retain["eval_log_forget.json"])
    ]
    # The statistic from its definition: the largest gap between the two shares below a point.
    gap = max(
        abs(np.mean([x <= at for x in ratios[0]]) - np.mean([x <= at for x in ratios[1]])) for at in sum(ratios, [])
    )
    p = ks_2samp(*ratios, method="exact").pvalue
    return found | {"model_utility": 9 / sum(1 / x for x in nine), "forget_quality_ks": gap, "forget_quality_p": p}


@pytest.mark.parametrize("form", ["legacy", "paper"])
def test_the_aggregates_are_those_of_a_plain_loop(form: Any, tmp_path: Path) -> None:
    logs = [published(0, 0.7), published(1)]
    for place, log in zip(("model.json", "retain.json"), logs, strict=True):
        (tmp_path / place).write_text(json.dumps(log))
    found = aggregates(read_log(tmp_path / "model.json"), read_log(tmp_path / "retain.json", ("forget",)), form)
    assert found == pytest.approx(by_loop(*logs, form), abs=1e-12) and len(found) == 15


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run the command line in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["neuronforget", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_reads_published_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, retain, out = tmp_path / "model.json.gz", tmp_path / "retain.json", tmp_path / "out.json"
    model.write_bytes(gzip.compress(json.dumps(published(0)).encode()))
    retain.write_text(json.dumps(published(1)))
    for _ in range(2):  # its own figures may be replaced
        assert run(monkeypatch, "evaluate", "tofu-logs", model, retain, "--out", out) == 0
    found, expected = json.loads(out.read_text()), by_loop(published(0), published(1), "legacy")
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert "forget_quality_ks" in capsys.readouterr().out
    assert run(monkeypatch, "evaluate", "tofu-logs", model, retain, "--out", retain) == 2
    assert "not written by this command" in capsys.readouterr().err and json.loads(retain.read_text()) == published(1)
