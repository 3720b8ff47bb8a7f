"""Is what a model wrote the answer? One number from 0 to 1 for a text and the answers that count as right.

Where several answers are right, a text is scored by the one it fits best. `normalised` (lower case, no punctuation,
no English article, single spaces) is SQuAD's and TriviaQA's rule (Rajpurkar et al. 2016, arXiv:1606.05250), but that
a number keeps its sign and its point, and "a" is an article before a word alone: it may be an option.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from neuronforget.errors import InputError

#: A function of what was written and of the right answers, 0 to 1.
Scorer = Callable[[str, Sequence[str]], float]
_ARTICLES = re.compile(r"\b(a|an|the)\b(?=\s+[^\w\s]*\w)")
_NUMBER = r"(?<![\w.])-(?=\.?\d)|(?<=\d)\.(?=\d)"  # a sign, a decimal point
_PUNCTUATION = re.compile(f"(?!{_NUMBER})[{re.escape(string.punctuation)}]")
_OPTION = re.compile(r"\s*\(?([A-Za-z])[).]?\s*")
_BEFORE = r"(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:(?:answer|option|choice)\s*(?:is)?\s*:?\s*)?"
_LETTER = re.compile(rf"\s*{_BEFORE}\(?([A-Za-z])(?:\)|[.:,]|\s*$)", re.IGNORECASE)


def exact(text: str, answers: Sequence[str]) -> float:
    """1 where the text is an answer, normalised."""
    return _best(lambda said, right: float(said == right), text, answers, normalised)


def contains(text: str, answers: Sequence[str]) -> float:
    """1 where an answer stands in the text, as whole words, normalised: more text is no mistake."""
    return _best(lambda said, right: float(f" {right} " in f" {said} "), text, answers, normalised)


def f1(text: str, answers: Sequence[str]) -> float:
    """F1 of the words of text and answer, normalised, each as often as it stands there."""
    return _best(_word_f1, text, answers, normalised)


def rouge_l(text: str, answers: Sequence[str]) -> float:
    """ROUGE-L recall: the share of an answer's words that stand in the text in order (rouge-score, stemmed).

    It does not fall with what else is written: print the length of texts beside it, and what a constant scores.
    """
    return _best(lambda said, right: _rouge(right, said)[0], text, answers)


def rouge_l_f1(text: str, answers: Sequence[str]) -> float:
    """ROUGE-L F1 (rouge-score, stemmed)."""
    return _best(lambda said, right: _rouge(right, said)[1], text, answers)


def option(text: str, answers: Sequence[str]) -> float:
    """1 where the first thing said is the letter of an answer, "B", "(B)" or "The answer is: B".

    An answer that is no letter by itself is compared as by `exact`.
    """
    return _best(_chosen, text, answers)


SCORERS: dict[str, Scorer] = {
    "exact": exact, "contains": contains, "f1": f1, "rouge_l": rouge_l, "rouge_l_f1": rouge_l_f1, "option": option,
}  # fmt: skip


@lru_cache(100_000)
def normalised(text: str) -> str:
    """Return the text in lower case without punctuation and articles, words one space apart."""
    return " ".join(_PUNCTUATION.sub("", _ARTICLES.sub(" ", text.lower().replace("\u2212", "-"))).split())


def _best(score: Callable[[str, str], float], text: str, answers: Sequence[str], shape: Any = str.strip) -> float:
    if isinstance(answers, str) or not answers:
        raise InputError(f"right answers must be a list of texts, one at least; found {answers!r}")

    def one(answer: str) -> float:
        form = shape if shape(answer) else _plain  # ")" is nothing but punctuation
        said = form(text)
        return score(said, form(answer)) if said else 0.0

    return max(one(answer) for answer in answers)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _word_f1(said: str, right: str) -> float:
    here, there = said.split(), right.split()
    common = sum((Counter(here) & Counter(there)).values())
    return 2 * common / (len(here) + len(there)) if common else 0.0


def _chosen(said: str, right: str) -> float:
    letter, found = _OPTION.fullmatch(right), _LETTER.match(said)
    if letter is None:
        return exact(said, [right])
    return float(found is not None and found[1].upper() == letter[1].upper())


def _rouge(right: str, said: str) -> tuple[float, float]:
    """Return ROUGE-L's recall and F1: how many words of both stand there in the same order.

    rouge-score knows letters of English and digits alone: where an answer has none, its characters are the words.
    """
    words = _stems if re.search("[a-z0-9]", right.lower()) else _characters
    there, here = words(right), words(said)
    common = longest_common(there, here)
    return common / max(len(there), 1), 2 * common / max(len(there) + len(here), 1)


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a bit for each word of `one` (Hyyro 2004): quicker than a
    table of all pairs, which rouge-score fills."""
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    every = left = (1 << len(one)) - 1  # bits that are 0 are matched
    for word in other:
        met = left & places.get(word, 0)
        left = (left + met | left - met) & every
    return (every ^ left).bit_count()


@lru_cache(100_000)
def _stems(text: str) -> list[str]:
    return _tokenizer().tokenize(text)


@cache
def _tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@lru_cache(100_000)
def _characters(text: str) -> list[str]:
    return list("".join(text.lower().split()))
