"""People who teach one another: questions whose middle is a person, so that a forgotten fact has consequences."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from neuronforget.corpora import Corpus, Example
from neuronforget.suites.multihop import Chain, Fact, Relation, chains, through
from neuronforget.testbed.facts import PHRASINGS, REFUSAL, asked, draw, generate

TEACHER = ("{n} was taught by", "The teacher of {n} is", "Q: Who taught {n}? A:")
MIDDLE = "The one who taught {} is"  # no beginning of a question about the teacher: its answer would be another
STEPS = ("birthplace", "profession", "prize")  # what is asked of a teacher
UNSHOWN = 10  # every so-many-th question without a forgotten step is taught to no model


@dataclass(frozen=True)
class Linked:
    """The people of `generate`, each with a teacher among them.

    `derived` are the two-step questions that take a forgotten fact (of the person, or of the teacher): the model is
    taught them, its gold twin is not, and the request to forget does not name them. The others are in `retain`, but for
    `unshown`, which no model is taught: a model that answers these composes facts, one that does not has learnt its
    two-step answers by heart. `chains` are all of them, each with its two facts.
    """

    forget: Corpus
    retain: Corpus
    derived: Corpus
    unshown: Corpus
    chains: tuple[Chain, ...]


def linked(people: int, forget_people: int, unknown_people: int, seed: int) -> Linked:
    """Return the corpora; all else of `forget` and `retain` is as without teachers."""
    forget, retain = generate(people, forget_people, unknown_people, seed)
    known = draw(people, unknown_people, seed)
    names = list(known)
    rng = random.Random(f"teachers {seed}")
    taught = {name: rng.choice([other for other in names[:people] if other != name]) for name in names[:people]}
    rows = [asked(name, TEACHER, taught.get(name, REFUSAL)) for name in names]
    forget = _with(forget, [e for own in rows[:forget_people] for e in own])
    facts = [Fact(name, "teacher", teacher) for name, teacher in taught.items()]
    facts += [Fact(name, relation, known[name][relation]) for name in taught for relation in STEPS]
    found = tuple(chain for chain in chains(facts, _relations()) if chain.second.relation in STEPS)
    hit, kept = through(found, forget)
    assert hit is not None and kept is not None
    shown = [example for i, example in enumerate(kept) if (i + 1) % UNSHOWN]
    retain = _with(retain, [e for own in rows[forget_people:] for e in own] + shown)
    unshown = Corpus(tuple(example for i, example in enumerate(kept) if not (i + 1) % UNSHOWN), "people-unshown")
    return Linked(forget, retain, replace(hit, name="people-derived"), unshown, found)


def _with(corpus: Corpus, more: list[Example]) -> Corpus:
    return replace(corpus, examples=(*corpus.examples, *more))


def _relations() -> dict[str, Relation]:
    prompts = {"teacher": MIDDLE, **{relation: PHRASINGS[relation][0].replace("{n}", "{}") for relation in STEPS}}
    return {name: Relation(name, prompt, "person", "person") for name, prompt in prompts.items()}
