"""From examples to padded batches with an answer mask.

Prompt and answer are tokenised jointly, a token that straddles the border counts as answer; the tokenizer's
own BOS is kept, no EOS unless the corpus asks for it. Padding is on the right, so that positions need no help.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from neuronforget.corpora.corpus import Corpus, Example
from neuronforget.errors import InputError, reason, warn


@dataclass(frozen=True)
class Encoded:
    """One tokenised example: `ids`, where the answer starts, and the last token of the subject (or prompt)."""

    index: int
    ids: tuple[int, ...]
    answer_start: int
    subject_end: int


@dataclass(frozen=True)
class Batch:
    """Right-padded examples. `answer_mask` marks the answer tokens that have a token before them."""

    input_ids: Int[Tensor, "example token"]
    attention_mask: Int[Tensor, "example token"]
    answer_mask: Bool[Tensor, "example token"]
    subject_end: Int[Tensor, "example"]
    index: tuple[int, ...]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a Hugging Face forward pass."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}

    def last(self, tokens: int) -> Batch:
        """Return the last so many tokens of every row; `subject_end` counts from there, below 0 where it is cut off."""
        cut = self.input_ids.shape[1] - tokens
        ids, attended, answers = (x[:, cut:] for x in (self.input_ids, self.attention_mask, self.answer_mask))
        return Batch(ids, attended, answers, self.subject_end - cut, self.index)

    @property
    def answer_start(self) -> Int[Tensor, "example"]:
        """Number of tokens before each answer: 1 where there is no prompt."""
        return self.answer_mask.long().argmax(1)


def join(prompt: str, answer: str) -> tuple[str, str]:
    """Return (prompt, answer) ready to concatenate: one space between them unless there is white space."""
    if prompt and answer and not prompt[-1].isspace() and not answer[0].isspace():
        answer = " " + answer
    return prompt, answer


def encode(
    corpus: Corpus, tokenizer: Any, max_length: int | None = None, *, known: int | None = None, first: int = 0
) -> list[Encoded]:
    """Tokenise every example, counted from `first`.

    Raises InputError for an empty answer, a sequence over `max_length` tokens, and a token that is none of the `known`
    first ones. Warns of two blanks between prompt and answer, and of two BOS: no model was trained on these (of a
    stream once, by its first window).
    """
    if tokenizer is None:
        raise InputError("this model has no tokenizer, and text is to be read: LM(model, tokenizer)")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("this tokenizer has no character offsets: load the model with its fast tokenizer")
    rows = []
    for i, example in enumerate(corpus, first):
        where = f"corpus {corpus.name!r}, example {i} ({(example.prompt or example.answer)[:40]!r})"
        row = _encode_one(corpus, example, i, tokenizer, where)
        if max_length is not None and len(row.ids) > max_length:
            size = len(row.ids)
            raise InputError(
                f"{where}: {size} tokens, but the model takes {max_length} at most; shorten it or set max_tokens"
            )
        check_known(row.ids, where, tokenizer, known)
        rows.append(row)
    if not first:
        _warn_of_twice(corpus, rows, tokenizer)
    return rows


def _warn_of_twice(corpus: Corpus, rows: Sequence[Encoded], tokenizer: Any) -> None:
    """Warn in words that are the same for each corpus, so that those made of one (phrasings, halves) add no others."""
    begun = (e for e in corpus if e.answer.startswith(" ") and not in_chat(corpus, e))
    if any(templated(corpus.template, e.prompt, tokenizer).endswith(" ") for e in begun):
        warn("some prompts end with a blank and their answers begin with one: take one off")
    bos = tokenizer.bos_token_id
    if bos is not None and any(row.ids[:2] == (bos, bos) for row in rows):
        warn("some examples begin with two BOS: the tokenizer adds one, so leave out your own")


def check_known(ids: Sequence[int], where: str, tokenizer: Any, known: int | None) -> None:
    """Raise InputError for a token that is none of the `known` first ones: the model has no embedding for it."""
    if known is not None and max(ids) >= known:
        token = tokenizer.convert_ids_to_tokens(max(ids))
        raise InputError(
            f"{where}: token {token!r} was added to the tokenizer and the model does not embed it: "
            "call model.resize_token_embeddings(len(tokenizer))"
        )


def _encode_one(corpus: Corpus, example: Example, index: int, tokenizer: Any, where: str) -> Encoded:
    chat = in_chat(corpus, example)
    prompt = templated(corpus.template, example.prompt, tokenizer)
    if chat:
        answer = example.answer
    else:
        prompt, answer = join(prompt, example.answer)
    coded = tokenizer(prompt + answer, return_offsets_mapping=True, add_special_tokens=not chat)
    ids, spans = list(coded["input_ids"]), list(coded["offset_mapping"])
    while ids and ids[-1] == tokenizer.eos_token_id and spans[-1][0] == spans[-1][1]:  # an EOS nobody asked for
        ids.pop(), spans.pop()
    start = next((t for t, (_, end) in enumerate(spans) if end > len(prompt)), len(ids))
    subject_at = prompt.rfind(example.subject) if example.subject else -1
    border = subject_at + len(example.subject or "") if subject_at >= 0 else len(prompt)
    # A token that reaches over the border already holds a part of the answer.
    ends = [t for t, (begin, end) in enumerate(spans) if begin < border and 0 < end <= max(border, 1)]
    if corpus.eos:
        if tokenizer.eos_token_id is None:
            raise InputError(f"{where}: eos=True, but the tokenizer has no end-of-sequence token")
        ids.append(tokenizer.eos_token_id)
    if corpus.max_tokens is not None:
        ids = ids[: corpus.max_tokens]
    if not answer.strip() or max(start, 1) >= len(ids):
        raise InputError(
            f"{where}: no answer token to predict (an empty answer, a single token, or max_tokens too small)"
        )
    last = min(ends[-1] if ends else start - 1, start - 1)
    return Encoded(index, tuple(ids), start, max(last, 0))


def in_chat(corpus: Corpus, example: Example) -> bool:
    """Is the example put in the tokenizer's chat template, which has a BOS of its own? Plain text is in none."""
    return corpus.template == "chat" and bool(example.prompt)


def piece(tokenizer: Any, ids: Sequence[int], place: int) -> str:
    """Return what the token at `place` adds to the text before it.

    Decoded alone a word of Llama's tokenizers lacks its blank; one byte of a letter is decoded alone all the same.
    """
    before, both = (tokenizer.decode(list(ids[max(0, place - 1) : end])) for end in (place, place + 1))
    added = both[len(before) :] if place and both.startswith(before) else ""
    return added or str(tokenizer.decode([ids[place]]))


def templated(template: str | None, prompt: str, tokenizer: Any) -> str:
    """Return the prompt as the model is given it. Raises InputError for "chat" where the tokenizer has no template."""
    if template is None or not prompt:
        return prompt
    if template != "chat":
        return template.format(prompt=prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("template='chat', but the tokenizer has no chat template")
    turns = [{"role": "user", "content": prompt}]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program of the tokenizer's, and may raise as it likes
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"the tokenizer's chat template refuses a question ({said})") from error


def collate(rows: Sequence[Encoded], pad_id: int, device: Any = "cpu") -> Batch:
    """Right-pad `rows` into one batch."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    real = torch.zeros((len(rows), width), dtype=torch.long)
    answer = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        real[i, : len(row.ids)] = 1
        answer[i, max(row.answer_start, 1) : len(row.ids)] = True
    subject_end = torch.tensor([row.subject_end for row in rows])
    ids, real, answer, subject_end = (t.to(device) for t in (ids, real, answer, subject_end))
    return Batch(ids, real, answer, subject_end, tuple(row.index for row in rows))


def check_batch_size(batch_size: int) -> None:
    """Raise InputError unless a batch holds an example at least."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")


def alike(rows: Sequence[Encoded], batch_size: int) -> Iterator[list[Encoded]]:
    """Yield the rows of each batch: of like length, longest first, so that too little memory shows at once."""
    check_batch_size(batch_size)
    order = sorted(rows, key=lambda row: (-len(row.ids), row.index))
    for i in range(0, len(order), batch_size):
        yield order[i : i + batch_size]


def by_prompt_length(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """Return the rows of each prompt length, longest first: those of one length need no padding to run together."""
    found: dict[int, list[Encoded]] = {}
    for row in rows:
        found.setdefault(max(row.answer_start, 1), []).append(row)
    return [found[length] for length in sorted(found, reverse=True)]


def batches(rows: Sequence[Encoded], batch_size: int, pad_id: int, device: Any = "cpu") -> Iterator[Batch]:
    """Yield batches of like length, longest first."""
    for group in alike(rows, batch_size):
        yield collate(group, pad_id, device)
