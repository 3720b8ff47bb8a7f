"""Does a closed form write what it is asked to? ROME's own experiment on a testbed, one fact and many at once.

One fact: another answer of its relation is to take the answer's place, asked for in one phrasing (CounterFact; Meng et
al. 2022, arXiv:2202.05262). All facts: "unknown", the model's own way to decline, in every phrasing shown. The facts of
a model of one's own are taken as one relation, a row with its paraphrases as one fact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cells import cell, many, table
from sources import Source

import neuronforget as nf
from neuronforget.erase.ablate import all_of
from neuronforget.evaluation.measuring import measure
from neuronforget.metrics import exact_match, probability
from neuronforget.testbed.facts import PHRASINGS

WRITERS = {
    "rank_one": nf.erase.rank_one,
    "memit": nf.erase.memit,
    "alpha_edit": partial(nf.erase.alpha_edit, cut=0.05),
}
MEASURED = 60  # retain examples of the fact's relation, and as many of any
FACTS = 60  # that are rewritten one by one, at most
ANY = "any"  # the relation of facts whose relation is not known
REWRITTEN = ("edited", "other")  # phrasings of the fact itself: the one edited, and those that the edit did not see
COLUMNS = {
    "writes": ("edited", "exact"),
    "preferred": ("edited", "preferred"),
    "in other phrasings": ("other", "exact"),
    "preferred there": ("other", "preferred"),
    "same person": ("same person", "exact"),
    "neighbours": ("neighbours", "exact"),
    "any retain": ("retain", "exact"),
}


def relation_of(example: nf.corpora.Example) -> str:
    """Return the relation of the testbeds that an example's prompt asks for."""
    asked = {name: [text.format(n=example.subject) for text in texts] for name, texts in PHRASINGS.items()}
    return next((name for name, prompts in asked.items() if example.prompt in prompts), ANY)


def fact_of(example: nf.corpora.Example) -> tuple[str, str]:
    """Return what phrasings of one fact share: whom it is about, and its relation (where not known, its prompt)."""
    relation = relation_of(example)
    return str(example.subject), example.prompt if relation == ANY else relation


def places(source: Source) -> dict[str, nf.Neurons | None]:
    """Return where is written: the method's own layers, every layer, found and random neurons, those of lower layers.

    The lower half ends at the middle layer, as the layers do that a method takes itself.
    """
    every = [site.layer for site in source.lm.sites]
    lower = all_of(source.lm, every[: (len(every) + 1) // 2])
    where = {"found": source.found, "random": source.found.random_like(source.seed)}
    low = {f"{place}-lower": neurons & lower for place, neurons in where.items()}
    return {"full": None, "all-layers": all_of(source.lm, every), **where, **low}


def rewrites(source: Source, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`: "method@place one" (a mean over facts, each edited alone) and "method@place all"."""
    with TemporaryDirectory() as cache:
        for place, neurons in places(source).items():
            for name, writer in WRITERS.items():
                make = partial(writer, source.lm, retain=source.retain, neurons=neurons, cache=cache)
                for size, work in {"one": one_by_one, "all": all_at_once}.items():
                    if (key := f"{name}@{place} {size}") not in done:
                        try:
                            done[key] = work(source, make)
                        except nf.InputError as error:
                            done[key] = {"failed": str(error)}
                        yield key


def one_by_one(source: Source, make: Any) -> dict[str, dict[str, float]]:
    """Rewrite each forget fact alone, asked for in its first phrasing; return means over facts."""
    draw, found = random.Random(source.seed), []
    retain = _grouped((e for e in source.retain if e.answer not in source.refusals), relation_of)
    every = [e for rows in retain.values() for e in rows]
    for relation, facts in _grouped(source.forget, relation_of).items():
        kin = retain.get(relation, every)
        others, near = sorted({e.answer for e in kin}), draw.sample(kin, min(MEASURED, len(kin)))
        for (person, _), (first, *rest) in list(_grouped(facts, fact_of).items())[:FACTS]:
            if not (different := [answer for answer in others if answer != first.answer]):
                raise nf.InputError(f"retain has no answer but {first.answer!r}: there is none to write in its place")
            new = draw.choice(different)
            unseen = [replace(first, prompt=prompt) for prompt in first.paraphrases]
            own = [e for e in source.forget if str(e.subject) == person and fact_of(e) != fact_of(first)]
            other = [*(e for e in rest if e.prompt != first.prompt), *unseen]
            asked = {"edited": [first], "other": other, "neighbours": near, "same person": own if first.subject else []}
            corpora = {name: nf.Corpus(tuple(rows), name) for name, rows in asked.items() if rows}
            corpora["retain"] = source.corpora["retain"].head(MEASURED)
            with make(forget=corpora["edited"], target=new).on(source.lm):
                found.append(answered(source.lm, corpora, new))
    return _mean(found)


def all_at_once(source: Source, make: Any) -> dict[str, dict[str, float]]:
    """Rewrite every forget fact to the model's own refusal by one edit."""
    corpora = {"edited": source.forget, "other": source.corpora.get("unseen"), "retain": source.corpora["retain"]}
    refusal = source.refusals[0]
    with make(forget=source.forget, target=refusal).on(source.lm):
        return answered(source.lm, {name: corpus for name, corpus in corpora.items() if corpus is not None}, refusal)


def answered(lm: nf.LM, corpora: Mapping[str, nf.Corpus], new: str) -> dict[str, dict[str, float]]:
    """Return how often an answer is given (exact): of facts that were edited the new one, of all others their own.

    Of edited facts also how often the new answer is likelier than the old one (preferred), and its probability.
    """
    found = {}
    for name, corpus in corpora.items():
        old = measure(lm, corpus, [exact_match, probability])
        if name not in REWRITTEN:
            found[name] = {"exact": float(old["exact_match"].mean())}
            continue
        fresh = measure(lm, corpus.with_answers([new] * len(corpus), "new"), [exact_match, probability])
        found[name] = {"exact": float(fresh["exact_match"].mean()), "probability": float(fresh["probability"].mean())}
        found[name]["preferred"] = float((fresh["probability"] > old["probability"]).mean())
    return found


def rewrite_table(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables of edits that rewrite: facts one by one, and all at once."""
    parts = [f"## Does a closed form write what it is asked to?\n\n{many(len(seeds))}."]
    for size, words in {
        "one": "Facts one by one, to another answer",
        "all": "All facts at once, to the refusal",
    }.items():
        there = [key for key in seeds[0] if key.endswith(size) and all("failed" not in seed[key] for seed in seeds)]
        keys = sorted(there, key=lambda key: list(WRITERS).index(key.split("@")[0]))
        columns = {head: at for head, at in COLUMNS.items() if all(at[0] in seeds[0][key] for key in keys)}
        rows = [
            [
                key.split(" ")[0],
                *(cell([seed[key][corpus][metric] for seed in seeds]) for corpus, metric in columns.values()),
            ]
            for key in keys
        ]
        parts.append(f"{words}:\n\n" + table(["method", *columns], rows))
    failed = {key: made["failed"] for seed in seeds for key, made in seed.items() if "failed" in made}
    parts += ["\n".join(["Not made:", "", *(f"- {key}: {why}" for key, why in failed.items())])] if failed else []
    return "\n\n".join(parts) + "\n"


def _grouped(examples: Iterable[nf.corpora.Example], by: Callable[[nf.corpora.Example], Any]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for example in examples:
        found.setdefault(by(example), []).append(example)
    return found


def _mean(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the facts of which there is a corpus."""
    parts = {
        name: [each[name] for each in found if name in each] for name in dict.fromkeys(n for e in found for n in e)
    }
    return {name: {m: float(np.mean([f[m] for f in rows])) for m in rows[0]} for name, rows in parts.items()}
