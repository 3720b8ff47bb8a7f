"""Stream: a corpus that need not fit into memory, read window by window each time it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from neuronforget.arguments import checks_kinds
from neuronforget.corpora.corpus import (
    Corpus,
    Example,
    Fingerprint,
    check_disjoint,
    check_max_tokens,
    check_template,
    examples,
    text_of,
)  # fmt: skip
from neuronforget.corpora.from_hub import hub_rows
from neuronforget.corpora.lines import file_name, read_rows
from neuronforget.corpora.tokens import Encoded, alike
from neuronforget.errors import InputError


@dataclass(frozen=True, eq=False)
class Stream:
    """Named examples read anew from their source by each iteration, `window` of them held at a time.

    Batches of like length are formed within a window. `template`, `eos` and `max_tokens` are those of `Corpus`.
    """

    read: Callable[[], Iterable[Example]] = field(repr=False)
    name: str = "stream"
    template: str | None = None
    eos: bool = False
    max_tokens: int | None = None
    window: int = 4096

    def __post_init__(self) -> None:
        check_template(self.template)
        check_max_tokens(self.max_tokens)
        if self.window < 1:
            raise InputError(f"window is the number of examples held at a time: at least 1, found {self.window}")

    def __iter__(self) -> Iterator[Example]:
        return iter(self.read())

    def windows(self) -> Iterator[Corpus]:
        """Yield the examples window by window. Raises InputError if there is none."""
        rows, empty = iter(self), True
        while chunk := tuple(islice(rows, self.window)):
            empty = False
            yield self._corpus(chunk)
        if empty:
            raise InputError(f"stream {self.name!r} is empty: it gave no example")

    @checks_kinds
    def head(self, n: int) -> Corpus:
        """Return the first `n` examples in memory."""
        return self._corpus(tuple(islice(self, n)))

    def _corpus(self, chunk: tuple[Example, ...]) -> Corpus:
        return Corpus(chunk, self.name, self.template, self.eos, self.max_tokens)


#: What can be recorded.
Source = Corpus | Stream


@checks_kinds
def stream(
    source: str | Path | Iterable[Any],
    config: str | None = None,
    *,
    split: str = "train",
    n: int | None = None,
    name: str | None = None,
    **settings: Any,
) -> Stream:
    """Read a corpus lazily: a JSONL file, a data set on the hub, or rows that can be iterated more than once.

    Rows are those of `jsonl`; a `datasets.IterableDataset` gives such rows after `.map` or `.rename_columns`.
    `config` and `split` choose a part of a hub data set, `n` keeps the first n rows, `settings` are those of
    `Stream`. An error in a row is raised when the row is reached, and names it.
    """
    if isinstance(source, str | Path):
        title, rows = name or file_name(source), _lines_or_hub(source, config, split)
        where = f"{source}, line" if Path(source).is_file() else f"{source}, row"
    elif iter(source) is source:
        raise InputError("a stream is read anew at each use, a generator only once: give a list, a data set or a file")
    else:
        title = name or "stream"
        rows, where = partial(enumerate, source), f"stream {title!r}, row"
    return Stream(lambda: islice(examples(rows(), where), n), title, **settings)


def _lines_or_hub(source: str | Path, config: str | None, split: str) -> Callable[[], Iterable[tuple[int, Any]]]:
    if Path(source).is_file():
        return partial(read_rows, source)
    if str(source).endswith((".jsonl", ".gz")) or isinstance(source, Path):
        raise InputError(f"no such file: {source}")
    found = hub_rows(source, config, split=split, streaming=True, instead="a .jsonl file")  # said now, not on first use
    return partial(enumerate, found)


def encoded_batches(
    source: Source, encode: Callable[..., list[Encoded]], batch_size: int, fingerprint: Fingerprint
) -> Iterator[list[Encoded]]:
    """Yield the examples of each batch, of like length within the part that is held.

    A corpus is held, and so checked, as a whole; errors are those of `encode` (see `LM.encode`). `fingerprint` takes in
    what has been read.
    """
    first = 0
    for part in (source,) if isinstance(source, Corpus) else source.windows():
        fingerprint.add(part)
        yield from alike(encode(part, first=first), batch_size)
        first += len(part)


def disjoint(forget: Source, retain: Source) -> tuple[Source, Source]:
    """Return both, sure to share no example: two corpora are compared now, a stream raises while it is read.

    A stream's examples are looked up, as they pass, among the 16-byte hashes of the other corpus; where both are
    streams, the hashes of `forget` are kept while it is read (about 100 bytes an example), so it is read first.
    """
    if isinstance(forget, Corpus):
        if isinstance(retain, Corpus):
            check_disjoint(forget, retain)
            return forget, retain
        return forget, _apart(retain, {_key(e) for e in forget}, forget.name)
    if isinstance(retain, Corpus):
        return _apart(forget, {_key(e) for e in retain}, retain.name), retain
    seen: set[bytes] = set()
    return _noting(forget, seen), _apart(retain, seen, forget.name)


def _key(example: Example) -> bytes:
    return blake2b(text_of(example).encode(), digest_size=16).digest()


def _apart(source: Stream, others: set[bytes], whose: str) -> Stream:
    def read() -> Iterator[Example]:
        for number, example in enumerate(source):
            if _key(example) in others:
                text = (example.prompt or example.answer)[:60]
                raise InputError(
                    f"{source.name!r} and {whose!r} share an example (example {number} of {source.name!r}: {text!r}); "
                    "remove it from one of the two"
                )
            yield example

    return replace(source, read=read)


def _noting(source: Stream, seen: set[bytes]) -> Stream:
    def read() -> Iterator[Example]:
        for example in source:
            seen.add(_key(example))
            yield example

    return replace(source, read=read)
