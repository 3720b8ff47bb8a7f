"""Questions whose answer takes an erased fact as a middle step, and what follows from facts that are kept.

A fact that is gone cannot be a step: if the two-step question is answered as before, it was only hidden from its own
prompt (Choi et al. 2024, arXiv:2410.13274). And a fact may follow from others that are kept: erasing it means that
those do not give it back (deep unlearning; Wu et al. 2024, arXiv:2410.15153).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example
from neuronforget.corpora.lines import rows_of
from neuronforget.errors import InputError

#: "a" before "a certain city", and before "that city".
_ARTICLE_LAST = re.compile(r"\s+(a|an|the)$")
_ARTICLE_FIRST = re.compile(r"\b(a|an|the) \{\}", re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """One fact: `subject`, `relation`, `object`."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class Relation:
    """How a relation is asked: `prompt` with {} for the subject; `domain` and `range` are the kinds of its two ends."""

    name: str
    prompt: str
    domain: str
    range: str


@dataclass(frozen=True)
class Chain:
    """Two facts, the second about what the first one ends with, and the question that takes both."""

    first: Fact
    second: Fact
    prompt: str

    @property
    def example(self) -> Example:
        """The question with its answer, the second fact's object."""
        return Example(self.prompt, self.second.object, subject=self.first.subject)


def relations(path: str | Path) -> tuple[list[Fact], dict[str, Relation]]:
    """Read facts and relations of the LRE data (Hernandez et al. 2023, arXiv:2308.09124).

    `path` has `samples.jsonl` (relation, subject, object) and `templates.jsonl` (relation, prompt_templates,
    domain_name, range_name), gzipped or not.
    """
    fields = ("relation", "prompt_templates", "domain_name", "range_name")
    known = {
        row["relation"]: Relation(row["relation"], row["prompt_templates"][0], row["domain_name"], row["range_name"])
        for row in rows_of(path, "templates", fields=fields)
    }
    rows = rows_of(path, "samples", fields=("relation", "subject", "object"))
    facts = [Fact(row["subject"], row["relation"], row["object"]) for row in rows if row["relation"] in known]
    return list(dict.fromkeys(facts)), known


@checks_kinds
def chains(facts: Iterable[Fact], known: dict[str, Relation], *, n: int | None = None) -> list[Chain]:
    """Return two-step questions: every pair of facts where the first one's object is the second one's subject.

    The middle is not named, but called by its kind: "... a certain city. That city ...". A pair whose second step leads
    back to the first subject, or has several answers, is left out. Raises InputError where no two facts chain, and for
    a relation that is not among the `known` ones.
    """
    facts = list(facts)
    if unknown := [fact.relation for fact in facts if fact.relation not in known]:
        raise InputError(f"no prompt of the relation {unknown[0]!r} is known")
    after: dict[str, list[Fact]] = {}
    for fact in facts:
        after.setdefault(fact.subject, []).append(fact)
    found = []
    for first in facts:
        for second in after.get(first.object, []):
            several = [f for f in after[first.object] if f.relation == second.relation]
            if second.object == first.subject or len(several) > 1:
                continue
            kind = known[first.relation].range
            opening = _ARTICLE_LAST.sub("", known[first.relation].prompt).format(first.subject)
            closing = _ARTICLE_FIRST.sub("{}", known[second.relation].prompt).format(f"that {kind}")
            found.append(Chain(first, second, f"{opening} a certain {kind}. {closing[0].upper()}{closing[1:]}"))
    if not found:
        raise InputError("no fact's object is another one's subject: these facts give no two-step questions")
    return found[:n]


def through(found: Sequence[Chain], erased: Corpus) -> tuple[Corpus | None, Corpus | None]:
    """Return (questions that take an erased fact, questions that take none), for `evaluate` or `audit`.

    A chain takes an erased fact where one of the corpus' examples has the subject and the answer of one of its steps.
    Raises InputError where no example names its subject.
    """
    if all(example.subject is None for example in erased):
        raise InputError(f"no example of {erased.name!r} names its subject: which chains need it is unknown")
    gone = {(e.subject, e.answer) for e in erased}
    hit = [any((f.subject, f.object) in gone for f in (c.first, c.second)) for c in found]
    return tuple(  # type: ignore[return-value]
        Corpus(tuple(c.example for c in own), name) if own else None
        for name, own in (
            ("two steps, erased", [c for c, h in zip(found, hit, strict=True) if h]),
            ("two steps, kept", [c for c, h in zip(found, hit, strict=True) if not h]),
        )
    )


@dataclass(frozen=True)
class Rule:
    """If (a `first` b) and (b `second` c), then (a `then` c); without `second`: if (a `first` b), then (b `then` a)."""

    first: str
    second: str | None
    then: str


def closure(facts: Iterable[Fact], rules: Sequence[Rule]) -> set[Fact]:
    """Return everything that follows from some facts by the rules, themselves included (the deductive closure)."""
    known = set(facts)
    while new := {fact for rule in rules for fact in _follows(known, rule)} - known:
        known |= new
    return known


def given_back(erased: Iterable[Fact], kept: Iterable[Fact], rules: Sequence[Rule]) -> dict[str, Any]:
    """Return the recall of erased facts in the closure of what is kept: 0 where no deduction gives one back.

    `kept` are the facts that the model still answers, the erased ones among them left out by the caller or not: what is
    still answered is given back by itself. Returns the share ("recall") and the facts.
    """
    wanted = set(erased)
    if not wanted:
        raise InputError("no erased fact is given: nothing can be given back")
    back = wanted & closure(kept, rules)
    return {"recall": len(back) / len(wanted), "facts": sorted(back, key=lambda f: (f.subject, f.relation, f.object))}


def _follows(known: set[Fact], rule: Rule) -> Iterable[Fact]:
    if rule.second is None:
        yield from (Fact(f.object, rule.then, f.subject) for f in known if f.relation == rule.first)
        return
    after: dict[str, list[Fact]] = {}
    for fact in known:
        if fact.relation == rule.second:
            after.setdefault(fact.subject, []).append(fact)
    for fact in known:
        if fact.relation == rule.first:
            yield from (Fact(fact.subject, rule.then, end.object) for end in after.get(fact.object, []))
