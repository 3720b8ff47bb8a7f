"""Second moments: the mean outer product by brute force, and a cache that is never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from safetensors.torch import load_file
from torch import Tensor

from neuronforget import erase
from neuronforget.corpora import Corpus, batches, encode
from neuronforget.erase import second_moments as home
from neuronforget.erase.second_moments import second_moments
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.taps import TorchHooks

CHOSEN = {0: torch.tensor([1, 4, 9]), 1: torch.arange(40)}


def brute_force(lm: LM, corpus: Corpus, layer: int, index: Tensor) -> Tensor:
    """One example, one token, one pair at a time."""
    total, tokens = torch.zeros(len(index), len(index), dtype=torch.float64), 0
    for row in encode(corpus, lm.tokenizer):
        (batch,) = batches([row], 1, lm.pad_id)
        with torch.no_grad():
            acts = TorchHooks(lm)(batch.inputs).acts[layer][0].double()
        for act in acts:
            total += torch.outer(act[index], act[index])
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "llama", "qwen2"])
def test_it_is_the_mean_outer_product_over_real_tokens(family: str, tokenizer: Any, corpus: Corpus) -> None:
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    for layer, found in second_moments(lm, CHOSEN, corpus, batch_size=3).items():
        torch.testing.assert_close(found, brute_force(lm, corpus, layer, CHOSEN[layer]), rtol=1e-4, atol=1e-6)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of each pass over the text that was really made."""
    made: list[list[int]] = []
    real = home._measured

    def counted(lm: Any, chosen: Any, *rest: Any) -> Any:
        made.append(sorted(chosen))
        return real(lm, chosen, *rest)

    monkeypatch.setattr(home, "_measured", counted)
    return made


def test_what_is_cached_is_not_computed_again_and_is_equal(
    lm: LM, corpus: Corpus, tmp_path: Path, passes: list[list[int]]
) -> None:
    first = second_moments(lm, CHOSEN, corpus, cache=tmp_path)
    again = second_moments(lm, CHOSEN, corpus, cache=tmp_path)
    assert passes == [[0, 1]] and all(torch.equal(first[layer], again[layer]) for layer in CHOSEN)
    plain = second_moments(lm, CHOSEN, corpus)
    assert all(torch.equal(first[layer], plain[layer]) for layer in CHOSEN)


def test_other_content_is_computed_anew(lm: LM, corpus: Corpus, tmp_path: Path, passes: list[list[int]]) -> None:
    second_moments(lm, CHOSEN, corpus, cache=tmp_path)
    second_moments(lm, {**CHOSEN, 0: torch.tensor([1, 4, 8])}, corpus, cache=tmp_path)
    assert passes.pop() == [0]  # the other layer's are those that are kept
    second_moments(lm, CHOSEN, Corpus(corpus.examples[:-1], "shorter"), cache=tmp_path)
    assert passes.pop() == [0, 1]
    with torch.no_grad():
        lm.parameters[lm.sites[0].read[0].name][0, 0] += 1.0
    changed = second_moments(lm, CHOSEN, corpus, cache=tmp_path)
    assert passes.pop() == [0, 1]
    torch.testing.assert_close(changed[1], brute_force(lm, corpus, 1, CHOSEN[1]), rtol=1e-4, atol=1e-6)


def cut_short(path: Path, _other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_value(path: Path, _other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def of_another_layer(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def of_another_kind(path: Path, _other: Path) -> None:
    path.write_text("not second moments")


@pytest.mark.parametrize("damage", [cut_short, flip_a_value, of_another_layer, of_another_kind])
def test_a_stale_or_broken_file_is_computed_anew_and_replaced(
    damage: Any, lm: LM, corpus: Corpus, tmp_path: Path, passes: list[list[int]]
) -> None:
    chosen = {0: torch.arange(5), 1: torch.arange(5)}
    first = second_moments(lm, chosen, corpus, cache=tmp_path)
    one, other = sorted(tmp_path.iterdir())
    sound = load_file(one)["second"].clone()
    damage(one, other)
    again = second_moments(lm, chosen, corpus, cache=tmp_path)
    assert len(passes) == 2 and len(passes[1]) == 1
    assert all(torch.equal(first[layer], again[layer]) for layer in chosen)
    assert torch.equal(load_file(one)["second"], sound) and len(list(tmp_path.iterdir())) == 2


def test_every_closed_form_takes_the_cache_and_gives_the_same_edit(
    lm: LM, corpus: Corpus, tmp_path: Path, passes: list[list[int]]
) -> None:
    forget, retain = Corpus(corpus.examples[:2], "forget"), Corpus(corpus.examples[2:], "retain")
    for operator, where in (
        (erase.rank_one, {"layer": 0}),
        (erase.memit, {"layers": [0]}),
        (erase.alpha_edit, {"layers": [0], "cut": 0.1}),
    ):
        edits = [operator(lm, forget, retain, steps=2, **where, cache=folder) for folder in (None, tmp_path, tmp_path)]
        for edit in edits[1:]:
            torch.testing.assert_close(edit.changes[0].after, edits[0].changes[0].after, rtol=1e-5, atol=1e-6)
    assert len(passes) == 3 + 1  # three without a cache, and one that all share


def test_a_folder_that_cannot_be_written_is_refused(lm: LM, corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        second_moments(lm, CHOSEN, corpus, cache=tmp_path / "file")
