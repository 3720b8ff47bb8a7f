"""The sweep of kernel configurations, on a made-up kernel: which is chosen, what is said of one that does not run.

And what the benchmark of the kernels leaves where it is killed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench
import bench_timing
import pytest
import sweep
import torch
from neuronforget_kernels import configs
from neuronforget_kernels.configs import Config

CPU = torch.device("cpu")
FIRST, BEST, WRONG, BROKEN = (Config(n, 1, 1, 1) for n in (64, 128, 256, 512))
MS = {(FIRST, "wide"): 9.0, (BEST, "wide"): 4.0, (WRONG, "wide"): 1.0}
MS |= {(FIRST, "narrow"): 1.0, (BEST, "narrow"): 1.0, (WRONG, "narrow"): 1.0}


def made_up() -> tuple[sweep.Job, Callable[[Callable[[], Any]], float]]:
    """A kernel that reads its configuration as the real ones do, and a clock that knows what each takes."""
    table = {"interpreter": Config(1, 1, 1, 1)}

    def run(given: dict[str, Any]) -> float:
        config = configs.row_of(table, CPU)
        if config == BROKEN:
            raise RuntimeError("out of resource:\n shared memory")
        return MS[config, given["name"]] / 1e3

    job = sweep.Job("K0", table, lambda config: config, (FIRST, WRONG, BROKEN, BEST), run)
    return job, lambda call: call()


def rows_of(until: float) -> tuple[sweep.Job, list[dict[str, Any]]]:
    job, clock = made_up()
    shapes = {name: {"name": name} for name in ("wide", "narrow")}
    return job, list(sweep.timed(job, shapes, CPU, until, clock))


def test_the_fastest_that_is_right_is_chosen_by_the_mean_over_shapes() -> None:
    job, rows = rows_of(time.monotonic() + 60)
    assert len(rows) == 8 and job.table == {"interpreter": Config(1, 1, 1, 1)}  # as it was
    broken = [row for row in rows if row["why"]]
    assert {row["config"] for row in broken} == {tuple(BROKEN)} and all(math.isnan(row["ms"]) for row in broken)
    assert broken[0]["why"] == "RuntimeError: out of resource: shared memory"
    assert sweep.ranked(rows) == [
        (tuple(WRONG), 1.0),
        (tuple(BEST), pytest.approx(2.0)),
        (tuple(FIRST), pytest.approx(3.0)),
    ]
    found = sweep.chosen(job, rows, CPU, lambda: configs.row_of(job.table, CPU) == WRONG)
    assert found["config"] == tuple(BEST) and found["present over it"] == pytest.approx(1.5)
    assert job.table == {"interpreter": Config(1, 1, 1, 1)}


def test_a_check_that_does_not_run_costs_its_configuration_alone() -> None:
    job, rows = rows_of(time.monotonic() + 60)

    def wrong() -> list[str]:
        if configs.row_of(job.table, CPU) == WRONG:
            raise RuntimeError("out of resource")
        return []

    assert sweep.chosen(job, rows, CPU, wrong)["config"] == tuple(BEST)
    assert job.table == {"interpreter": Config(1, 1, 1, 1)}


@pytest.mark.parametrize(("device", "counts"), [("cpu", [1] * 5), ("cuda", [1, 1, 10, 10, 10])])
def test_calls_on_a_gpu_are_timed_in_a_row(device: str, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the card does not wait for each call's launches; what compiles and what warms up stay out."""
    asked = []

    def once(_run: Any, _device: str, count: int = 1) -> bench_timing.Spent:
        asked.append(count)
        work = 9.0 if len(asked) == 1 else 0.0005 if len(asked) == 2 else 0.001 * len(asked)
        return bench_timing.Spent(work, 0.002)  # as many in a row as the host can ask for in the time

    monkeypatch.setattr(bench_timing, "_once", once)
    assert bench_timing.seconds(lambda: None, device) == (0.004, 0.002) and asked == counts


def test_what_time_leaves_over_is_not_chosen_among() -> None:
    job, rows = rows_of(time.monotonic() - 1)
    assert rows == [] and sweep.chosen(job, rows, CPU, lambda: False)["config"] is None
    job, rows = rows_of(time.monotonic() + 60)
    half = [row for row in rows if (row["config"], row["shape"]) != (tuple(BEST), "narrow")]
    assert tuple(BEST) not in dict(sweep.ranked(half))  # timed at one shape alone


def test_the_present_configurations_are_the_first_candidates() -> None:
    """So that each sweep says what a change would gain, where a device has rows of its own too."""
    assert sweep.STREAMED[0] == configs.STREAMING["cuda"][2] and sweep.GATED[0] == configs.SWIGLU["cuda"]
    assert sweep.FUSED[0] == configs.GEMM["cuda"]
    for job in sweep.jobs(2, CPU):
        assert len(set(job.candidates)) == len(job.candidates)
        present = configs.row_of(job.table, CPU)
        assert job.candidates[0] == (present[2] if job.name == "K1" else present)
        with configs.instead(job.table, CPU, job.row(job.candidates[-1])):
            found = configs.row_of(job.table, CPU)
            assert (found[2] if job.name == "K1" else found) == job.candidates[-1]
            again = next(other for other in sweep.jobs(2, CPU) if other.name == job.name)
            assert again.candidates[0] == job.candidates[-1]
        assert configs.row_of(job.table, CPU) == job.table["interpreter"]


def test_a_device_is_listed_by_its_name_before_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    configs.kinds_of.cache_clear()
    card = torch.device("cuda", 0)
    try:
        assert configs.kinds_of(card) == ("NVIDIA H200", "cuda")
        assert configs.config_for(card, 2) == configs.STREAMING["cuda"][2]
        assert configs.config_for(card, 8) == configs.STREAMING["cuda"][4]  # a model in float64
        assert configs.gemm_config_for(card, 14336).splits == 7 and configs.gemm_config_for(card, 5504).splits == 3
        with configs.instead(configs.STREAMING, card, {2: BEST, 4: FIRST}):
            assert (configs.config_for(card, 2), configs.config_for(card, 4)) == (BEST, FIRST)
        assert "NVIDIA H200" not in configs.STREAMING
    finally:
        configs.kinds_of.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["neuron_moments", "fused_attribution", "swiglu_backward"])
@pytest.mark.parametrize("off", [1.1, math.nan])
def test_a_kernel_that_is_wrong_in_one_statistic_is_told_and_nothing_is_timed(
    kernel: str, off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(bench, kernel)

    def wrong(*args: Any, **settings: Any) -> Any:
        found = right(*args, **settings)
        *gradients, piece = found if kernel == "swiglu_backward" else (found,)
        piece = ({**piece[0], "s2": piece[0]["s2"] * off}, *piece[1:])
        return (*gradients, piece) if gradients else piece

    assert bench.parity("cpu", torch.float32) == []
    monkeypatch.setattr(bench, kernel, wrong)
    monkeypatch.setattr("sys.argv", ["bench.py", "--device", "cpu", "--out", str(tmp_path)])
    monkeypatch.setattr(bench, "ceilings", lambda *_: pytest.fail("timed"))
    assert bench.main() == 1 and not list(tmp_path.iterdir())


def test_a_killed_benchmark_keeps_the_kernels_part_and_what_was_whole_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {"recording": [{"ms": 1.0}], "memory": [{"bytes": 2}], "notes": "Whole."}
    monkeypatch.setattr("sys.argv", ["bench.py", "--device", "cpu", "--out", str(tmp_path)])
    monkeypatch.setattr(bench, "parity", lambda *_: [])
    monkeypatch.setattr(bench, "ceilings", lambda *_: {"copy": 1e9, "gemm": 1e12})
    monkeypatch.setattr(bench, "kernel_rows", lambda *_: [{"what": "K1", "ms": 1.0}])
    monkeypatch.setattr(bench, "whole_models", lambda *_: found)
    assert bench.main() == 0
    (whole,) = tmp_path.glob("*.json")
    assert json.loads(whole.read_text())["environment"]["minutes"] >= 0

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "whole_models", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    kept = json.loads(whole.with_name(f"{whole.stem}-kernels.json").read_text())
    assert kept["kernels"] and "recording" not in kept
    assert json.loads(whole.read_text())["recording"] == [{"ms": 1.0}]
