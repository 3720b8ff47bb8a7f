"""The benchmark against peers: what it times is the same quantity, and what differs is not timed."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import peers
import pytest
import torch
import whole_models

import neuronforget as nf

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
needs_captum = pytest.mark.skipif(find_spec("captum") is None, reason="captum is not installed")


def duel_of(name: str) -> peers.Duel:
    lm, corpus = peers.problem(TINY, 4, 8, 3)
    if name == "recording":
        return peers.recording(lm, corpus, 2)
    return peers.integration(lm, corpus) if name == "integration" else peers.ablation(lm, corpus)


@pytest.mark.parametrize("name", ["recording", "integration", "ablation"])
@pytest.mark.parametrize("captum", [False, pytest.param(True, marks=needs_captum)])
def test_the_peers_compute_what_ours_does(name: str, captum: bool) -> None:
    duel = duel_of(name)
    own = {key: call for key, call in duel.peers.items() if ("captum" in key) == captum}
    if captum and not own:
        pytest.skip("captum has no call for it")
    rows = peers.fight(replace(duel, peers=own), 1)
    assert [row["call"] for row in rows] == ["ours", *own]
    for row in rows[1:]:
        assert row["gap"] < 1e-5 and row["times_ours"] == row["seconds"] / rows[0]["seconds"]
        assert row["met"] == (None if row["goal"] is None else "yes" if row["times_ours"] >= row["goal"] else "no")


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_a_result_that_differs_is_not_timed(wrong: float) -> None:
    def ours() -> torch.Tensor:
        return torch.tensor([[1.0, -2.0]])

    rows = peers.fight(peers.Duel("x", "y", ours, {"wrong": lambda: ours() * wrong, "right": ours}, 0.0), 3)
    assert [(row["seconds"] is None, row["times_ours"] is None, row["met"]) for row in rows] == [
        (False, True, None), (True, True, None), (False, False, "yes")
    ]  # fmt: skip


def test_differences_are_relative_to_the_largest_value_or_to_the_scale_given() -> None:
    def ours() -> torch.Tensor:
        return torch.tensor([[1.0, -4.0]])

    for scale, gap in ((None, 0.5), (1.0, 2.0)):
        duel = peers.Duel("x", "y", ours, {"wrong": lambda: ours() + torch.tensor([[0.0, 2.0]])}, scale=scale)
        assert [row["gap"] for row in peers.fight(duel, 1)] == [0.0, gap]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (peers, ["--turns", "0"], "one turn or more, not 0"),
        (whole_models, ["testbed", "--peak", "nope", "1", "tensors"], "one of record, alone, full"),
        (whole_models, ["testbed", "--peak", "record", "few", "tensors"], "a number"),
        (whole_models, ["testbed", "--peak", "record", "1", "nope"], "one of tensors, process"),
    ],
)
def test_a_wrong_argument_is_said_before_the_work(
    script: Any, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["script", *arguments])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_examples_are_the_words_drawn() -> None:
    """Token for token what the corpus says, so that ours and the peers read the same."""
    lm, corpus = peers.problem(TINY, 4, 8, 3)
    (batch,) = peers.batches_of(lm, corpus, 4)
    words = [f"{example.prompt} {example.answer}".split() for example in corpus]
    assert batch.input_ids.tolist() == [[int(word[1:]) for word in line] for line in words]
    assert batch.answer_mask.sum(1).tolist() == [3] * 4 and isinstance(lm, nf.LM)
