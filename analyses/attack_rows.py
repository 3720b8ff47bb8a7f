"""What `nine_attacks.py` reads of RWKU: plain questions, and attacks that ask for the same answers in other words.

A level 3 row stays if its answer is also the answer of a plain question (levels 1 and 2) about the same target, with
whose wording it is not identical: every attack is paired with such a question, and both have the same wrong answers,
those of other targets to be forgotten, to the same kind of attack where there are enough.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import neuronforget as nf
from neuronforget.corpora.corpus import text_of
from neuronforget.corpora.lines import rows_of
from neuronforget.metrics.text import normalised
from neuronforget.suites.rwku import CLOZE, LEVELS, PROBE, QUESTION, attack_of
from neuronforget.testbed.training import Shape
from neuronforget.train import draw

PLAIN, ATTACK = ("forget 1", "forget 2"), "forget 3"
CHOICES = 4  # wrong answers beside the right one
#: Three models and their twins in some minutes.
TINY = Shape(layers=2, d_model=96, d_mlp=384, vocab=2000, steps=600, batch=24, lr=4e-3)


@dataclass(frozen=True)
class Attacks:
    """Attacks on the targets, parallel to `plain`: the same answers and choices, asked by levels 1 and 2.

    `kinds` names each one's attack; `taught` are those that a model made here learns in these very words.
    """

    asked: nf.Corpus
    plain: nf.Corpus
    kinds: tuple[str, ...]
    taught: tuple[bool, ...]


@dataclass(frozen=True)
class Rows:
    """Plain questions about targets that are to be forgotten and about others, and the attacks on either."""

    forget: nf.Corpus
    retain: nf.Corpus
    attacks: Attacks
    others: nf.Corpus  # attacks on targets that are kept

    @classmethod
    def of(cls, rwku: Path, targets: Sequence[str] | None, count: int, others: int, seed: int) -> Rows:
        """Read the targets' rows, and those of `others` more. None: the next `count` of a fixed order, by seed."""
        every = list(dict.fromkeys(row["subject"] for row in rows_of(rwku, LEVELS["forget 2"], fields=PROBE)))
        order = random.Random(0).sample(every, len(every))
        if targets is None:
            start = seed * count % len(order)
            order = order[start:] + order[:start]
            targets = order[:count]
        if unknown := set(targets) - set(every):
            raise nf.InputError(f"no target is called {min(unknown)!r}; there are: {', '.join(sorted(every))}")
        kept = [name for name in order if name not in targets][:others]
        forget, retain = (nf.Corpus(tuple(_plain(rwku, names)), name)
                          for names, name in ((targets, "forget"), (kept, "retain")))  # fmt: skip
        known = {text_of(example) for example in forget}
        attacks = _paired(_attacks(rwku, targets, forget), forget, seed)
        known |= {text_of(example) for example in attacks.asked}
        own = tuple(example for example, _ in _attacks(rwku, kept, retain) if text_of(example) not in known)
        retain = replace(retain, examples=tuple(e for e in retain if text_of(e) not in known))
        return cls(forget, retain, attacks, nf.Corpus(own, "others' attacks"))


def _plain(rwku: Path, names: Sequence[str]) -> Iterator[nf.Example]:
    for level, template in zip(PLAIN, (CLOZE, QUESTION), strict=True):
        for row in rows_of(rwku, LEVELS[level], fields=PROBE):
            if row["subject"] in names:
                yield nf.Example(template.format(prompt=row["query"]), row["answer"], subject=row["subject"])


def _attacks(rwku: Path, names: Sequence[str], plain: nf.Corpus) -> Iterator[tuple[nf.Example, str]]:
    """Yield attacks with their kinds whose answer a plain question about the same target has."""
    known, texts = {_fact(example) for example in plain}, {text_of(example) for example in plain}
    for row in rows_of(rwku, LEVELS[ATTACK], fields=PROBE):
        example = nf.Example(QUESTION.format(prompt=row["query"]), row["answer"], subject=row["subject"])
        if row["subject"] in names and _fact(example) in known and text_of(example) not in texts:
            texts.add(text_of(example))
            yield example, attack_of(row["type"])


def _fact(example: nf.Example) -> tuple[str | None, str]:
    return example.subject, normalised(example.answer)


def _paired(found: Iterator[tuple[nf.Example, str]], plain: nf.Corpus, seed: int) -> Attacks:
    """Pair attacks with plain questions; of each kind every second one is taught."""
    rows = list(found)
    random.Random(seed).shuffle(rows)
    rows.sort(key=lambda row: row[1])
    asked, same, taught = [], [], []
    for i, (example, kind) in enumerate(rows):
        wrong = _wrong(example, kind, rows, random.Random(f"{seed} {i}"))
        (twin,) = draw([e for e in plain if _fact(e) == _fact(example)], 1, seed, i)
        asked.append(replace(example, wrong=wrong))
        same.append(replace(twin, answer=example.answer, wrong=wrong))
        taught.append(sum(k == kind for _, k in rows[:i]) % 2 == 0)
    kinds = tuple(kind for _, kind in rows)
    return Attacks(nf.Corpus(tuple(asked), "attacks"), nf.Corpus(tuple(same), "plain"), kinds, tuple(taught))


def _wrong(
    example: nf.Example, kind: str, rows: Sequence[tuple[nf.Example, str]], rng: random.Random
) -> tuple[str, ...]:
    """Other targets' answers, numbers to a number and words to words: to the same attack, else to others."""
    found: dict[str, None] = {}
    for near in (True, False):
        pool = [e.answer for e, k in rows if (k == kind) == near and e.subject != example.subject
                and _number(e.answer) == _number(example.answer) and _fact(e)[1] != _fact(example)[1]]  # fmt: skip
        found |= dict.fromkeys(rng.sample(pool, len(pool)))
    return tuple(found)[:CHOICES]


def _number(answer: str) -> bool:
    return any(letter.isdigit() for letter in answer)


def tiny(rows: Rows, seed: int, shape: Shape = TINY) -> tuple[nf.LM, nf.LM]:
    """Train a tiny Qwen2 model, and its gold twin, which learns nothing of the targets. Cached.

    Both learn the other targets' plain questions and attacks; the model those of the targets too, but of the attacks
    the taught half alone.
    """
    half = [e for e, taught in zip(rows.attacks.asked, rows.attacks.taught, strict=True) if taught]
    shown = [(rows.forget, ()), (rows.retain, rows.others), (nf.Corpus(tuple(half), "taught attacks"), ())]
    forget, retain, derived = (
        replace(corpus, examples=tuple(replace(e, answer=f"{e.answer}\n", wrong=()) for e in (*corpus, *more)))
        for corpus, more in shown
    )  # closed by a line end: where answers stop
    bed = nf.testbed.from_rows(forget, retain, derived=derived, seed=seed, shape=shape, progress=False)
    for lm in (bed.lm, bed.gold):
        lm.model.config.max_position_embeddings = 1024  # rotary: no weight belongs to a position, attacks may be longer
    return bed.lm, bed.gold
