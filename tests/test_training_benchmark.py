"""The benchmark of training: what it counts is what the optimiser holds, and a goal can be missed."""

from __future__ import annotations

from pathlib import Path

import pytest
import training
from bench_results import write_results
from problems import problem

import neuronforget as nf

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip


def jobs() -> tuple[nf.LM, dict]:
    lm, forget = problem(TINY, 4, 8, 3)
    _, other = problem({**TINY, "vocab_size": 63}, 4, 8, 3)
    return lm, training.trainings(lm, forget, other, share=1 / 64)


def test_the_optimisers_state_is_two_moments_and_a_count_for_each_trained_tensor() -> None:
    lm, both = jobs()
    rows = {row["quantity"]: row for row in training.compared(both, 1, "cpu")}
    # One neuron of each layer: three slices of 32 values. Full: every parameter. fp32, and a step count of 4 bytes.
    sizes = [p.numel() for p in lm.parameters.values()]
    state = rows["optimiser state, MB"]
    assert state["targeted"] * 1e6 == pytest.approx(2 * 3 * (2 * 4 * 32 + 4))
    assert state["full"] * 1e6 == pytest.approx(sum(2 * 4 * size + 4 for size in sizes))
    assert state["met"] == ("yes" if 0.02 * sum(2 * 4 * n + 4 for n in sizes) >= 6 * (2 * 4 * 32 + 4) else "no")
    assert rows["peak of tensors, MB"]["full"] * 1e6 > 4 * 4 * sum(sizes)  # copies, gradients and two moments


def test_every_step_but_the_first_is_timed() -> None:
    _, both = jobs()
    watch = training.Watch("cpu")
    with watch.on():
        both["full"](3)
    assert len(watch.seconds) == 2 and min(watch.seconds) > 0
    both["full"](1)  # no longer watched
    assert len(watch.ends) == 3


def test_equal_trainings_miss_the_goals() -> None:
    _, both = jobs()
    rows = training.compared({"targeted": both["full"], "full": both["full"]}, 1, "cpu")
    found = {row["quantity"]: (row["ratio"], row["met"]) for row in rows}
    assert found["optimiser state, MB"] == (1.0, "no")
    assert found["peak of tensors, MB"][0] == pytest.approx(1, abs=0.2)


def test_benchmarks_of_one_day_and_device_do_not_overwrite_each_other(tmp_path: Path) -> None:
    results = {"environment": {"date": "2026-01-02T", "device": "CPU, 2 threads"}, "training": [{"a": 1.0}]}
    paths = {write_results("x", results, "", tmp_path, kind).name for kind in ("", "training")}
    assert paths == {"2026-01-02-cpu-2-threads.md", "2026-01-02-cpu-2-threads-training.md"}
