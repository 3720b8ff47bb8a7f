"""Every noun that is kept in a file says what is wrong with one that is missing, cut short or of another kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError, reading
from neuronforget.models import LM
from neuronforget.neurons import Neurons
from neuronforget.results import Results

LOADERS: dict[str, Callable[[Path], Any]] = {
    "moments": nf.Moments.load,
    "scores": nf.Scores.load,
    "set of neurons": Neurons.load,
    "edit": nf.Edit.load,
}


@pytest.fixture
def written(lm: LM, corpus: Corpus, tmp_path: Path) -> dict[str, Path]:
    """One sound file of each kind."""
    moments = nf.record(lm, corpus, tap="torch_hooks", progress=False)
    scores = nf.scores.grad_x_act(moments)
    neurons = nf.select.top(scores, 3)
    made = {"moments": moments, "scores": scores, "set of neurons": neurons, "edit": nf.erase.ablate(lm, neurons)}
    for name, thing in made.items():
        thing.save(tmp_path / name)
    return {name: tmp_path / name for name in made}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_file_that_is_missing_cut_short_or_of_another_kind_is_named(kind: str, written: dict[str, Path]) -> None:
    load, path = LOADERS[kind], written[kind]
    load(path)
    with pytest.raises(InputError, match="no such file"):
        load(path.with_name("nowhere"))
    for other in written.keys() - {kind}:
        with pytest.raises(InputError, match=f"holds no {kind}"):
            load(written[other])
    whole = path.read_bytes()
    for length in (0, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"{path.name} holds no {kind}"):
            load(path)


def test_another_librarys_message_is_one_line_cut_between_words(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    with pytest.raises(InputError) as raised, reading(tmp_path / "text", "numbers"):
        raise ValueError("expected\n  numbers " + "beforehand " * 40)
    assert str(raised.value).endswith("numbers (ValueError: expected numbers " + "beforehand " * 16 + "...)")


def test_results_with_a_damaged_table_are_refused(tmp_path: Path) -> None:
    row = {"edit": "a", "scope": "full", "strength": 1.0, "point": "full", "corpus": "forget", "metric": "nll"}
    row |= {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "units": 3, "nan": 0, "seed": 0}
    example = {"edit": "a", "point": "full", "corpus": "forget", "metric": "nll", "example": 0, "unit": 0, "value": 0.5}
    Results((row,), (example,), {"seed": 0}).save(tmp_path / "results")
    assert Results.load(tmp_path / "results").rows == (row,)
    for name, what in (("rows.parquet", "rows"), ("examples.parquet", "examples"), ("info.json", "information")):
        path = tmp_path / "results" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match=f"{name} holds no {what}"):
            Results.load(tmp_path / "results")
        path.write_bytes(whole)
    with pytest.raises(InputError, match="no results in"):
        Results.load(tmp_path)
    (tmp_path / "results" / "info.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no information"):
        Results.load(tmp_path / "results")
    older = {key: value for key, value in row.items() if key != "units"}
    Results((older,), (example,), {"seed": 0}).save(tmp_path / "older")
    with pytest.raises(InputError, match="no column 'units'"):
        Results.load(tmp_path / "older")


def test_a_testbed_with_a_damaged_description_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a testbed"):
        nf.testbed.Testbed.load(tmp_path)
    for text in ("{", json.dumps({"corpora": {}})):
        (tmp_path / "testbed.json").write_text(text)
        with pytest.raises(InputError, match=r"testbed\.json holds no testbed"):
            nf.testbed.Testbed.load(tmp_path)


def test_moments_and_edits_are_read_back_equal(written: dict[str, Path], lm: LM) -> None:
    moments, edit = nf.Moments.load(written["moments"]), nf.Edit.load(written["edit"])
    moments.save(written["moments"].with_name("again"))
    again = nf.Moments.load(written["moments"].with_name("again"))
    assert all(torch.equal(moments[name], again[name]) for name in moments.fields)
    assert edit.certificate(lm).holds


@pytest.mark.parametrize("kind", ["corpus", *LOADERS])
def test_saving_makes_the_folder_and_says_where_it_cannot_write(
    kind: str, written: dict[str, Path], corpus: Corpus
) -> None:
    thing = corpus if kind == "corpus" else LOADERS[kind](written[kind])
    folder = written["scores"].with_name("new") / "folder"
    thing.save(new := folder / "thing")
    type(thing).load(new).save(again := folder / "again")
    assert again.read_bytes() == new.read_bytes()
    for place in (new / "below a file", folder):
        with pytest.raises(InputError, match="cannot write"):
            thing.save(place)


@pytest.mark.parametrize("kind", ["corpus", *LOADERS])
def test_an_interrupted_save_leaves_the_earlier_file(
    kind: str, written: dict[str, Path], corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = corpus if kind == "corpus" else LOADERS[kind](written[kind])
    path = written["scores"].with_name("new") / "thing"
    thing.save(path)
    before = path.read_bytes()

    def cut_short(*given: Any, **_: Any) -> None:
        Path(next(one for one in given if isinstance(one, str | Path))).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_short)
    monkeypatch.setattr(safetensors.torch, "save_file", cut_short)
    with pytest.raises(KeyboardInterrupt):
        thing.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["thing"]
