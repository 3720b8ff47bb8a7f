"""The training loop: a function of its seed alone, and a killed run that ends as if it had not been killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neuronforget.errors import InputError
from neuronforget.train import Plan, draw, fit

DATA = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
GOAL = DATA @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
PLAN = Plan(steps=17, lr=0.05, save_every=5)


def start() -> list[Tensor]:
    return [torch.zeros(6, requires_grad=True), torch.zeros(1, requires_grad=True)]


def squared(parameters: list[Tensor], dies_at: int | None = None) -> Any:
    def loss(step: int) -> Tensor:
        if step == dies_at:
            raise KeyboardInterrupt
        rows = draw(range(len(DATA)), 8, 3, step)
        return ((DATA[rows] @ parameters[0] + parameters[1] - GOAL[rows]) ** 2).mean()

    return loss


def train(plan: Plan = PLAN, **settings: Any) -> tuple[list[Tensor], list[float]]:
    dies_at = settings.pop("dies_at", None)
    parameters = start()
    return parameters, fit(parameters, squared(parameters, dies_at), plan, progress=False, **settings)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
@pytest.mark.parametrize("dies_at", [3, 5, 6, 16])
def test_a_killed_run_ends_bit_equal_to_an_unbroken_one(tmp_path: Path, schedule: Any, dies_at: int) -> None:
    plan = Plan(steps=17, lr=0.05, save_every=5, schedule=schedule)
    whole, losses = train(plan)
    with pytest.raises(KeyboardInterrupt):
        train(plan, resume=tmp_path, dies_at=dies_at)
    assert len(list(tmp_path.iterdir())) == (dies_at >= 5)
    again, history = train(plan, resume=tmp_path)
    assert equal(again, whole) and history == losses
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_does_only_the_steps_that_are_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(resume=tmp_path, dies_at=12)
    parameters, steps = start(), []
    loss = squared(parameters)

    def counted(step: int) -> Tensor:
        steps.append(step)
        return loss(step)

    fit(parameters, counted, PLAN, resume=tmp_path, progress=False)
    assert steps == list(range(10, 17))


def test_a_run_killed_on_a_card_goes_on_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:5")  # what a card's tensors are saved with
        train(resume=tmp_path, dies_at=12)
    assert equal(train(resume=tmp_path)[0], train()[0])


def test_a_training_on_the_cpu_may_follow_one_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate` remembers where a process first trained."""
    from accelerate.state import AcceleratorState, PartialState

    found, _ = train()
    for state in (AcceleratorState, PartialState):
        monkeypatch.setitem(state._shared_state, "device", torch.device("cuda", 0))
    assert equal(train()[0], found)


@pytest.mark.parametrize("damage", ["empty", "cut short", "garbage", "of another kind"])
def test_a_damaged_checkpoint_is_said_in_one_line(tmp_path: Path, damage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(resume=tmp_path, dies_at=9)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut short": whole[: len(whole) // 2], "garbage": b"no zip" * 50}.get(damage, b""))
    if damage == "of another kind":
        torch.save({"tensors": [torch.zeros(3)]}, path)
    with pytest.raises(InputError, match=f"{path.name} holds no training to go on with: delete it to start over"):
        train(resume=tmp_path)
    path.write_bytes(whole)
    assert equal(train(resume=tmp_path)[0], train()[0])


@pytest.mark.parametrize("where", ["a file", "a folder that cannot be written"])
def test_a_place_for_checkpoints_that_cannot_be_is_refused_before_a_step(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    if where == "a file":
        place.touch()
    else:

        def refused(**_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(InputError, match=f"cannot write {place}"):
        train(resume=place, dies_at=0)


@pytest.mark.parametrize("other", [{"key": "other work"}, {"plan": Plan(steps=17, lr=0.04, save_every=5)}])
def test_other_work_does_not_continue_a_checkpoint(tmp_path: Path, other: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(resume=tmp_path, key="work", dies_at=12)
    fresh, _ = train(**{"key": "work", **other})
    found, _ = train(**{"key": "work", **other}, resume=tmp_path)
    assert equal(found, fresh)
    assert len(list(tmp_path.iterdir())) == 1  # the first run's checkpoint waits for the first run


def test_training_lowers_the_loss_and_leaves_no_gradients() -> None:
    parameters, losses = train(Plan(steps=300, lr=0.05, weight_decay=0.0, clip=None))
    assert losses[-1] < 0.01 * losses[0]
    assert all(p.grad is None for p in parameters)


def test_a_step_is_adamw_with_clipped_gradients_by_hand() -> None:
    (found, _), losses = train(Plan(steps=1, lr=0.1, weight_decay=0.5, clip=1e-3))
    grad = -2 * (DATA * GOAL[:, None])[draw(range(40), 8, 3, 0)].mean(0)
    assert losses[0] == pytest.approx(float((GOAL[draw(range(40), 8, 3, 0)] ** 2).mean()), rel=1e-5)
    bias = -2 * GOAL[draw(range(40), 8, 3, 0)].mean()
    scale = 1e-3 / float(torch.cat([grad, bias[None]]).norm())
    g = grad * scale
    torch.testing.assert_close(found.detach(), -0.1 * g / (g.abs() + 1e-8), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_advice(value: float) -> None:
    parameters = start()
    with pytest.raises(InputError, match=r"work: the loss is .* at step 0: check the loss and the model's weights"):
        fit(parameters, lambda step: parameters[0].sum() * value, PLAN, desc="work", progress=False)
    assert equal(parameters, start())
    with pytest.raises(InputError, match=r"work: the loss is .* at step 1: lower lr"):
        fit(parameters, lambda step: parameters[0].sum() * value**step, PLAN, desc="work", progress=False)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": -1}, {"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}])
def test_a_plan_that_trains_nothing_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match=r"steps >= 1 and lr > 0|lr must be a number; found nan"):
        Plan(**bad)


@pytest.mark.parametrize("name, bad", [
    ("steps", 2.5), ("lr", float("inf")), ("clip", 0.0), ("clip", -1.0), ("clip", float("nan")), ("weight_decay", -0.1),
    ("weight_decay", float("nan")), ("weight_decay", float("inf")), ("save_every", 0),
])  # fmt: skip
def test_a_plan_whose_numbers_train_otherwise_than_they_say_is_refused(name: str, bad: Any, untyped: None) -> None:
    with pytest.raises(InputError, match=f"{name}.*{bad:g}"):
        Plan(**{name: bad})


@given(size=st.integers(1, 20), count=st.integers(1, 30), seed=st.integers(0, 5), steps=st.integers(1, 8))
def test_draws_pass_over_all_items_before_any_comes_again(size: int, count: int, seed: int, steps: int) -> None:
    drawn = [x for step in range(steps) for x in draw(range(size), count, seed, step)]
    assert len(drawn) == count * steps
    for i in range(0, len(drawn) - size + 1, size):
        assert sorted(drawn[i : i + size]) == list(range(size))
    assert draw(range(size), count, seed, steps - 1) == drawn[-count:]  # asked for alone, or again, it is the same


def test_draws_depend_on_seed_and_epoch() -> None:
    assert draw(range(30), 30, 0, 0) != draw(range(30), 30, 1, 0)
    assert draw(range(30), 30, 0, 0) != draw(range(30), 30, 0, 1)


def test_training_within_no_grad_or_another_launchers_settings_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train()
    with torch.no_grad():
        assert equal(train()[0], whole[0])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "64")  # would divide every loss
    assert equal(train()[0], whole[0])


def test_a_loss_in_parts_is_their_sum() -> None:
    def parts(parameters: list[Tensor]) -> Any:
        def loss(step: int) -> Any:
            rows = draw(range(len(DATA)), 8, 3, step)
            for some in (rows[:3], rows[3:]):
                errors = DATA[some] @ parameters[0] + parameters[1] - GOAL[some]
                yield (errors**2).mean() * (len(some) / len(rows))

        return loss

    parameters = start()
    losses = fit(parameters, parts(parameters), PLAN, progress=False)
    whole, expected = train(PLAN)
    assert losses == pytest.approx(expected, rel=1e-4)
    for found, wanted in zip(parameters, whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_each_parameter_may_have_its_own_rate(schedule: Any) -> None:
    """Adam's first step is the rate in size; over several, equal rates are one rate."""
    rates = (0.1, 0.003)
    plan = Plan(steps=1, lr=0.1, weight_decay=0.0, clip=None, rates=rates)
    (slope, bias), _ = train(plan)
    assert slope.abs().tolist() == pytest.approx([0.1] * 6, rel=1e-3) and bias.abs().item() == pytest.approx(0.003)
    plain = Plan(steps=17, lr=0.05, schedule=schedule)
    same = Plan(steps=17, lr=1.0, schedule=schedule, rates=(0.05, 0.05))
    assert equal(train(plain)[0], train(same)[0])


def test_a_gradient_that_is_no_number_stops_before_it_is_stepped_along() -> None:
    """The square root's slope at 0 is infinite, its value is not."""
    for clip in (None, 1.0):
        parameters = start()
        with pytest.raises(InputError, match="work: the gradient is inf at step 0"):
            fit(parameters, lambda step: parameters[1].sqrt().sum(), Plan(clip=clip), desc="work", progress=False)  # noqa: B023
        assert equal(parameters, start())
