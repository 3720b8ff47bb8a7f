"""What an analysis runs on: a testbed for each seed, or a model and JSONL corpora of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from judging import Point
from running import own_models

import neuronforget as nf
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match, kl_gold, nll
from neuronforget.runs import content_key
from neuronforget.scores import Scores, runs_model
from neuronforget.testbed.facts import FIRST, LAST

#: Half the people of the default testbed, and half its batches, to afford five seeds.
PEOPLE, HALF = 50, partial(nf.testbed.Shape, batch=128)
#: Name -> kind of testbed and its settings. Two people's facts fit into 1% of the value vectors where norms are free,
#: into 12.5% where they are kept.
BEDS: dict[str, tuple[str, dict[str, Any]]] = {
    "grafted": ("grafted", {"forget_people": 5, "shape": HALF()}),
    "planted": ("planted", {"forget_people": 2, "shape": HALF(planted=5)}),
    "planted, norms kept": ("planted", {"forget_people": 2, "shape": HALF(planted=64, keep_norms=True)}),
    "ordinary": ("ordinary", {"forget_people": 5, "shape": HALF()}),
}
OWN = "own model"
SHARE = 0.05  # of each layer: what is found
SHORTLIST = 0.1
REMEMBERED = 10_000  # words of a vocabulary whose logits are kept, at most
MEASURED = 150  # retain examples, and half as many strangers


@runs_model
def shortlist_exact(lm: nf.LM, forget: nf.Corpus, retain: nf.Corpus | None = None, **settings: Any) -> Scores:
    """Two stages: the top tenth by grad_x_act, each ablated exactly; all others are put at 0."""
    first = nf.attribute(lm, forget, retain, score=nf.scores.grad_x_act, **settings)
    chosen = nf.select.top(first, SHORTLIST)
    return nf.scores.exact(lm, forget, retain, neurons=chosen, **settings)


def bed_of(kind: str, seed: int) -> nf.testbed.Testbed:
    """Make (or read) a testbed of `BEDS`."""
    made, settings = BEDS[kind]
    return nf.testbed.people(made, seed=seed, people=PEOPLE, progress=False, **settings)


class Remembered(torch.nn.Module):
    """A model that computes each batch once: the gold twin is asked the same questions beside every edit."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.asked, self.answers = model, {}

    def forward(self, **inputs: Any) -> Any:
        """Return what the model returns."""
        key = inputs["input_ids"].numpy().tobytes(), inputs["attention_mask"].numpy().tobytes()
        if key not in self.answers:
            self.answers[key] = self.asked(**inputs)
        return self.answers[key]


@dataclass(frozen=True, eq=False)
class Source:
    """A model and what it is to forget; `gold` never knew it, where there is such a model.

    `found` are the chosen neurons, `beside` what is measured beside forget and retain. Of a testbed `planted` are the
    neurons that were made to hold it, `truth` those of them that do, and `info` is what it says of itself.
    """

    lm: nf.LM
    forget: nf.Corpus
    retain: nf.Corpus
    found: nf.Neurons
    seed: int = 0
    gold: nf.LM | None = field(default=None, repr=False)
    planted: nf.Neurons | None = None
    truth: nf.Neurons | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    refusals: tuple[str, ...] = ("I don't know.",)
    measured: int = MEASURED  # retain examples
    most: int | None = None  # examples of forget, and of its other phrasings; None: all
    beside: Mapping[str, nf.Corpus] = field(default_factory=dict)

    @classmethod
    def bare(cls, bed: nf.testbed.Testbed, seed: int, **settings: Any) -> Source:
        """Take a testbed, no neurons found yet."""
        about = {"planted": bed.planted, "truth": bed.truth, "info": bed.info, "refusals": bed.refusals, **settings}
        return cls(bed.lm, bed.forget, bed.retain, none_of(bed.lm), seed, bed.gold, **about)

    @classmethod
    def of(cls, bed: nf.testbed.Testbed, seed: int, share: float = SHARE, **settings: Any) -> Source:
        """Find a testbed's neurons by two stages (grad_x_act, then exact)."""
        return cls.bare(bed, seed, **settings).finding(shortlist_exact, share)

    def finding(self, score: Any, share: float = SHARE) -> Source:
        """Choose neurons by a score, as much of each layer, shown as many retain as forget examples."""
        return replace(self, found=nf.select.per_layer(self.scored(score), share))

    def scored(self, score: Any) -> Scores:
        """Score every neuron, shown as many retain as forget examples."""
        return nf.attribute(self.lm, self.forget, self.shown, score=score, progress=False)

    @cached_property
    def shown(self) -> nf.Corpus:
        """As many retain examples as there are to forget."""
        return self.retain.head(len(self.forget))

    @cached_property
    def key(self) -> str:
        """A hash of models and corpora."""
        models = [lm.digest() for lm in self.references.values()]
        return content_key(models=models, corpora=[self.forget.digest(), self.retain.digest()])

    @property
    def places(self) -> dict[str, nf.Neurons | None]:
        """The found neurons, random ones (as many in each layer), and None for every parameter."""
        return {"found": self.found, "full": None, "random": self.found.random_like(self.seed)}

    @cached_property
    def corpora(self) -> dict[str, nf.Corpus]:
        """What is measured: forget, its phrasings that no edit sees (where there are some), retain, what is beside."""
        found = {"forget": self.forget, "unseen": self.forget.paraphrased(), "retain": self.retain}
        return {
            name: corpus.sample(self.measured if name == "retain" else self.most or len(corpus), self.seed)
            for name, corpus in found.items()
            if corpus is not None
        } | dict(self.beside)

    @cached_property
    def twin(self) -> nf.LM | None:
        """The gold twin, which on CPU computes each batch once for all edits, where its answers are small to keep."""
        if self.gold is None or self.gold.device.type != "cpu":
            return self.gold
        if len(self.gold.model.get_output_embeddings().weight) > REMEMBERED:
            return self.gold
        return nf.LM(Remembered(self.gold.model), self.gold.tokenizer)

    def values(self, lm: nf.LM) -> dict[str, dict[str, float]]:
        """Return corpus -> metric -> mean over its examples; KL where there is a gold twin."""
        wanted = [exact_match, nll, *([kl_gold] if self.gold is not None else [])]
        return {
            name: {m: float(v.mean()) for m, v in measure(lm, corpus, wanted, gold=self.twin).items()}
            for name, corpus in self.corpora.items()
        }

    def point(self, edit: nf.Edit | None, strength: float) -> Point:
        """Measure an edit at a strength (None: the model as it is)."""
        if edit is None or strength == 0:
            return {"strength": 0.0, **self.values(self.lm)}
        with edit.scaled(strength).on(self.lm) as edited:
            return {"strength": strength, **self.values(edited)}

    @property
    def references(self) -> dict[str, nf.LM]:
        """What edits are held against: the model as it is and, where there is one, its gold twin."""
        return {"untouched": self.lm, **({} if self.gold is None else {"gold": self.gold})}


def strangers(source: Source, count: int) -> nf.Corpus:
    """Return a testbed's retain questions asked of people whom neither model has met."""
    known = {example.subject for corpus in (source.forget, source.retain) for example in corpus}
    names = [name for a in FIRST for b in LAST if (name := f"{a} {b}") not in known]
    rows = [
        replace(e, prompt=e.prompt.replace(str(e.subject), names[(31 * i) % len(names)]), paraphrases=(), subject=None)
        for i, e in enumerate(source.retain.sample(count, source.seed + 2))
    ]
    return nf.Corpus(tuple(rows), "strangers")


def none_of(lm: nf.LM) -> nf.Neurons:
    """Return no neurons."""
    return nf.Neurons(frozenset(), tuple(site.layer for site in lm.sites), lm.shape[1])


def own_source(options: argparse.Namespace) -> Source | None:
    """Return a model of one's own with its two corpora, no neurons found yet; None where none was named.

    Raises SystemExit for a model without corpora, and corpora without a model.
    """
    given = options.forget is not None, options.retain is not None
    if options.model is not None and not all(given):
        raise SystemExit("--model needs --forget and --retain, JSONL files with prompt and answer")
    if options.model is None and any(given):
        raise SystemExit("--forget and --retain are of a model of one's own: name it by --model")
    if (own := own_models(options)) is None:
        return None
    lm, gold = own
    return Source(lm, nf.corpora.jsonl(options.forget), nf.corpora.jsonl(options.retain), none_of(lm), gold=gold)


def sources(options: argparse.Namespace, make: Callable[[int], Source] | None = None) -> Iterator[Source]:
    """Yield what to run on, a seed at a time: of a model of one's own the seed is that of trainings and controls.

    Neurons are found by grad_x_act alone there, by two stages in the grafted testbeds. `make` makes other ones.
    """
    if (own := own_source(options)) is None:
        for seed in options.seeds:
            yield make(seed) if make is not None else Source.of(bed_of("grafted", seed), seed)
        return
    own = own.finding(nf.scores.grad_x_act)
    for seed in options.seeds:
        yield replace(own, seed=seed)
