"""Streams: the same moments as in memory, whatever the length, and errors that name the line."""

from __future__ import annotations

import gc
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_recording import assert_same_moments, run

import neuronforget as nf
from neuronforget.corpora import Corpus, Example, Fingerprint, Stream, disjoint, encode, stream
from neuronforget.errors import InputError
from neuronforget.models import LM


class Rows:
    """Rows made while they are iterated; counts how often, and how many examples are alive meanwhile."""

    def __init__(self, count: int) -> None:
        self.count, self.passes, self.alive = count, 0, 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        self.passes += 1
        for i in range(self.count):
            if i % 40 == 39:
                self.alive = max(self.alive, sum(isinstance(x, Example) for x in gc.get_objects()))
            yield {"prompt": "Ida Falk was born in" + " Velm" * (i % 5), "answer": f"Oslo {i}"}


def as_rows(corpus: Corpus) -> list[dict[str, str]]:
    return [{"prompt": e.prompt, "answer": e.answer} for e in corpus]


@pytest.fixture
def file(corpus: Corpus, tmp_path: Path) -> Path:
    corpus.save(tmp_path / "facts.jsonl")
    return tmp_path / "facts.jsonl"


@pytest.mark.parametrize("window", [1, 2, 3, 5, 7, 100])
def test_a_stream_is_recorded_as_the_corpus_is(window: int, lm: LM, corpus: Corpus, file: Path) -> None:
    whole = run(lm, corpus, per_example=True)
    found = run(lm, stream(file, window=window), per_example=True)
    # Other batches: a small gradient keeps fewer digits.
    assert_same_moments(found, whole, rel=1e-5 if window < 7 else 0.0)
    assert found.info == whole.info


def test_files_gzipped_files_and_data_sets_are_streamed_alike(corpus: Corpus, file: Path, tmp_path: Path) -> None:
    import datasets

    packed = tmp_path / "packed.jsonl.gz"
    with gzip.open(packed, "wt") as out:
        out.write(file.read_text())
    data = datasets.Dataset.from_list(as_rows(corpus)).to_iterable_dataset()
    for source in (file, str(file), packed, data, as_rows(corpus)):
        found = stream(source, n=5, name="some")
        assert tuple(found) == tuple(found) == corpus.examples[:5]  # it can be read again
        assert found.head(2) == replace(corpus.head(2), name="some")


def test_a_data_set_in_streaming_mode_is_recorded(lm: LM, corpus: Corpus, file: Path) -> None:
    import datasets

    data = datasets.load_dataset("json", data_files=str(file), split="train", streaming=True)
    assert isinstance(data, datasets.IterableDataset)
    assert_same_moments(run(lm, stream(data, window=100)), run(lm, corpus), rel=0.0)


def test_the_fingerprint_of_what_went_by_is_the_digest_of_the_whole(corpus: Corpus) -> None:
    fingerprint = Fingerprint([corpus.template, corpus.eos, corpus.max_tokens])
    for example in corpus:
        assert fingerprint.digest() != corpus.digest()
        fingerprint.add([example])
    assert fingerprint.digest() == corpus.digest()
    body = [vars(e) for e in corpus] + [corpus.template, corpus.eos, corpus.max_tokens]
    import hashlib

    assert corpus.digest() == hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def test_memory_does_not_grow_with_the_stream(lm: LM) -> None:
    gc.collect()
    before = sum(isinstance(x, Example) for x in gc.get_objects())
    most = []
    for count in (40, 320):
        rows = Rows(count)
        found = run(lm, stream(rows, window=20), batch_size=8)
        assert (found.examples, rows.passes) == (count, 1)
        most.append(rows.alive - before)
    assert most[0] > 0 and most[1] <= most[0] < 2 * 20  # the window that is left and the one that is filled


def test_the_template_and_the_cut_of_a_stream_are_those_of_a_corpus(lm: LM, corpus: Corpus, file: Path) -> None:
    template = "Q: {prompt} A:"
    longest = max(len(row.ids) for row in encode(replace(corpus, template=template), lm.tokenizer))
    settings: dict[str, Any] = {"template": template, "max_tokens": longest - 1, "eos": True}
    expected = run(lm, replace(corpus, **settings))
    assert_same_moments(run(lm, stream(file, window=100, **settings)), expected, rel=0.0)
    with pytest.raises(InputError, match=r"\{prompt\}"):
        stream(file, template="Q:")


@pytest.mark.parametrize(
    ("line", "message"),
    [("{not json", "line 6: not valid JSON"), ('{"prompt": "x"}', "line 6: no string field 'answer'")],
)
def test_a_malformed_line_is_named_and_nothing_is_left(
    line: str, message: str, lm: LM, file: Path, tmp_path: Path
) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:5], line, *lines[5:]]))
    flags = [p.requires_grad for p in lm.model.parameters()]
    before = set(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        run(lm, stream(file, window=2), resume=tmp_path / "state")
    assert [p.requires_grad for p in lm.model.parameters()] == flags
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "state"}
    assert not list((tmp_path / "state").glob("*"))  # no state was due in so short a time


def test_an_example_that_cannot_be_scored_is_named_by_its_place_in_the_stream(lm: LM) -> None:
    rows = [{"prompt": "Ida", "answer": "Falk"}] * 5 + [{"prompt": "Jon", "answer": ""}]
    with pytest.raises(InputError, match=r"'stream', example 5 \('Jon'\): no answer token"):
        run(lm, stream(rows, window=2))
    with pytest.raises(InputError, match="'mine', row 1: no string field"):
        list(stream([{"text": "a"}, {"answer": "b"}], name="mine"))


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_streamed_is_refused(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="a generator only once"):
        stream(row for row in [{"text": "a"}])
    with pytest.raises(InputError, match="no such file"):
        stream(tmp_path / "nowhere.jsonl")
    with pytest.raises(InputError, match="window"):
        stream([{"text": "a"}], window=0)
    with pytest.raises(InputError, match="n must be a whole number >= 1"):
        stream([{"text": "a"}], n=0)
    with pytest.raises(InputError, match="is empty"):
        run(lm, stream([]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"someone/data needs the hub.*\.jsonl"):
        stream("someone/data")


def test_a_data_set_of_the_hub_is_opened_in_streaming_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(*where: Any, **how: Any) -> list[dict[str, str]]:
        if where[0] == "someone/gone":
            raise ConnectionError("no\nroute")
        assert where == ("someone/data", "en") and how == {"split": "test", "streaming": True}
        return [{"text": "a"}, {"text": "b"}]

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    found = stream("someone/data", "en", split="test")
    assert found.name == "data" and [e.answer for e in found] == ["a", "b"]
    with pytest.raises(InputError, match=r"cannot read someone/gone from the hub \(no route\): give a \.jsonl file"):
        stream("someone/gone")


def test_streams_are_attributed_as_corpora_are(lm: LM, corpus: Corpus) -> None:
    forget, retain = corpus.head(3), replace(corpus, examples=corpus.examples[3:], name="rest")
    settings: dict[str, Any] = {"tap": "torch_hooks", "batch_size": 3, "progress": False}
    whole = nf.attribute(lm, forget, retain, **settings)
    streams = [stream(as_rows(c), name=c.name) for c in (forget, retain)]
    for pair in ((forget, streams[1]), (streams[0], retain), streams):
        found = nf.attribute(lm, *pair, **settings)
        assert found.values.equal(whole.values) and found.info == whole.info


@pytest.mark.parametrize("streamed", [(True, False), (False, True), (True, True)])
def test_an_example_in_both_is_found_while_a_stream_is_read(
    streamed: tuple[bool, bool], lm: LM, corpus: Corpus
) -> None:
    both = [corpus.head(4), replace(corpus, examples=corpus.examples[3:], name="rest")]
    sources = [stream(as_rows(c), name=c.name, window=2) if s else c for c, s in zip(both, streamed, strict=True)]
    with pytest.raises(InputError, match=r"share an example.*Who wrote the book of rivers"):
        nf.attribute(lm, *sources, tap="torch_hooks", progress=False)


def test_streams_with_nothing_in_common_pass_unchanged(corpus: Corpus) -> None:
    first, second = stream(as_rows(corpus.head(3))), stream(as_rows(corpus)[3:])
    pair = disjoint(first, second)
    assert [tuple(source) for source in pair] == [tuple(first), tuple(second)]
    assert all(isinstance(source, Stream) for source in pair)


def test_a_score_that_runs_the_model_is_told_to_take_a_head(lm: LM, corpus: Corpus) -> None:
    @nf.scores.runs_model
    def mine(lm: LM, forget: Corpus, retain: Corpus | None = None, *, batch_size: int, progress: bool) -> nf.Scores:
        raise AssertionError("not reached")

    with pytest.raises(InputError, match=r"score 'mine' runs the model over whole corpora, .*head\(n\)"):
        nf.attribute(lm, stream(as_rows(corpus)), score=mine)
    with pytest.raises(InputError, match="score 'mine' runs the model itself and cannot be resumed"):
        nf.attribute(lm, corpus, score=mine, resume="somewhere")
