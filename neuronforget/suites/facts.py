"""CounterFact and PARAREL: is a fact still preferred, in other words too, and are its neighbours as they were?

CounterFact (Meng et al. 2022, arXiv:2202.05262): the true and the new object are compared by their likelihood, after
the prompt (efficacy), a paraphrase, and prompts about neighbours. PARAREL (Elazar et al. 2021, arXiv:2102.01017): one
fact in many patterns; how often is it answered, and how consistently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example, subjects_of
from neuronforget.corpora.lines import rows_of
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure, option_losses, preferred
from neuronforget.metrics import exact_match
from neuronforget.models import LM
from neuronforget.results import Column, Results, model_tables
from neuronforget.runs import environment

#: Corpus -> (prompt, true object, the other one): fields of a row.
QUESTIONS = {
    "efficacy": ("prompt", "ground_truth", "target_new"),
    "paraphrase": ("rephrase_prompt", "ground_truth", "target_new"),
    "neighbourhood": ("locality_prompt", "locality_ground_truth", "target_new"),
}


@checks_kinds
def counterfact(
    lm: LM,
    path: str | Path,
    *,
    n: int | None = None,
    name: str = "model",
    batch_size: int = 64,
    kept: str | Path | None = None,
    seed: int = 0,
) -> Results:
    """Compare the true object with the new one: how often it is likelier, by how much, and how likely it is.

    Metrics, each on "efficacy", "paraphrase" and "neighbourhood": `true preferred` (1 minus the success of an edit to
    the new object; on neighbours what specificity asks), `new less true` and `probability` of the true object, all by
    the geometric mean of an object's tokens, as the authors' code; `true preferred, whole` by the probability of all
    its tokens together, which favours short objects; and `exact_match`. `kept` is a folder for what is measured. Raises
    InputError for rows that are not CounterFact's.
    """
    fields = tuple(dict.fromkeys(field for three in QUESTIONS.values() for field in three))
    rows = rows_of(path, fields=fields, n=n)
    asked = {
        key: Corpus(tuple(_example(row, three) for row in rows), f"counterfact {key}")
        for key, three in QUESTIONS.items()
    }
    columns: list[Column] = []
    for key, corpus in asked.items():
        losses = np.array(option_losses(lm, corpus, batch_size=batch_size, kept=kept)).T
        (true, new), totals = np.exp(-losses), losses * _lengths(lm, corpus)
        found = {
            "true preferred": _preferred(losses),
            "true preferred, whole": _preferred(totals),
            "new less true": new - true,
            "probability": true,
            "exact_match": measure(lm, corpus, [exact_match], batch_size=batch_size, kept=kept)["exact_match"],
        }
        columns += [(key, metric, values, subjects_of(corpus)) for metric, values in found.items()]
    return Results(*model_tables(name, columns, seed), _info(lm, "counterfact", path, asked, len(rows), seed))


def _preferred(losses: np.ndarray) -> np.ndarray:
    """Is the first row's loss the lower one? Half where they are equal, NaN where one is."""
    return np.array([preferred(pair) for pair in losses.T])


def _lengths(lm: LM, corpus: Corpus) -> np.ndarray:
    """Return how many tokens the true and the new object have, [object, example]."""
    both = corpus, corpus.with_answers([example.wrong[0] for example in corpus], corpus.name)
    rows = (lm.encode(own) for own in both)
    return np.array([[len(row.ids) - max(row.answer_start, 1) for row in own] for own in rows])


@checks_kinds
def pararel(
    lm: LM,
    path: str | Path,
    *,
    relations: tuple[str, ...] | None = None,
    n: int | None = None,
    name: str = "model",
    batch_size: int = 64,
    kept: str | Path | None = None,
    seed: int = 0,
) -> Results:
    """Ask each fact in every pattern that ends with the object: how often answered, at best, at worst, consistently.

    `n` is the number of facts of each relation. Rows are of each relation and of "all": `exact_match` (mean over
    patterns), `best pattern`, `worst pattern` (by fact), and `consistent`: the share of pairs of patterns that agree on
    whether the fact is answered. `kept` is a folder for what is measured. Raises InputError for unknown relations.
    """
    by_relation = pararel_facts(path, relations=relations, n=n)
    facts = [example for corpus in by_relation.values() for example in corpus]
    named = [relation for relation, corpus in by_relation.items() for _ in corpus]
    prompts = [replace(e, prompt=p, paraphrases=()) for e in facts for p in (e.prompt, *e.paraphrases)]
    asked = Corpus(tuple(prompts), "pararel")
    hits = measure(lm, asked, [exact_match], batch_size=batch_size, kept=kept)["exact_match"]
    ends = np.cumsum([1 + len(e.paraphrases) for e in facts])
    found = _over_patterns(np.split(hits, ends[:-1]))
    units = np.unique([str(e.subject) for e in facts], return_inverse=True)[1]
    columns: list[Column] = []
    for place in ("all", *dict.fromkeys(named)):
        own = np.array([place in ("all", relation) for relation in named])
        columns += [(place, metric, values[own], units[own]) for metric, values in found.items()]
    return Results(*model_tables(name, columns, seed), _info(lm, "pararel", path, by_relation, len(facts), seed))


def _over_patterns(hits: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Of each fact: the mean over its patterns, the best, the worst, and the share of pairs that agree."""
    found = {
        "exact_match": [own.mean() for own in hits],
        "best pattern": [own.max() for own in hits],
        "worst pattern": [own.min() for own in hits],
        "consistent": [_agreeing(own) for own in hits],
    }
    return {metric: np.array(values, dtype=float) for metric, values in found.items()}


def _agreeing(hits: np.ndarray) -> float:
    """The share of pairs of patterns that agree, 1 where there is one pattern alone, NaN where one is: broken."""
    pairs = [a == b for i, a in enumerate(hits) for b in hits[:i]]
    return float("nan") if np.isnan(hits).any() else float(np.mean(pairs or [True]))


@checks_kinds
def pararel_facts(
    path: str | Path, *, relations: tuple[str, ...] | None = None, n: int | None = None
) -> dict[str, Corpus]:
    """Return the facts of each relation: the first pattern that ends with the object asks, the others paraphrase.

    `path` is a folder with `facts.jsonl` (relation, subject, object) and `patterns.jsonl` (relation, pattern with [X]
    and [Y]), gzipped or not.
    """
    patterns: dict[str, list[str]] = {}
    for row in rows_of(path, "patterns", fields=("relation", "pattern")):
        text = str(row["pattern"]).rstrip(" .")
        if text.endswith("[Y]") and "[X]" in text:
            patterns.setdefault(row["relation"], []).append(text.removesuffix("[Y]").strip())
    wanted = tuple(patterns) if relations is None else relations
    if unknown := [r for r in wanted if r not in patterns]:
        raise InputError(f"no pattern of {unknown[0]!r} ends with the object; there are {', '.join(patterns)}")
    found: dict[str, list[Example]] = {relation: [] for relation in wanted}
    for row in rows_of(path, "facts", fields=("relation", "subject", "object")):
        own = found.get(row["relation"])
        if own is not None and (n is None or len(own) < n):
            prompts = [pattern.replace("[X]", row["subject"]) for pattern in patterns[row["relation"]]]
            own.append(Example(prompts[0], row["object"], tuple(prompts[1:]), subject=row["subject"]))
    return {relation: Corpus(tuple(own), f"pararel {relation}") for relation, own in found.items() if own}


def _example(row: dict[str, Any], fields: tuple[str, str, str]) -> Example:
    prompt, true, new = (row[field] for field in fields)
    return Example(prompt, true, wrong=(new,), subject=row.get("subject") if fields[0] == "prompt" else None)


def _info(lm: LM, suite: str, path: str | Path, asked: Mapping[str, Corpus], n: int, seed: int) -> dict[str, Any]:
    about = {"suite": suite, "model": lm.name, "digest": lm.digest(), "device": str(lm.device), "seed": seed, "n": n}
    about |= {"path": str(path), "data": {key: corpus.digest() for key, corpus in asked.items()}}
    return {**about, "dtype": str(lm.model.dtype), "versions": environment()}
