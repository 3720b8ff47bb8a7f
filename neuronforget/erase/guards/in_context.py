"""ICU: examples before the prompt, forget ones with other answers, retain ones with theirs (arXiv:2310.07579).

The context is in the model's cache before the prompt is read, so that activations keep the batch's own shape. A
beginning-of-sequence token stands before the context; that of the prompt is masked.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, check_disjoint
from neuronforget.corpora.corpus import texts_of
from neuronforget.corpora.tokens import join
from neuronforget.edits import Edit
from neuronforget.edits.guarding import Given, Guard, accepts, before_pass, cache_of, mechanism
from neuronforget.erase.beginning import operator
from neuronforget.erase.guards.reading import check_prompts, positions
from neuronforget.errors import InputError
from neuronforget.models import LM, frozen
from neuronforget.train import draw


@checks_kinds
@operator
def icu(
    lm: LM,
    forget: Corpus,
    retain: Corpus,
    *,
    shown: int = 4,
    kept: int = 4,
    answers: Sequence[str] = (),
    separator: str = "\n",
    seed: int = 0,
) -> Edit:
    """Put `shown` forget examples with other answers, then `kept` retain examples, before every prompt.

    Other answers are drawn from `answers`, else from the example's own `wrong` ones, else from what other forget
    examples answer. Which examples are shown is drawn by `seed`. The guard is on or off: it has no strength between.
    Raises InputError where the tokenizer lacks the separator, where the context leaves no room for the corpora, and
    for a model that does not read it from a cache as it reads it before the prompt (as in some linear attention).
    """
    check_disjoint(forget, retain)
    if shown < 1 or kept < 0:
        raise InputError(f"icu shows forget examples: shown >= 1 and kept >= 0; found {shown}, {kept}")
    for corpus in (forget, retain):
        check_prompts(corpus)
    answers = texts_of(answers)
    texts = [_shown(forget, i, answers, seed) for i in _places(forget, shown, seed)]
    chosen = [retain.examples[i] for i in _places(retain, kept, seed + 1)]
    texts += ["".join(join(_asked(retain, e.prompt), e.answer)) for e in chosen]
    ids = _context_ids(lm, "".join(text + separator for text in texts))
    longest = max(len(lm.tokenizer(f"{e.prompt} {e.answer}")["input_ids"]) for c in (forget, retain) for e in c)
    if lm.max_length is not None and len(ids) + longest > lm.max_length:
        raise InputError(
            f"the context has {len(ids)} tokens, the longest example {longest}, but the model takes {lm.max_length}: "
            f"show fewer examples than shown={shown}, kept={kept}"
        )
    guard = Guard.of(lm, "icu", {"context": torch.tensor(ids)})
    _check_read(lm, ids, _asked(forget, forget.examples[0].prompt))
    about = {"forget": forget.digest(), "retain": retain.digest(), "shown": shown, "kept": kept, "seed": seed}
    return Edit.guarding(guard, **about, context=separator.join(texts))


def _places(corpus: Corpus, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(len(corpus)), min(count, len(corpus))))


def _asked(corpus: Corpus, prompt: str) -> str:
    if corpus.template == "chat":
        raise InputError("icu writes examples as text before the prompt: use a corpus without template='chat'")
    return corpus.template.format(prompt=prompt) if corpus.template else prompt


def _shown(forget: Corpus, i: int, answers: Sequence[str], seed: int) -> str:
    """One forget example with another answer."""
    example = forget.examples[i]
    pool = list(answers) or list(example.wrong) or list(dict.fromkeys(e.answer for e in forget))
    pool = [answer for answer in pool if answer.strip() != example.answer.strip()]
    if not pool:
        raise InputError(f"no other answer than {example.answer[:40]!r} to show: give answers=, or `wrong` ones")
    return "".join(join(_asked(forget, example.prompt), draw(pool, 1, seed + i, 0)[0]))


def _context_ids(lm: LM, text: str) -> list[int]:
    """The context's tokens; the tokenizer's own BOS before them."""
    ids = list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    if (unknown := lm.tokenizer.unk_token_id) is not None and unknown in ids:
        raise InputError(
            f"the tokenizer lacks a part of the context {text[:60]!r}: give separator= (and answers=) in it"
        )
    first, bos = lm.tokenizer(text)["input_ids"][:1], lm.tokenizer.bos_token_id
    return [bos, *ids] if bos is not None and first == [bos] else ids


@torch.no_grad()
def _check_read(lm: LM, context: list[int], prompt: str) -> None:
    own = list(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    before, after, both = (torch.tensor([ids], device=lm.device) for ids in (context, own, context + own))
    with frozen(lm):
        out = lm.model(input_ids=before, use_cache=True)
        cache = getattr(out, _cache_name(lm), None)
        whole = lm.model(input_ids=both, use_cache=False).logits[0, -1].float()
        gap = torch.inf
        if cache is not None:
            told = {_cache_name(lm): cache, "attention_mask": torch.ones_like(both)}
            places = positions(lm, torch.arange(len(context), both.shape[1], device=lm.device)[None])
            found = lm.model(input_ids=after, **told, **places).logits[0, -1].float()
            gap = float((found - whole).abs().max() / whole.abs().max().clamp_min(1e-30))
    if not gap < torch.finfo(out.logits.dtype).eps ** 0.5:
        raise InputError(
            f"{type(lm.model).__name__} does not read a context from its cache as it reads one before the prompt: icu "
            "needs a model whose cache is of keys and values; use another guard, or an erasure"
        )


@mechanism("icu", dial=False)
def _install(lm: LM, guard: Guard) -> Iterator[Any]:
    context, bos = guard.tensors["context"], getattr(lm.tokenizer, "bos_token_id", None)
    first = torch.zeros(0, dtype=torch.bool)  # rows whose first token repeats the context's

    def precede(given: Given, kwargs: dict[str, Any]) -> dict[str, Any]:
        nonlocal first
        mask = kwargs.get("attention_mask")
        mask = _ones(given, kwargs, len(context)) if mask is None else mask.clone()
        longest = len(context) + mask.shape[1]
        if lm.max_length is not None and longest > lm.max_length:
            raise InputError(
                f"with icu's context a row has {longest} tokens, but the model takes {lm.max_length} at most"
            )
        start = mask.argmax(1)
        if not given.goes_on:
            first = given.ids.gather(1, start[:, None])[:, 0] == (bos if bos == int(context[0]) else -1)
            kwargs = {**kwargs, _cache_name(lm): _filled(lm, context.to(given.ids), len(given.ids), kwargs)}
        mask[torch.arange(len(mask)), start] *= ~first.to(mask.device)
        mask = torch.cat([mask.new_ones(len(mask), len(context)), mask], 1)
        places = (mask.long().cumsum(1) - 1)[:, -given.ids.shape[1] :]
        return {**kwargs, "attention_mask": mask, **positions(lm, places)}

    yield before_pass(lm, precede)


def _ones(given: Given, kwargs: dict[str, Any], context: int) -> Tensor:
    past = cache_of(kwargs).get_seq_length() - context if given.goes_on else 0
    return given.ids.new_ones(len(given.ids), past + given.ids.shape[1])


def _cache_name(lm: LM) -> str:
    return "cache" if accepts(lm, "cache") else "past_key_values"


def _filled(lm: LM, context: Tensor, rows: int, kwargs: dict[str, Any]) -> Any:
    """Return the cache that the pass was given, or a new one, with the context in every row."""
    own = cache_of(kwargs)
    given = {} if own is None else {_cache_name(lm): own}
    out = lm.model(input_ids=context.expand(rows, -1), use_cache=True, **given)
    return getattr(out, _cache_name(lm)) if own is None else own
