"""What an analysis runs on: a grafted testbed for each seed, or a model and JSONL corpora of one's own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from erase_study import MEASURED, SHARE, Remembered
from where_knowledge_lives import BEDS, PEOPLE, keep, shortlist_exact

import neuronforget as nf
from neuronforget.comparison import sampled
from neuronforget.measuring import measure
from neuronforget.metrics import exact_match, kl_gold, nll

DAMAGE = 0.05  # rise of the retain loss, nats per answer token

Values = dict[str, dict[str, float]]


class Seeded(Protocol):
    """What a run is made of, by its seed."""

    @property
    def seed(self) -> int:
        """The seed under which the run is kept."""
        ...


S = TypeVar("S", bound=Seeded)


def studied(
    about: str,
    name: str,
    run: Callable[[Source, dict[str, Any]], Iterator[str]],
    tables: Callable[[Sequence[Any]], str],
    picture: Callable[[Sequence[Any]], str],
    drawn: str,
) -> None:
    """Run an analysis on the sources that `asking` asks for (see `each`)."""
    options = asking(about).parse_args()
    each(options, sources(options), name, run, tables, picture, drawn)


def each(
    options: argparse.Namespace,
    found: Iterable[S],
    name: str,
    run: Callable[[S, dict[str, Any]], Iterator[str]],
    tables: Callable[[Sequence[Any]], str],
    picture: Callable[[Sequence[Any]], str],
    drawn: str,
) -> None:
    """Run an analysis on every seed: OUT/NAME as the work goes on, then OUT/tables.md and the picture OUT/DRAWN."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / name
    seeds: dict[str, Any] = json.loads(path.read_text())["seeds"] if path.is_file() else {}
    with in_one_line():
        for source in found:
            for done in run(source, seeds.setdefault(str(source.seed), {})):
                keep(path, seeds=seeds)
                print(f"seed {source.seed}: {done}", flush=True)
    chosen = [seeds[str(seed)] for seed in options.seeds]
    text = tables(chosen)
    (options.out / "tables.md").write_text(text)
    (options.out / drawn).write_text(picture(chosen))
    print(text)


@dataclass(frozen=True, eq=False)
class Source:
    """A model and what it is to forget; `gold` never knew it, where there is such a model."""

    lm: nf.LM
    forget: nf.Corpus
    retain: nf.Corpus
    found: nf.Neurons
    seed: int = 0
    gold: nf.LM | None = field(default=None, repr=False)
    truth: nf.Neurons | None = None
    refusals: tuple[str, ...] = ("I don't know.",)
    measured: int = MEASURED  # retain examples
    most: int | None = None  # examples of forget, and of its other phrasings; None: all

    @classmethod
    def of(cls, bed: nf.testbed.Testbed, seed: int, measured: int = MEASURED, share: float = SHARE) -> Source:
        """Find a testbed's neurons by two stages (grad_x_act, then exact)."""
        shown = bed.retain.head(len(bed.forget))
        scores = nf.attribute(bed.lm, bed.forget, shown, score=shortlist_exact, progress=False)
        neurons = nf.select.per_layer(scores, share)
        return cls(bed.lm, bed.forget, bed.retain, neurons, seed, bed.gold, bed.truth, bed.refusals, measured)

    @property
    def places(self) -> dict[str, nf.Neurons | None]:
        """The found neurons, random ones (as many in each layer), and None for every parameter."""
        return {"found": self.found, "full": None, "random": self.found.random_like(self.seed)}

    @cached_property
    def corpora(self) -> dict[str, nf.Corpus]:
        """What is measured: forget, its phrasings that no edit sees (where there are some), and retain."""
        found = {"forget": self.forget, "unseen": self.forget.paraphrased(), "retain": self.retain}
        return {
            name: sampled(corpus, self.measured if name == "retain" else self.most or len(corpus), self.seed)
            for name, corpus in found.items()
            if corpus is not None
        }

    @cached_property
    def twin(self) -> nf.LM | None:
        """The gold twin, which on CPU computes each batch once for all edits."""
        if self.gold is None or self.gold.device.type != "cpu":
            return self.gold
        return nf.LM(Remembered(self.gold.model), self.gold.tokenizer)

    def values(self, lm: nf.LM) -> Values:
        """Return corpus -> metric -> mean over its examples; KL where there is a gold twin."""
        wanted = [exact_match, nll, *([kl_gold] if self.gold is not None else [])]
        return {
            name: {m: float(v.mean()) for m, v in measure(lm, corpus, wanted, gold=self.twin).items()}
            for name, corpus in self.corpora.items()
        }

    def point(self, edit: nf.Edit, strength: float) -> dict[str, Any]:
        """Measure an edit at a strength."""
        with edit.scaled(strength).on(self.lm) as edited:
            return {"strength": strength, **self.values(edited)}


def chosen_point(points: Sequence[Mapping[str, Any]], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tuned point, the untouched model's among them: within DAMAGE on retain, closest to gold on forget.

    Without a gold twin: the one whose forget answers are least likely.
    """
    allowed = [start, *(p for p in points if p["retain"]["nll"] <= start["retain"]["nll"] + DAMAGE)]
    return dict(min(allowed, key=lambda p: p["forget"].get("kl_gold", -p["forget"]["nll"])))


def asking(about: str) -> argparse.ArgumentParser:
    """Return a parser of what to run on, corpora of one's own too, and where to write."""
    parser = running(about)
    parser.add_argument("--forget", type=Path, help="JSONL rows with prompt and answer, of a model of one's own")
    parser.add_argument("--retain", type=Path, help="the same")
    return parser


def running(about: str) -> argparse.ArgumentParser:
    """Return a parser of where to write, seeds, and a model of one's own."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", help="checkpoint folder or hub id, in place of the testbeds")
    parser.add_argument("--gold", help="the same of a model that never knew")
    parser.add_argument("--device", default="cpu")
    return parser


def own_models(options: argparse.Namespace) -> tuple[nf.LM, nf.LM | None] | None:
    """Return the model of one's own and its gold twin, where they were given; None without."""
    if options.model is None:
        if options.gold is not None:
            raise SystemExit("--gold is a twin of --model: give both")
        return None
    gold = nf.load(options.gold, device=options.device) if options.gold else None
    return nf.load(options.model, device=options.device), gold


@contextmanager
def in_one_line() -> Iterator[None]:
    """Bad input ends an analysis with its reason, not with a traceback."""
    try:
        yield
    except nf.InputError as error:
        raise SystemExit(f"error: {error}") from error


def sources(options: argparse.Namespace, seeds: list[int] | None = None) -> Iterator[Source]:
    """Yield what to run on, a seed at a time: of a model of one's own the seed is that of trainings and controls.

    There the neurons are found by grad_x_act alone. Raises SystemExit for a model without its two corpora.
    """
    if options.model is not None and (options.forget is None or options.retain is None):
        raise SystemExit("--model needs --forget and --retain, JSONL files with prompt and answer")
    seeds = options.seeds if seeds is None else seeds
    if (own := own_models(options)) is None:
        kind, settings = BEDS["grafted"]
        for seed in seeds:
            yield Source.of(nf.testbed.people(kind, seed=seed, people=PEOPLE, progress=False, **settings), seed)
        return
    lm, gold = own
    forget, retain = nf.corpora.jsonl(options.forget), nf.corpora.jsonl(options.retain)
    scores = nf.attribute(lm, forget, retain.head(len(forget)), progress=False)
    for seed in seeds:
        yield Source(lm, forget, retain, nf.select.per_layer(scores, SHARE), seed, gold)
