"""Reading rows, and turning them into batches with the right answer mask."""

from __future__ import annotations

import copy
import gzip
import json
import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import neuronforget as nf
from neuronforget import LM
from neuronforget.corpora import (
    Corpus,
    Encoded,
    Example,
    batches,
    check_disjoint,
    counterfact,
    encode,
    jsonl,
    rwku,
    stream,
    tofu,
)  # fmt: skip
from neuronforget.corpora.corpus import Fingerprint
from neuronforget.corpora.streams import encoded_batches
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import generate

SHARED = Path(os.environ.get("NEURONFORGET_SHARED", "../shared"))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def pieces(corpus: Corpus, tokenizer: Any) -> list[tuple[str, str]]:
    """(text before the answer, text of the answer tokens) of every example."""
    rows = encode(corpus, tokenizer)
    return [(tokenizer.decode(r.ids[: r.answer_start]), tokenizer.decode(r.ids[r.answer_start :])) for r in rows]


def test_rows_with_prompt_and_answer_and_rows_of_text_are_read_alike(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b", "paraphrases": ["c"], "subject": "a", "other": 1}, {"text": "plain"}]
    corpus = jsonl(write(tmp_path / "rows.jsonl", rows))
    assert corpus.name == "rows"
    assert corpus.examples == (Example("a", "b", ("c",), subject="a"), Example("", "plain"))


def test_gzipped_files_and_the_first_n_rows(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": f"row {i}"}) for i in range(5)))
    assert [e.answer for e in jsonl(tmp_path / "rows.jsonl.gz", n=2)] == ["row 0", "row 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"text": ', "line 2: not valid JSON"),
        ('{"text": "a"}\n\n{"prompt": "b"}', "line 3: no string field 'answer'"),
        ("[1]", "line 1: expected an object"),
        ('{"prompt": "a", "answer": "b", "wrong": "c"}', "'wrong' must be a list of strings"),
        ("\n\n", "is empty"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        jsonl(tmp_path / "bad.jsonl")


def test_a_missing_or_unreadable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        jsonl(tmp_path / "nowhere.jsonl")
    (tmp_path / "no.jsonl.gz").write_text("not gzip")
    with pytest.raises(InputError, match="cannot be read"):
        jsonl(tmp_path / "no.jsonl.gz")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "a b"}\n')
    assert jsonl(tmp_path / "rows.jsonl").examples == (Example("", "a b"),)


def test_a_gzipped_file_that_was_cut_short_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps({"text": f"row {i}"}) for i in range(200)).encode())[:-40])
    with pytest.raises(InputError, match="cannot be read as text"):
        jsonl(path)


@pytest.mark.parametrize("n", [0, -1])
def test_no_examples_or_fewer_cannot_be_asked_for(n: int, tmp_path: Path, tofu_folder: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a b"}])
    with pytest.raises(InputError, match=f"n must be a whole number >= 1, found {n}"):
        jsonl(path, n=n)
    with pytest.raises(InputError, match=f"n must be a whole number >= 1, found {n}"):
        tofu("forget10", n=n, path=tofu_folder)


@pytest.mark.parametrize("template", ["no prompt here", "{prompt} {other}", "{0}", "{prompt", ""])
def test_a_template_that_does_not_hold_the_prompt_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="template must be 'chat' or a format string"):
        Corpus((Example("a", "b"),), template=template)


@pytest.mark.parametrize("count", [0, -5])
def test_a_corpus_is_not_cut_from_its_end_by_a_number_below_one(count: int) -> None:
    """As a slice -5 leaves all but the last five."""
    rows = (Example("a", "b"),)
    for make in (lambda: Corpus(rows, max_tokens=count), lambda: stream([{"text": "a b"}], max_tokens=count)):
        with pytest.raises(InputError, match=f"max_tokens.* 1, .*found {count}"):
            make()
    for take in (Corpus(rows * 9).head, partial(Corpus(rows * 9).sample, seed=0)):
        with pytest.raises(InputError, match=f">= 1, found {count}"):
            take(count)


def test_in_memory_rows_name_the_row_that_is_wrong() -> None:
    with pytest.raises(InputError, match="'mine', row 1"):
        Corpus.from_rows([{"text": "a"}, {"answer": "b"}], "mine")


def test_a_corpus_loads_what_it_saved(tmp_path: Path) -> None:
    corpus = Corpus((Example("a", "b", ("c",), ("d",), subject="a"), Example("", "plain")), "rows", eos=True)
    corpus.save(tmp_path / "rows.jsonl")
    assert Corpus.load(tmp_path / "rows.jsonl", eos=True) == corpus
    with pytest.raises(InputError, match="no such file"):
        Corpus.load(tmp_path / "nowhere.jsonl")


def test_a_saved_corpus_is_read_back_equal(tmp_path: Path) -> None:
    corpus = Corpus((Example("é", "b", ("c", "d"), ("e",), ("f",), "é"), Example("", "text")), "both")
    corpus.save(tmp_path / "both.jsonl")
    assert jsonl(tmp_path / "both.jsonl") == corpus


def test_the_digest_changes_with_content_and_settings_and_not_with_the_name() -> None:
    base = Corpus((Example("a", "b"),), "x")
    others = [
        Corpus((Example("a", "c"),)),
        Corpus((Example("a", "b"),), eos=True),
        Corpus((Example("a", "b"),), max_tokens=3),
    ]
    assert base.digest() == Corpus((Example("a", "b"),), "y").digest()
    assert len({base.digest(), *(other.digest() for other in others)}) == 4


def test_paraphrases_become_examples_once_each() -> None:
    corpus = Corpus((Example("a", "x", ("p",)), Example("b", "x", ("p", "q")), Example("c", "y", ("p",))))
    found = corpus.paraphrased()
    assert found is not None and [(e.prompt, e.answer) for e in found] == [("p", "x"), ("q", "x"), ("p", "y")]
    assert Corpus((Example("a", "x"),)).paraphrased() is None


def test_corpora_that_share_an_example_are_refused() -> None:
    one, two = Corpus((Example("a", "x"), Example("b", "y"))), Corpus((Example("b", "y", ("other",)),))
    with pytest.raises(InputError, match="share 1 examples"):
        check_disjoint(one, two)
    check_disjoint(one, Corpus((Example("b", "z"),)))
    for same in (Example("b", " y"), Example("b ", "y"), Example("", "b y\n")):
        with pytest.raises(InputError, match="share 1 examples"):
            check_disjoint(one, Corpus((same,)))


def test_prompt_and_answer_are_joined_by_one_space_unless_there_is_one(tokenizer: Any) -> None:
    examples = (Example("Ida", "Falk"), Example("Ida ", "Falk"), Example("Ida", " Falk"), Example("", "Ida Falk"))
    rows = encode(Corpus(examples), tokenizer)
    assert [tokenizer.decode(row.ids) for row in rows] == ["Ida Falk"] * 4


def test_a_token_that_straddles_the_border_counts_as_answer(tokenizer: Any) -> None:
    whole = tokenizer("Ida Falk")["input_ids"]
    prompt = "Ida Fa"  # the border lies inside the word, whose letters the tokenizer may have merged
    (row,) = encode(Corpus((Example("Ida ", "Falk"),)), tokenizer)
    spans = tokenizer("Ida Falk", return_offsets_mapping=True)["offset_mapping"]
    assert list(row.ids) == whole
    assert row.answer_start == next(i for i, (_, end) in enumerate(spans) if end > len("Ida "))
    assert spans[row.answer_start][0] < len("Ida ") or "Ġ" not in tokenizer.convert_ids_to_tokens(
        row.ids[row.answer_start]
    )
    assert len(prompt) == 6


def test_text_before_the_answer_is_the_prompt(tokenizer: Any, corpus: Corpus) -> None:
    for example, (before, answer) in zip(corpus, pieces(corpus, tokenizer), strict=True):
        assert before.strip() == example.prompt and answer.strip() == example.answer


def test_every_predicted_token_of_plain_text_is_answer(tokenizer: Any) -> None:
    rows = encode(Corpus((Example("", "Ida Falk was born in Trondheim"),)), tokenizer)
    (batch,) = batches(rows, 1, 0)
    assert batch.answer_mask[0].tolist() == [False] + [True] * (len(rows[0].ids) - 1)


def test_no_end_token_unless_asked_for(tokenizer: Any) -> None:
    example = Example("Ida", "Falk")
    (plain,), (ended,) = encode(Corpus((example,)), tokenizer), encode(Corpus((example,), eos=True), tokenizer)
    assert tokenizer.eos_token_id not in plain.ids
    assert ended.ids == (*plain.ids, tokenizer.eos_token_id)


def test_the_tokenizers_own_bos_is_kept_and_its_eos_dropped(bos_tokenizer: Any) -> None:
    prompted, plain = encode(Corpus((Example("Ida", "Falk"), Example("", "Ida Falk"))), bos_tokenizer)
    assert prompted == Encoded(0, (0, 2, 3), 2, 1)
    assert plain.ids == (0, 2, 3) and plain.answer_start == 1
    (ended,) = encode(Corpus((Example("Ida", "Falk"),), eos=True), bos_tokenizer)
    assert ended.ids == (0, 2, 3, 1)


def test_two_blanks_and_two_bos_are_warned_of(bos_tokenizer: Any) -> None:
    rows = [("The sun was", "shining"), ("The sun was ", "shining"), ("The sun was", " shining")]
    corpus = Corpus(tuple(Example(*row) for row in rows), "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(corpus, bos_tokenizer)
        encode(replace(corpus, examples=corpus.examples[:2], template="{prompt}, "), bos_tokenizer)
        encode(Corpus((Example("The sun was ", " shining"),), template="{prompt}:"), bos_tokenizer)
    with pytest.warns(match="some prompts end with a blank and their answers begin with one"):
        encode(replace(corpus, template="{prompt} A: "), bos_tokenizer)
    twice = replace(corpus, examples=(*corpus.examples, Example("The sun was ", " shining")))
    with pytest.warns(match="some prompts end with a blank and their answers begin with one"):
        encode(twice, bos_tokenizer)
    with pytest.warns(match="some examples begin with two BOS"):
        encode(replace(corpus, template=f"{bos_tokenizer.bos_token}{{prompt}}"), bos_tokenizer)


def test_two_blanks_in_a_stream_are_warned_of_once(bos_tokenizer: Any) -> None:
    rows = [{"prompt": "The sun was" + " " * (i % 3 > 0), "answer": " shining"} for i in range(8)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read = encoded_batches(stream(rows, window=2), partial(encode, tokenizer=bos_tokenizer), 2, Fingerprint([]))
        assert len([*read]) == 4
    assert ["prompts end" in str(one.message) for one in said] == [True]


def test_a_template_wraps_the_prompt_and_not_plain_text(tokenizer: Any) -> None:
    examples = (Example("Who?", "Ida"), Example("", "Ida Falk"))
    found = pieces(Corpus(examples, template="Q: {prompt} A:"), tokenizer)
    assert found[0] == ("Q: Who? A:", " Ida") and "Q:" not in "".join(found[1])


def test_the_chat_template_comes_from_the_tokenizer(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no chat template"):
        encode(Corpus((Example("Who?", "Ida"),), template="chat"), tokenizer)
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<reply>"
    assert pieces(Corpus((Example("Who?", "Ida"),), template="chat"), chat) == [("<user>Who?<reply>", "Ida")]


def test_plain_text_in_a_chat_corpus_keeps_the_tokenizers_own_bos(bos_tokenizer: Any) -> None:
    chat = copy.deepcopy(bos_tokenizer)
    chat.chat_template = "{% for m in messages %}<s> {{ m.content }} is{% endfor %}"
    prompted, plain = encode(Corpus((Example("Ida", " Falk"), Example("", "Ida Falk")), template="chat"), chat)
    assert prompted.ids == (0, 2, 4, 3)  # the template has its own
    assert (plain.ids, plain.answer_start) == ((0, 2, 3), 1)


def test_the_last_token_of_the_subject_is_found(bos_tokenizer: Any) -> None:
    examples = (Example("Ida Falk is", "here", subject="Ida Falk"), Example("Ida Falk is", "here"))
    with_subject, without = encode(Corpus(examples), bos_tokenizer)
    assert (with_subject.subject_end, without.subject_end) == (2, 3)


@pytest.mark.parametrize(
    ("example", "settings_", "message"),
    [
        (Example("Ida", ""), {}, "no answer token"),
        (Example("", "I"), {}, "no answer token"),
        (Example("Ida", "Falk"), {"max_tokens": 1}, "no answer token"),
        (Example("", "Ida Falk " * 40), {}, "the model takes 20"),
    ],
)
def test_what_cannot_be_scored_is_refused(tokenizer: Any, example: Example, settings_: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encode(Corpus((Example("Ida", "Falk"), example), **settings_), tokenizer, 20)


def test_a_token_that_was_added_and_is_not_embedded_is_named(lm: LM, corpus: Corpus) -> None:
    """torch would end in an IndexError; a token that was known before is read as before."""
    own = LM(lm.model, copy.deepcopy(lm.tokenizer))
    start = [row.ids for row in own.encode(corpus)]
    own.tokenizer.add_tokens(["<new>"])
    assert [row.ids for row in own.encode(corpus)] == start
    asked = Corpus((Example("Ida", "Falk"), Example("Ida <new>", "Falk")))
    words = r"example 1 \('Ida <new>'\): token '<new>' was added to the tokenizer and the model does not embed it"
    for reads in (lambda: nf.record(own, asked), lambda: generate(own, asked)):
        with pytest.raises(InputError, match=words):
            reads()
    own.model.resize_token_embeddings(len(own.tokenizer))
    assert nf.record(own, asked, progress=False).examples == 2
    assert len(generate(own, asked, progress=False)) == 2


def test_longer_sequences_are_cut_where_the_corpus_says_so(tokenizer: Any) -> None:
    (row,) = encode(Corpus((Example("", "Ida Falk " * 40),), max_tokens=9), tokenizer, 20)
    assert len(row.ids) == 9


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=12), st.integers(1, 5))
def test_batches_hold_every_row_once_longest_first_padded_on_the_right(lengths: list[int], size: int) -> None:
    rows = [Encoded(i, tuple(range(100, 100 + n)), 1, 0) for i, n in enumerate(lengths)]
    found = list(batches(rows, size, pad_id=7))
    assert sorted(i for batch in found for i in batch.index) == list(range(len(rows)))
    assert all(len(batch.index) <= size for batch in found)
    widths = [batch.input_ids.shape[1] for batch in found]
    assert widths == sorted(widths, reverse=True)
    for batch in found:
        for ids, real, answer, i in zip(
            batch.input_ids, batch.attention_mask, batch.answer_mask, batch.index, strict=True
        ):
            n = lengths[i]
            assert ids[:n].tolist() == list(rows[i].ids) and (ids[n:] == 7).all()
            assert real.tolist() == [1] * n + [0] * (len(ids) - n)
            assert answer.tolist() == [False] + [True] * (n - 1) + [False] * (len(ids) - n)


@pytest.fixture(scope="module")
def tofu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tofu")
    write(folder / "full.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(4000)])
    perturbed = {"question": "q3999", "answer": "a3999", "paraphrased_question": "p", "perturbed_answer": ["w1", "w2"]}
    write(folder / "forget01_perturbed.jsonl", [perturbed])
    return folder


def test_tofu_splits_are_the_first_and_last_rows(tofu_folder: Path) -> None:
    forget, retain = tofu("forget05", path=tofu_folder), tofu("retain90", path=tofu_folder, n=3)
    assert len(forget) == 200 and forget.examples[0].prompt == "q3800"
    assert [e.prompt for e in retain] == ["q0", "q1", "q2"]
    assert len(tofu("full", path=tofu_folder)) == 4000
    last = tofu("forget01", path=tofu_folder).examples[-1]
    assert last.paraphrases == ("p",) and last.wrong == ("w1", "w2")


@pytest.mark.parametrize("split", ["forget", "full10", "test", "forget5", "forget00", "retain00"])
def test_an_unknown_tofu_split_is_refused(split: str, tofu_folder: Path) -> None:
    with pytest.raises(InputError, match="unknown TOFU split"):
        tofu(split, path=tofu_folder)


def test_tofu_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file"):
        tofu("full", path=tmp_path)
    write(tmp_path / "full.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(InputError, match="4000 rows, found 1"):
        tofu("full", path=tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="give path="):
        tofu("full")


@pytest.mark.skipif(not (SHARED / "data/tofu").is_dir(), reason="no folder with the real TOFU rows")
def test_the_real_tofu_rows_are_read() -> None:
    forget, retain = (tofu(split, path=SHARED / "data/tofu") for split in ("forget10", "retain90"))
    assert (len(forget), len(retain)) == (400, 3600)
    assert sum(bool(e.paraphrases) for e in forget) > 300 and all(len(e.wrong) == 5 for e in forget)
    check_disjoint(forget, retain)


def test_rwkus_questions_and_texts_are_read_by_part_and_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"query": f"Who {i}?", "answer": str(i), "subject": "Ada" if i % 2 else "Bo"} for i in range(6)]
    write(tmp_path / "forget_level2.jsonl", rows)
    write(tmp_path / "forget_level1.jsonl", [{"query": "Ada ___", "answer": "x", "subject": "Ada"}])
    with gzip.open(tmp_path / "mia_forget.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "Ada was.", "subject": "Ada"}))
    found = rwku(path=tmp_path, subjects="Ada", n=2)
    assert found.examples == (Example("Who 1?", "1", subject="Ada"), Example("Who 3?", "3", subject="Ada"))
    assert found.template == "Question: {prompt}\nAnswer:" and len(rwku(path=tmp_path)) == 6
    assert rwku("forget_level1", path=tmp_path).template == "Fill in the blank: {prompt}\nAnswer:"
    assert rwku("mia_forget", path=tmp_path).examples == (Example("", "Ada was.", subject="Ada"),)
    write(tmp_path / "neighbor_level1.jsonl", [{"query": "a"}])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for call, message in (
        (lambda: rwku("level 2", path=tmp_path), "no part"),
        (lambda: rwku(path=tmp_path, subjects=["Ada", "Cy"]), "nothing about 'Cy'"),
        (lambda: rwku("neighbor_level1", path=tmp_path), "not RWKU"),
        (lambda: rwku("neighbor_level2", path=tmp_path), "no such file"),
        (lambda: rwku(), "give path=FOLDER, where FOLDER holds forget_level2.jsonl"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_counterfacts_facts_and_their_neighbours_are_read(tmp_path: Path) -> None:
    row = {
        "prompt": "Ada speaks", "ground_truth": "Dutch", "target_new": "Danish", "rephrase_prompt": "Ada's tongue is",
        "subject": "Ada", "locality_prompt": "Bo speaks", "locality_ground_truth": "Dutch",
    }  # fmt: skip
    path = write(tmp_path / "counterfact.jsonl", [row, {**row, "prompt": "Ada writes"}])
    fact = Example("Ada speaks", "Dutch", ("Ada's tongue is",), ("Danish",), subject="Ada")
    assert counterfact(path, n=1).examples == (fact,) and len(counterfact(tmp_path)) == 2
    assert counterfact(path, part="neighbours").examples == (Example("Bo speaks", "Dutch"),)
    write(tmp_path / "other.jsonl", [{"prompt": "a"}])
    with pytest.raises(InputError, match=r"line 1: no ground_truth: that is not CounterFact"):
        counterfact(tmp_path / "other.jsonl")


@pytest.mark.skipif(not (SHARED / "data" / "rwku").is_dir(), reason="needs the data sets in NEURONFORGET_SHARED")
def test_real_rwku_and_counterfact_rows_make_corpora() -> None:
    asked = rwku(subjects="Stephen King", path=SHARED / "data" / "rwku")
    near = rwku("neighbor_level2", subjects="Stephen King", path=SHARED / "data" / "rwku")
    check_disjoint(asked, near)
    facts = counterfact(SHARED / "data" / "counterfact", n=50)
    assert len(facts) == 50 and all(e.subject and e.subject in e.prompt for e in facts)
    check_disjoint(facts, counterfact(SHARED / "data" / "counterfact", part="neighbours", n=50))
