"""MUSE (Shi et al. 2024, arXiv:2407.06460): news or books to be forgotten, asked word by word and for what they say.

Verbatim memory, knowledge memory of forget and of retain (that is utility), and the privacy leak, which compares with
a model trained without the forget texts: without one the result says that it was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example, check_disjoint
from neuronforget.corpora.from_hub import hub_rows
from neuronforget.corpora.lines import ENDINGS, rows_of
from neuronforget.errors import InputError
from neuronforget.evaluation.generation import Decoding
from neuronforget.metrics.membership import resampled_auc, text_scores
from neuronforget.models import LM
from neuronforget.results import Results, example_rows
from neuronforget.results.intervals import of_auc
from neuronforget.suites.answers import Questions, answer

#: Part of the data -> its fields; a folder holds them as PART.jsonl, the hub as configuration and split.
PARTS = {
    "verbmem/forget": ("prompt", "gt"),
    "knowmem/forget_qa": ("question", "answer"),
    "knowmem/retain_qa": ("question", "answer"),
    "knowmem/forget_qa_icl": ("question", "answer"),
    "knowmem/retain_qa_icl": ("question", "answer"),
    "privleak/forget": ("text",),
    "privleak/holdout": ("text",),
}
KNOWLEDGE = {"knowledge, forget": "knowmem/forget_qa", "knowledge, retain": "knowmem/retain_qa"}
PRIVACY = "forget, holdout"
CONTINUED = 128  # tokens of a continuation
SHARE = 0.4  # of a text's tokens: Min-40%, as in the paper
MIN_K = f"min_k@{100 * SHARE:g}%"
ENDS = ("\n\n", "\nQuestion", "Question:")


@checks_kinds
def muse(
    lm: LM,
    path: str | Path,
    *,
    gold: LM | None = None,
    n: int | None = None,
    max_tokens: int | None = None,
    name: str = "model",
    batch_size: int = 16,
    kept: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Results:
    """Ask a model for verbatim and for knowledge memory, and tell forget from holdout texts; the gold twin beside it.

    `path` is a folder with the `PARTS` (.jsonl, .jsonl.gz, .json), or a hub id ("muse-bench/MUSE-News"). Corpora are
    "verbatim" (ROUGE-L F1 of a greedy continuation of 128 tokens with the true one), "knowledge, forget" and
    "knowledge, retain" (ROUGE-L F1 of short answers, after the examples of the `_icl` parts), and "forget, holdout":
    `min_k@40%`, the AUC with which the mean log-probability of the 40% least likely tokens tells forget texts for
    members, and `privacy_leak` (`leak`). `gold` never saw the forget texts; it is asked all of this, under that name.
    `n` asks the first n rows of each part, `max_tokens` cuts the texts of the last. `info["missing"]` says what was not
    measured, and why. Raises InputError, before anything is asked, where the data have none of the parts, for rows that
    are not MUSE's, forget texts that are among the holdout ones, and what does not fit one of the models.
    """
    parts = {part: _rows(path, part, n) for part in PARTS}
    asked, missing = _asked(lm, parts)
    sides = [own for side in ("forget", "holdout") if (own := _texts(parts, side, max_tokens)) is not None]
    if not asked and len(sides) < 2:
        raise InputError(f"{path} has none of MUSE's parts: {', '.join(PARTS)} (.jsonl)")
    models = {name: lm, **({"gold": gold} if gold is not None else {})}
    _check_sides(models, sides)
    if gold is None:
        missing["privacy_leak"] = "it compares with a model that never saw the forget texts: give gold="
    for side in ("forget", "holdout"):
        if not parts[f"privleak/{side}"]:
            missing[PRIVACY] = f"no privleak/{side}"
    found = answer(
        lm, asked, gold=gold, name=name, batch_size=batch_size, kept=kept, seed=seed, progress=progress, suite="muse",
        missing=missing,
    )  # fmt: skip
    if len(sides) < 2:
        return found
    rows, examples = _privacy(
        {who: _scores(model, sides, batch_size, kept) for who, model in models.items()}, name, seed
    )
    found.info["data"].update({own.name: own.digest() for own in sides})
    if any(row["metric"] == "privacy_leak" and np.isnan(row["value"]) for row in rows):
        missing["privacy_leak"] = "an AUC is NaN, or each forget text is likelier to gold than any holdout text"
    return replace(found, rows=found.rows + tuple(rows), examples=found.examples + tuple(examples))


def leak(members: np.ndarray | float, gold: np.ndarray | float) -> np.ndarray:
    """Return MUSE's privacy leak, (A - A_gold) / A_gold, from AUCs that count a forget text found as a member as right.

    The paper's A counts the other way, A = 1 - AUC: 0 is the twin's, below 0 under-erased (forget texts still stand out
    as members, the taught model has about -1), above 0 over-erased (they stand out as what no model says). NaN where
    the gold twin's A is 0.
    """
    a, base = 1 - np.asarray(members, dtype=float), 1 - np.asarray(gold, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base > 0, (a - base) / base, np.nan)


def _rows(path: str | Path, part: str, n: int | None) -> list[dict[str, Any]]:
    """The rows of a part; none where a folder has no such file. All examples that are shown are read."""
    n = None if part.endswith("_icl") else n
    if not Path(path).is_dir():
        if Path(path).exists() or str(path).count("/") != 1:
            raise InputError(f"no such folder: {path}")
        config, split = part.split("/")
        rows = hub_rows(str(path), config, split=split, streaming=n is not None, instead="a folder with MUSE's parts")
        found = list(islice(rows, n))
    elif any((Path(path) / f"{part}{end}").is_file() for end in ENDINGS):
        found = rows_of(path, part, fields=PARTS[part], n=n)
    else:
        return []
    for i, row in enumerate(found):
        for field in PARTS[part]:
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise InputError(f"{path}, {part}, row {i}: no text {field!r}: that is not MUSE")
    return found


def _check_sides(models: Mapping[str, LM], sides: Sequence[Corpus]) -> None:
    """Raise InputError for a text that does not fit one of the models, and one that is on both sides."""
    for own in sides:
        for model in models.values():
            model.encode(own)
    if len(sides) == 2:
        check_disjoint(*sides)


def _asked(lm: LM, parts: Mapping[str, Sequence[dict[str, Any]]]) -> tuple[dict[str, Questions], dict[str, str]]:
    asked, missing = {}, {}
    if passages := parts["verbmem/forget"]:
        asked["verbatim"] = _verbatim(lm, passages)
    else:
        missing["verbatim"] = "no verbmem/forget"
    for key, part in KNOWLEDGE.items():
        if parts[part]:
            asked[key] = _knowledge(key, parts[part], parts[f"{part}_icl"])
            if not parts[f"{part}_icl"]:
                missing[f"{key}, after examples"] = f"no {part}_icl: it is asked without"
        else:
            missing[key] = f"no {part}"
    return asked, missing


def _verbatim(lm: LM, passages: Sequence[dict[str, Any]]) -> Questions:
    """The true continuation is cut to as many tokens as the model may write."""
    ids = [lm.tokenizer(row["gt"], add_special_tokens=False)["input_ids"][:CONTINUED] for row in passages]
    true = [lm.tokenizer.decode(own, skip_special_tokens=True).strip() for own in ids]
    examples = tuple(Example(row["prompt"], text) for row, text in zip(passages, true, strict=True))
    return Questions(Corpus(examples, "muse verbatim"), scorers=("rouge_l_f1",), decoding=Decoding(CONTINUED, ()))


def _knowledge(key: str, rows: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]) -> Questions:
    before = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shown)
    template = before.replace("{", "{{").replace("}", "}}") + "Question: {prompt}\nAnswer:"
    corpus = Corpus(tuple(Example(r["question"], r["answer"]) for r in rows), f"muse {key}", template=template)
    scorers = ("rouge_l_f1", "rouge_l", "exact", "f1", "contains")
    return Questions(corpus, scorers=scorers, decoding=Decoding(32, ENDS))


def _texts(parts: Mapping[str, Sequence[dict[str, Any]]], side: str, max_tokens: int | None) -> Corpus | None:
    texts = dict.fromkeys(row["text"] for row in parts[f"privleak/{side}"])
    return Corpus(tuple(Example("", text) for text in texts), side, max_tokens=max_tokens) if texts else None


def _scores(lm: LM, sides: Sequence[Corpus], batch_size: int, kept: str | Path | None) -> list[np.ndarray]:
    found = [text_scores(lm, own, ("min_k",), (SHARE,), batch_size=batch_size, kept=kept) for own in sides]
    return [values[MIN_K] for values in found]


def _privacy(
    scores: Mapping[str, Sequence[np.ndarray]], name: str, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the AUC of each model and of the leak, whose interval draws the same texts for model and gold twin."""
    rows, examples = [], []
    found = {who: resampled_auc(sides[0], sides[1], seed) for who, sides in scores.items()}
    values = {(who, MIN_K): drawn for who, drawn in found.items()}
    if "gold" in found:
        values[name, "privacy_leak"] = leak(found[name], found["gold"])
    for (who, metric), drawn in values.items():
        count, nan = sum(map(len, scores[who])), int(sum(np.isnan(side).sum() for side in scores[who]))
        sizes = map(len, scores[who])
        low, high = of_auc(drawn[0], *sizes) if metric == MIN_K else np.quantile(drawn[1:], [0.025, 0.975])
        rows.append(
            {"edit": who, "scope": "reference", "strength": 0.0, "point": "full", "corpus": PRIVACY, "metric": metric}
            | {"value": float(drawn[0]), "low": float(low), "high": float(high), "n": count, "units": count}
            | {"nan": nan, "seed": seed}
        )
    for who, sides in scores.items():
        for side, own in zip(("forget", "holdout"), sides, strict=True):
            about = {"edit": who, "point": "full", "corpus": side, "metric": MIN_K}
            examples += example_rows(about, own, np.arange(len(own)))
    return rows, examples
