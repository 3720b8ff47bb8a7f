"""Scorers of written answers, each against cases worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from neuronforget.errors import InputError
from neuronforget.metrics.text import SCORERS, contains, exact, f1, normalised, option, rouge_l, rouge_l_f1


def test_normalised_as_squad_does() -> None:
    assert normalised("  The  U.S.A., a  place! ") == "usa place"


@pytest.mark.parametrize(
    ("scorer", "text", "answers", "value"),
    [
        (exact, "the Oslo.", ["Bergen", "Oslo"], 1.0),
        (exact, "Oslo, Norway", ["Oslo"], 0.0),
        (contains, "It is Oslo, I think", ["Oslo"], 1.0),
        (contains, "Oslofjord", ["Oslo"], 0.0),
        (f1, "in Oslo Norway", ["Oslo"], 2 * (1 / 3) / (1 / 3 + 1)),
        (f1, "red red fish", ["red fish"], 2 * (2 / 3) / (2 / 3 + 1)),
        (rouge_l, "it is a new big town", ["a big town hall"], 3 / 4),
        (rouge_l, "towns", ["town"], 1.0),  # stemmed
        (rouge_l, "town big", ["big town"], 1 / 2),
        (rouge_l_f1, "it is a new big town", ["a big town hall"], 2 * (3 / 6) * (3 / 4) / (3 / 6 + 3 / 4)),
        (rouge_l, "] ) >", ["] )"], 1.0),  # no letter: characters are its words
        (rouge_l, "Осло город", ["Осло"], 1.0),
        (option, "(B)", ["B"], 1.0),
        (option, "B) the second, as A is wrong", ["(B)"], 1.0),
        (option, "The answer is C.", ["C"], 1.0),
        (option, "Both", ["B"], 0.0),
        (option, "A football match", ["A"], 0.0),
        (option, "b", ["(B)"], 1.0),
        (option, "valid", ["valid"], 1.0),
        (option, "invalid", ["valid"], 0.0),
        (option, "No", ["No"], 1.0),
        (option, "The answer is: B", ["(B)"], 1.0),
        (option, "The correct option is B.", ["(B)"], 1.0),
        (option, "A. Lincoln", ["A. Schwarzenegger"], 0.0),
        (option, ")", ["] ] }"], 0.0),
        (option, "] ] }", ["] ] }"], 1.0),
        (exact, "24", ["-24"], 0.0),
        (exact, "\u221224", ["-24"], 1.0),
        (exact, "35", ["3.5"], 0.0),
        (exact, "3.5.", ["3.5"], 1.0),
        (exact, "1024", ["1,024"], 1.0),
        (exact, "1990-1995", ["1990\u20131995".replace("\u2013", "-")], 1.0),
        (contains, "It was -3 degrees", ["3"], 0.0),
        (contains, "The correct answer is (A).", ["(A)"], 1.0),
        (contains, "The correct answer is (B).", ["(B)"], 1.0),
        (contains, "It is a dog", ["A"], 0.0),
        (exact, 'the "Foo"', ["Foo"], 1.0),
    ],
)
def test_by_hand(scorer: object, text: str, answers: list[str], value: float) -> None:
    assert scorer(text, answers) == pytest.approx(value)  # type: ignore[operator]


@settings(max_examples=200, deadline=None)
@given(*[st.lists(st.sampled_from(["town", "towns", "big", "a", "Oslo,", "3.5", "-", "é"]), max_size=12)] * 2)
def test_rouge_l_is_rouge_scores(said: list[str], right: list[str]) -> None:
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(" ".join(right), " ".join(said))["rougeL"]
    if any(word.isascii() and word != "-" for word in right):
        assert rouge_l(" ".join(said), [" ".join(right)]) == theirs.recall
        assert rouge_l_f1(" ".join(said), [" ".join(right)]) == pytest.approx(theirs.fmeasure, abs=1e-15)


@pytest.mark.parametrize("name", SCORERS)
def test_right_answers_score_one_nothing_scores_nothing(name: str) -> None:
    for answer in ("Oslo", "(B)", "a red fish", "1,024", "The The", "A+", "] )", "Осло", "東京"):
        assert SCORERS[name](answer, ["something else entirely", answer]) == 1
        assert SCORERS[name]("", [answer]) == 0 and SCORERS[name](" \n", [answer]) == 0
    for none in ([], "Oslo"):
        with pytest.raises(InputError, match="a list of texts"):
            SCORERS[name]("Oslo", none)
