"""Does a closed form write what it is asked to? ROME's own experiment on a testbed, one fact and many at once.

One fact: another answer of its relation is to take the answer's place, asked for in one phrasing (CounterFact; Meng et
al. 2022, arXiv:2202.05262). All facts: "unknown", the model's own way to decline, in every phrasing shown.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from erase_study import Study
from erase_tables import cell, table

import neuronforget as nf
from neuronforget.erase.ablate import all_of
from neuronforget.measuring import measure
from neuronforget.metrics import exact_match, probability
from neuronforget.testbed.facts import PHRASINGS, REFUSAL

WRITERS = {
    "rank_one": nf.erase.rank_one,
    "memit": nf.erase.memit,
    "alpha_edit": partial(nf.erase.alpha_edit, cut=0.05),
}
MEASURED = 60  # retain examples of the fact's relation, and as many of any
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
    """Return the relation that an example's prompt asks for."""
    asked = {name: [text.format(n=example.subject) for text in texts] for name, texts in PHRASINGS.items()}
    return next(name for name, prompts in asked.items() if example.prompt in prompts)


def places(study: Study) -> dict[str, nf.Neurons | None]:
    """Return where is written: the method's own layers, every layer, found and random neurons, those of lower layers.

    The lower half ends at the middle layer, as the layers do that a method takes itself.
    """
    layers = study.bed.lm.shape[0]
    lower, random_ones = all_of(study.bed.lm, range((layers + 1) // 2)), study.found.random_like(study.seed)
    where = {"found": study.found, "random": random_ones}
    low = {f"{place}-lower": neurons & lower for place, neurons in where.items()}
    return {"full": None, "all-layers": all_of(study.bed.lm, range(layers)), **where, **low}


def rewrites(study: Study, done: dict[str, Any]) -> Iterator[str]:
    """Fill `done`: "method@place one" (a mean over facts, each edited alone) and "method@place all"."""
    with TemporaryDirectory() as cache:
        for place, neurons in places(study).items():
            for name, writer in WRITERS.items():
                make = partial(writer, study.bed.lm, retain=study.bed.retain, neurons=neurons, cache=cache)
                for size, work in {"one": one_by_one, "all": all_at_once}.items():
                    if (key := f"{name}@{place} {size}") not in done:
                        done[key] = work(study, make)
                        yield key


def one_by_one(study: Study, make: Any) -> dict[str, dict[str, float]]:
    """Rewrite each forget fact alone, asked for in its first phrasing; return means over facts."""
    bed, draw, found = study.bed, random.Random(study.seed), []
    retain = _by_relation(e for e in bed.retain if e.answer != REFUSAL)
    for relation, facts in _by_relation(bed.forget).items():
        others = sorted({e.answer for e in retain[relation]})
        near = draw.sample(retain[relation], min(MEASURED, len(retain[relation])))
        for person in dict.fromkeys(e.subject for e in facts):
            first, *rest = [e for e in facts if e.subject == person]
            new = draw.choice([answer for answer in others if answer != first.answer])
            unseen = [replace(first, prompt=prompt) for prompt in first.paraphrases]
            own = [e for e in bed.forget if e.subject == person and relation_of(e) != relation]
            asked = {"edited": [first], "other": [*rest, *unseen], "same person": own, "neighbours": near}
            corpora = {name: nf.Corpus(tuple(rows), name) for name, rows in asked.items()}
            corpora["retain"] = study.corpora["retain"].head(MEASURED)
            with make(forget=corpora["edited"], target=new).on(bed.lm):
                found.append(answered(bed.lm, corpora, new))
    return _mean(found)


def all_at_once(study: Study, make: Any) -> dict[str, dict[str, float]]:
    """Rewrite every forget fact to "unknown" by one edit."""
    bed = study.bed
    corpora = {"edited": bed.forget, "other": study.corpora["forget unseen"], "retain": study.corpora["retain"]}
    with make(forget=bed.forget, target=REFUSAL).on(bed.lm):
        return answered(bed.lm, corpora, REFUSAL)


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
    parts = [f"## Does a closed form write what it is asked to?\n\n{len(seeds)} seeds."]
    for size, words in {"one": "Facts one by one, to another answer", "all": 'All facts at once, to "unknown"'}.items():
        keys = sorted(
            (key for key in seeds[0] if key.endswith(size)), key=lambda key: list(WRITERS).index(key.split("@")[0])
        )
        columns = {head: at for head, at in COLUMNS.items() if all(at[0] in seeds[0][key] for key in keys)}
        rows = [
            [
                key.split(" ")[0],
                *(cell([seed[key][corpus][metric] for seed in seeds]) for corpus, metric in columns.values()),
            ]
            for key in keys
        ]
        parts.append(f"{words}:\n\n" + table(["method", *columns], rows))
    return "\n\n".join(parts) + "\n"


def _by_relation(examples: Any) -> dict[str, list[nf.corpora.Example]]:
    found: dict[str, list[nf.corpora.Example]] = {name: [] for name in PHRASINGS}
    for example in examples:
        found[relation_of(example)].append(example)
    return {name: rows for name, rows in found.items() if rows}


def _mean(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {name: {m: float(np.mean([f[name][m] for f in found])) for m in found[0][name]} for name in found[0]}
