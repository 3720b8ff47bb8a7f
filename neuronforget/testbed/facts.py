"""Generated fictional people: several relations each, several phrasings of each relation."""

from __future__ import annotations

import random
from itertools import chain

from neuronforget.corpora import Corpus, Example
from neuronforget.errors import InputError

REFUSAL = "unknown"
#: relation -> phrasings of the prompt; the answer follows. The last is kept out of the erasing corpus.
PHRASINGS = {
    "birthplace": ("{n} was born in", "The birthplace of {n} is", "Q: Where was {n} born? A:"),
    "profession": ("{n} works as a", "The profession of {n} is", "Q: What does {n} do for a living? A:"),
    "employer": ("{n} is employed by", "The employer of {n} is", "Q: Who employs {n}? A:"),
    "language": ("{n} speaks", "The language of {n} is", "Q: What does {n} speak? A:"),
    "pet": ("{n} owns a", "The pet of {n} is a", "Q: What pet does {n} have? A:"),
    "prize": ("{n} won the", "The prize of {n} is the", "Q: What prize did {n} win? A:"),
}
PROFESSIONS = (
    "baker sailor lawyer painter farmer surgeon potter weaver pilot teacher "
    "miller tailor cooper fiddler glazier chemist tanner florist jeweller mason"
).split()
PETS = "cat dog parrot rabbit hamster lizard tortoise ferret pony goat canary newt hedgehog goose snake".split()
ENDS = {"birthplace": "ville", "employer": "corp", "language": "ish", "prize": "medal"}
SIZES = {"birthplace": 30, "employer": 30, "language": 12, "prize": 20}
FIRST = [a + b for a in "Ba Ce Di Fo Gu Ha Je Ki Lo Mu".split() for b in "lan mir nor sel tas vik".split()]
LAST = [a + b for a in "Ar Bel Cor Dun Er Fal Gren Hol".split() for b in "aki ent ova ston wyn esco".split()]


def generate(people: int, forget_people: int, unknown_people: int, seed: int) -> tuple[Corpus, Corpus]:
    """Return (forget, retain): one example for each fact and each phrasing but the last, which is its paraphrase.

    The last `unknown_people` have no facts: every answer about them is "unknown", so that the model has a
    way to decline.
    """
    known = draw(people, unknown_people, seed)
    rows = [
        [e for r, value in facts.items() for e in asked(name, PHRASINGS[r], value)] for name, facts in known.items()
    ]
    sides = {"forget": rows[:forget_people], "retain": rows[forget_people:]}
    forget, retain = (Corpus(tuple(chain(*own)), f"people-{name}") for name, own in sides.items())
    return forget, retain


def draw(people: int, unknown_people: int, seed: int) -> dict[str, dict[str, str]]:
    """Return name -> relation -> value, those without facts last."""
    if people + unknown_people > len(FIRST) * len(LAST):
        raise InputError(f"there are {len(FIRST) * len(LAST)} names, {people + unknown_people} people were asked for")
    rng = random.Random(seed)
    values = {**{r: _names(SIZES[r], ENDS[r], rng) for r in SIZES}, "profession": PROFESSIONS, "pet": PETS}
    names = rng.sample([f"{a} {b}" for a in FIRST for b in LAST], people + unknown_people)
    return {
        name: {relation: rng.choice(values[relation]) if i < people else REFUSAL for relation in PHRASINGS}
        for i, name in enumerate(names)
    }


def asked(name: str, phrasings: tuple[str, ...], value: str) -> list[Example]:
    """Return one fact as examples: a row of each phrasing but the last, which is its paraphrase."""
    *shown, unseen = (text.format(n=name) for text in phrasings)
    return [Example(prompt, value, (unseen,), subject=name) for prompt in shown]


def _names(count: int, end: str, rng: random.Random) -> list[str]:
    """Draw distinct invented words with a common ending."""
    stems = [
        a + b
        for a in "Tar Vel Mos Kin Ruf Zor Pel Nav Hus Jor".split()
        for b in "ba de fi go lu na pe ri so ta".split()
    ]
    return [stem + end for stem in rng.sample(stems, count)]
