"""What an audit asks of: the untouched model, the edited one, and the gold twin where there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from neuronforget.corpora import Corpus, subjects_of
from neuronforget.edits import Edit
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import Metric, exact_match, probability
from neuronforget.models import LM
from neuronforget.results.intervals import RATES

#: The three that are asked. Every one is asked the same, so whatever a probe does to any model cancels.
UNTOUCHED, EDITED, GOLD = "untouched", "edited", "gold"
NEAR = 0.05  # of what the untouched model shows above the reference: less is called gone
DAMAGE = 0.1  # of the retain answers: losing more, and more than by chance, is called destruction
KNOWN = 0.2  # exact match of the untouched model from which on it is the measure; below, the answer's probability


@dataclass(frozen=True)
class Subject:
    """A model that is asked: within `on()` it computes as what its name says."""

    name: str
    lm: LM = field(repr=False)
    edit: Edit | None = field(default=None, repr=False)

    def on(self) -> AbstractContextManager[LM]:
        """Return the block in which the edit, if there is one, is on."""
        return self.edit.on(self.lm) if self.edit is not None else nullcontext(self.lm)


@dataclass(frozen=True)
class Reading:
    """What one probe read off one subject: a value of each example of a corpus.

    `sign` is 1 where more means that more is left of the knowledge, 0 where it is shown and not judged. `two_sided`:
    the right answer is compared with wrong ones, so that less than the gold twin singles it out too; -1: less alone is
    judged. `floor` is what a model that knows nothing would give, an example, where there is no gold twin to say so.
    `least` is the share of what was known, above the reference, from which on something counts. `rate`: every value
    lies between 0 and 1, so that no interval goes beyond.
    """

    probe: str
    subject: str
    corpus: str
    metric: str
    values: np.ndarray
    units: np.ndarray
    sign: int = 1
    floor: np.ndarray | None = None
    two_sided: bool = False
    least: float = NEAR
    rate: bool = False


@dataclass(frozen=True)
class Case:
    """The subjects and the corpora of one audit; `derived` are questions that take a forgotten fact.

    `kept` is a folder for what was measured. `curves` is what probes leave to be drawn, name -> subject -> values;
    `skipped` what they could not ask, and why.
    """

    subjects: tuple[Subject, ...]
    forget: Corpus
    retain: Corpus
    batch_size: int = 64
    seed: int = 0
    derived: Corpus | None = None
    kept: Path | None = None
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def subject(self, name: str) -> Subject:
        """Return the subject of that name."""
        return next(subject for subject in self.subjects if subject.name == name)

    @property
    def gold(self) -> Subject | None:
        """The twin that never knew, if there is one."""
        return next((subject for subject in self.subjects if subject.name == GOLD), None)

    @property
    def corpora(self) -> dict[str, Corpus]:
        """Forget and retain, and the phrasings of forget that the erasure has not seen, if there are any."""
        unseen = self.forget.paraphrased()
        return {"forget": self.forget, **({"forget unseen": unseen} if unseen else {}), "retain": self.retain}

    def metric(self) -> Metric:
        """Return exact match, or the answer's probability where the untouched model writes too few of them."""
        first = self.subjects[0]
        with first.on() as lm:
            hits = measure(lm, self.forget, [exact_match], batch_size=self.batch_size, kept=self.kept)["exact_match"]
        known = float(np.nanmean(hits))
        return exact_match if known >= KNOWN else probability


#: What goes through subjects with one question. To add one: write a function, and put it into `PROBES`.
Probe = Callable[[Case, Metric], Iterable[Reading]]


class NotTested(Exception):
    """Why a probe cannot be asked here: said in the audit, never left out in silence."""


def asked(
    case: Case, who: str, lm: LM, probe: str, corpora: Mapping[str, Corpus], metric: Metric, **about: Any
) -> list[Reading]:
    """Return the values of a metric on each corpus, of a model that computes as the subject `who` does."""
    name, found = metric.__name__, []
    for key, corpus in corpora.items():
        values = measure(lm, corpus, [metric], batch_size=case.batch_size, kept=case.kept)[name].astype(float)
        given = {"sign": int(key != "retain"), "rate": name in RATES, **about}
        found.append(Reading(probe, who, key, name, values, subjects_of(corpus), **given))
    return found


def plain(case: Case, metric: Metric) -> Iterator[Reading]:
    """Ask as the forget corpus asks, and in its other phrasings: what is left to see.

    Without a gold twin the floor of exact match is what the most common answer of the other examples scores.
    """
    for subject in case.subjects:
        with subject.on() as lm:
            for found in asked(case, subject.name, lm, "asked", case.corpora, metric):
                guess = constant(case.corpora[found.corpus]) if metric is exact_match else np.zeros(len(found.values))
                yield replace(found, floor=guess)


def consequences(case: Case, metric: Metric) -> Iterator[Reading]:
    """Ask what follows from forgotten facts: a question that takes one, and is answered, has it.

    Without a gold twin the floor of exact match is what the most common answer of the other examples scores.
    """
    if case.derived is None:
        raise NotTested("no questions whose answer needs a forgotten fact were given (derived=)")
    guess = constant(case.derived) if metric is exact_match else np.zeros(len(case.derived))
    for subject in case.subjects:
        with subject.on() as lm:
            yield from asked(case, subject.name, lm, "consequences", {"derived": case.derived}, metric, floor=guess)


def constant(corpus: Corpus) -> np.ndarray:
    """Return what the most common answer of a corpus' other examples scores on each of its examples.

    The own answer is left out: with it the only answer of a corpus of one would be guessed. Of answers that are equally
    common one is guessed by chance, so that the score is a share.
    """
    counts = Counter(example.answer for example in corpus)
    levels = Counter(counts.values())  # how many answers are given so often
    most, *less = sorted(levels, reverse=True)
    found = []
    for example in corpus:
        own = counts[example.answer] - 1
        top = (less[0] if less else 0) if own + 1 == most and levels[most] == 1 else most
        found.append(0.0 if own == 0 or own < top else 1.0 if own > top else 1 / (1 + levels[top]))
    return np.array(found)
