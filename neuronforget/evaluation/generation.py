"""Answers in the model's own words: greedy, with the cache of keys and values, up to its stop strings.

Prompts of like length share a batch, padded on the left. A logit that is NaN is an error, never an answer. With a
folder the answers are kept: they can be scored again, and a run that was killed loses one batch at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus
from neuronforget.corpora.tokens import check_known, in_chat, templated
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.results.kept import Kept


@checks_kinds
@dataclass(frozen=True)
class Decoding:
    """How answers are written: at most so many tokens, up to (and without) the first of the stop strings.

    A model's own settings (sampling, penalties) do not count: every figure is of its most likely next tokens.
    """

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"decoding needs a tuple of non-empty stop strings; found {self}")


@checks_kinds
@torch.no_grad()
def generate(
    lm: LM,
    corpus: Corpus,
    decoding: Decoding | None = None,
    *,
    batch_size: int = 64,
    kept: str | Path | None = None,
    progress: bool = True,
) -> list[str]:
    """Return what the model answers to each prompt, white space at the ends cut off; "" where it says nothing.

    `kept` is a folder for the answers: equal model, prompts and settings find them there. Raises InputError for a
    prompt that leaves no room for the answer, and where the model returns NaN: a broken model has not forgotten.
    """
    decoding = decoding or Decoding()
    ids = prompt_tokens(lm, corpus, decoding)
    store = Kept.of(kept, "answers", lm, ids, versions=None, ends=_ends(lm), **asdict(decoding))
    found: dict[int, str] = store.read()
    missing = sorted((i for i in range(len(ids)) if i not in found), key=lambda i: (-len(ids[i]), i))
    with frozen(lm), tqdm(total=len(ids), initial=len(found), desc="generate", disable=not progress) as bar:
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            texts = dict(zip(part, _written(lm, [ids[i] for i in part], decoding), strict=True))
            store.add(texts)
            found |= texts
            bar.update(len(part))
    return [found[i] for i in range(len(ids))]


def prompt_tokens(lm: LM, corpus: Corpus, decoding: Decoding) -> list[list[int]]:
    """Return the tokens of every prompt, none of them an end of sequence that nobody asked for.

    Raises InputError for a prompt without a token, and one that leaves no room for the answer.
    """
    rows = []
    for i, example in enumerate(corpus):
        chat = in_chat(corpus, example)
        text = templated(corpus.template, example.prompt, lm.tokenizer)
        found = list(lm.tokenizer(text, add_special_tokens=not chat)["input_ids"])
        while not chat and found and found[-1] == lm.tokenizer.eos_token_id:
            found.pop()
        where = f"corpus {corpus.name!r}, example {i} ({example.prompt[:40]!r})"
        if not found:
            raise InputError(f"{where}: no token to go on from: give a prompt")
        check_known(found, where, lm.tokenizer, lm.known)
        if lm.max_length is not None and len(found) + decoding.max_new_tokens > lm.max_length:
            raise InputError(
                f"{where}: {len(found)} tokens and {decoding.max_new_tokens} of answer, but the model takes "
                f"{lm.max_length} at most"
            )
        rows.append(found)
    return rows


def _written(lm: LM, rows: Sequence[Sequence[int]], decoding: Decoding) -> list[str]:
    from transformers import GenerationConfig

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), lm.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    settings = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, do_sample=False, pad_token_id=lm.pad_id, eos_token_id=_ends(lm),
        stop_strings=list(decoding.stop) or None,
    )  # fmt: skip
    lm.model.generation_config, was = settings, getattr(lm.model, "generation_config", None)
    try:
        out = lm.model.generate(
            ids.to(lm.device), attention_mask=mask.to(lm.device), generation_config=settings, tokenizer=lm.tokenizer,
            logits_processor=[_finite],
        )  # fmt: skip
    finally:
        lm.model.generation_config = was
    return [_cut(lm.tokenizer.decode(row[width:], skip_special_tokens=True), decoding.stop) for row in out]


def _ends(lm: LM) -> int | list[int] | None:
    """Return the tokens that end an answer: what the model's settings name, else the tokenizer's end of sequence."""
    named = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    return lm.tokenizer.eos_token_id if named is None else named


def _finite(_ids: Tensor, scores: Tensor) -> Tensor:
    """Greedy decoding takes NaN for the first token: stop the run in its place."""
    if torch.isnan(scores).any():
        raise InputError("the model returns NaN while it writes an answer: it is broken, which is not forgetting")
    return scores


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [at for word in stop if (at := text.find(word)) >= 0]
    return text[: min(ends, default=len(text))].strip()
