"""Corpus: the examples that carry (or must not lose) a piece of knowledge."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.lines import file_name, read_rows
from neuronforget.errors import InputError
from neuronforget.runs import whole_file

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """One fact to be asked: `prompt` is given, `answer` is scored.

    `paraphrases` are other prompts with the same answer (the phrasings that an erasure has not seen),
    `wrong` are false answers, `options` the choices of a closed question, `subject` a substring of the
    prompt: examples of one subject are one unit of resampling, and edits of facts read its last token (the prompt's
    where the subject does not stand in it). A row of plain text is an example with an empty prompt: every predicted
    token is then answer.
    """

    prompt: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    subject: str | None = None

    @classmethod
    def from_row(cls, row: Any) -> Example:
        """Read a row with "prompt" and "answer", or with "text". Raises InputError for anything else."""
        if not isinstance(row, Mapping):
            raise InputError(f"expected an object with 'prompt' and 'answer', or 'text', found {type(row).__name__}")
        if "text" in row and "prompt" not in row:
            row = {**row, "prompt": "", "answer": row["text"]}
        missing = [key for key in ("prompt", "answer") if not isinstance(row.get(key), str)]
        if missing:
            raise InputError(f"no string field {missing[0]!r} (fields found: {', '.join(row) or 'none'})")
        known = {key: row[key] for key in (f.name for f in fields(cls)) if row.get(key) is not None}
        for key in ("paraphrases", "wrong", "options"):
            value = known.get(key, ())
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                raise InputError(f"field {key!r} must be a list of strings")
            known[key] = tuple(value)
        if not isinstance(known.get("subject", ""), str):
            raise InputError("field 'subject' must be a string")
        try:
            json.dumps(known, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError("half of a surrogate pair, which is not text (such as \\ud800)") from None
        return cls(**known)


@dataclass(frozen=True)
class Corpus:
    """Named examples and how they are put before a model.

    `template` is a format string with `{prompt}` (or "chat" for the tokenizer's own chat template), `eos`
    adds the end-of-sequence token to the answer, `max_tokens` cuts longer sequences on the right (without
    it a sequence over the model's length is an error).
    """

    examples: tuple[Example, ...] = field(repr=False)
    name: str = "corpus"
    template: str | None = None
    eos: bool = False
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if not self.examples:
            raise InputError(f"corpus {self.name!r} is empty: give at least one example")
        if strange := next((e for e in self.examples if not isinstance(e, Example)), None):
            kind = type(strange).__name__
            raise InputError(f"corpus {self.name!r} must hold nf.Example, found {kind}: nf.Corpus.from_rows reads rows")
        check_template(self.template)
        check_max_tokens(self.max_tokens)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], name: str = "corpus", **settings: Any) -> Corpus:
        """Build a corpus from in-memory rows (see `Example.from_row`); an error names the row."""
        return cls(tuple(examples(enumerate(rows), f"corpus {name!r}, row")), name, **settings)

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def __repr__(self) -> str:
        first = self.examples[0]
        return f"Corpus({self.name!r}, {len(self)} examples, first: {first.prompt[:40]!r} -> {first.answer[:24]!r})"

    @checks_kinds
    def head(self, n: int) -> Corpus:
        """Return the first `n` examples. Raises InputError where that is none."""
        return replace(self, examples=self.examples[:n])

    @checks_kinds
    def sample(self, n: int, seed: int) -> Corpus:
        """Return `n` random examples in their order (all of them if there are no more), at least one."""
        if len(self) <= n:
            return self
        keep = sorted(random.Random(seed).sample(range(len(self)), n))
        return replace(self, examples=tuple(self.examples[i] for i in keep))

    def with_answers(self, answers: Iterable[str], name: str) -> Corpus:
        """Return the same prompts with other answers, one for each example."""
        pairs = zip(self.examples, answers, strict=True)
        return replace(self, examples=tuple(replace(e, answer=a) for e, a in pairs), name=name)

    def paraphrased(self) -> Corpus | None:
        """Return every paraphrase as an example of its own (duplicates once), or None if there is none."""
        rows = {(p, e.answer): replace(e, prompt=p, paraphrases=()) for e in self for p in e.paraphrases}
        return replace(self, examples=tuple(rows.values()), name=f"{self.name} unseen") if rows else None

    def digest(self) -> str:
        """Return a 16-digit hash of content and settings: results carry it."""
        fingerprint = Fingerprint([self.template, self.eos, self.max_tokens])
        fingerprint.add(self)
        return fingerprint.digest()

    def save(self, path: str | Path) -> None:
        """Write the examples as JSONL, one row per line, all of them or nothing."""
        lines = [
            json.dumps({k: v for k, v in asdict(e).items() if v or k == "prompt"}, ensure_ascii=False) for e in self
        ]
        with whole_file(path) as scratch:
            scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, **settings: Any) -> Corpus:
        """Read what `save` wrote, as `corpora.jsonl` does; name and settings are not in the file: give them again."""
        return cls(tuple(examples(read_rows(path), f"{path}, line")), **{"name": file_name(path)} | settings)


def subjects_of(corpus: Corpus) -> np.ndarray:
    """Number each example's subject; one without a subject is a unit of its own."""
    names = [e.subject if e.subject is not None else (i,) for i, e in enumerate(corpus)]
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names])


def digests_of(corpora: Iterable[Corpus | None]) -> dict[str, str]:
    """Return the digest of each corpus that is given by its name; where one has the name of another, by "name (2)"."""
    found: dict[str, str] = {}
    for corpus in corpora:
        if corpus is not None:
            again = (f"{corpus.name} ({i})" for i in count(2))
            name = corpus.name if corpus.name not in found else next(n for n in again if n not in found)
            found[name] = corpus.digest()
    return found


class Fingerprint:
    """The digest of a corpus, taken while its examples pass by: nothing of them is held."""

    def __init__(self, settings: list[Any]) -> None:
        self._settings, self._hash = settings, hashlib.sha256(b"[")

    def add(self, examples: Iterable[Example]) -> None:
        """Take in examples."""
        for example in examples:
            self._hash.update(json.dumps(asdict(example), sort_keys=True).encode() + b", ")

    def digest(self) -> str:
        """Return the 16-digit hash of the examples so far and the settings: what `json.dumps` of all would give."""
        total = self._hash.copy()
        total.update(json.dumps(self._settings)[1:].encode())
        return total.hexdigest()[:16]


def examples(rows: Iterable[tuple[int, Any]], where: str) -> Iterator[Example]:
    """Yield the example of each (number, row); an error says where and which number."""
    for number, row in rows:
        try:
            yield Example.from_row(row)
        except InputError as error:
            raise InputError(f"{where} {number}: {error}") from None


def texts_of(given: str | Iterable[T]) -> tuple[str | T, ...]:
    """Return what was given one by one: a bare string is one text, never a row of letters."""
    return (given,) if isinstance(given, str) else tuple(given)


def check_template(template: str | None) -> None:
    """Raise InputError unless `template` is None, "chat" or a format string with `{prompt}`."""
    if template in (None, "chat"):
        return
    try:
        sound = "\0" in str(template).format(prompt="\0")
    except Exception:  # whatever a format string can raise
        sound = False
    if not sound:
        raise InputError(f"template must be 'chat' or a format string with {{prompt}}, found {template!r}")


def check_max_tokens(max_tokens: Any) -> None:
    """Raise InputError unless `max_tokens` is None or a whole number from 1."""
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise InputError(f"max_tokens is a number of tokens: at least 1, or None; found {max_tokens!r}")


def text_of(example: Example) -> str:
    """Return prompt and answer as one text, in which any white space is one space: what tells examples apart."""
    return " ".join(f"{example.prompt} {example.answer}".split())


def check_disjoint(forget: Corpus, retain: Corpus) -> None:
    """Raise InputError if an example stands in both corpora, as text: no edit can forget and keep it."""
    if shared := set(map(text_of, forget)) & set(map(text_of, retain)):
        raise InputError(
            f"{forget.name!r} and {retain.name!r} share {len(shared)} examples (first: {min(shared)[:60]!r}); "
            "remove them from one of the two"
        )
