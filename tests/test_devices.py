"""Where a model is put: on the device asked for, and in a launch of several processes on each one's own card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import neuronforget as nf
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.runs.ranks import own_device


def launch(patch: pytest.MonkeyPatch, *, rank: int, world: int, cards: int) -> None:
    """Make this look like process `rank` of a launch on a machine with `cards` GPUs."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in names.items():
        patch.setenv(name, str(value))
    patch.setattr(torch.cuda, "device_count", lambda: cards)


@pytest.mark.parametrize(
    ("rank", "world", "cards", "asked", "meant"),
    [
        (0, 4, 8, "cuda", "cuda:0"),
        (3, 4, 8, "cuda", "cuda:3"),
        (3, 4, 8, "cuda:1", "cuda:1"),
        (3, 4, 8, "cpu", "cpu"),
        (3, 4, 1, "cuda", "cuda:0"),  # each process sees its own card alone
        (0, 1, 8, "cuda", "cuda"),  # a launch of one process is none
    ],
)
def test_cuda_is_the_own_card_of_each_process_of_a_launch(
    rank: int, world: int, cards: int, asked: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, rank=rank, world=world, cards=cards)
    assert own_device(asked) == torch.device(meant)
    assert own_device(torch.device(asked)) == torch.device(meant)


def test_a_model_is_loaded_onto_the_own_card(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm.save(tmp_path)
    moved = []
    monkeypatch.setattr(PreTrainedModel, "to", lambda model, where: moved.append(where) or model)
    launch(monkeypatch, rank=2, world=4, cards=4)
    nf.load(tmp_path, device="cuda")
    assert moved == [torch.device("cuda:2")]


@pytest.mark.parametrize(
    ("cards", "asked", "reason"),
    [
        (0, "cuda", "finds no GPU on this machine; use cpu"),
        (2, "cuda:2", "this machine has 2 GPUs, numbered from 0"),
        (2, "gpu", "PyTorch knows no such device"),
        (0, "meta", "this PyTorch has none on this machine; use cpu"),
        (0, "hpu", "this PyTorch has none on this machine; use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_refused_before_the_model_is_read(
    cards: int, asked: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=reason):
        nf.load(tmp_path, device=asked)
