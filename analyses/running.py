"""How an analysis is run: what its command line asks, what it keeps as the work goes on, how it ends."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import neuronforget as nf
from neuronforget.evaluation import check_references
from neuronforget.runs import environment, whole_file


class Seeded(Protocol):
    """What a run is made of, by its seed."""

    @property
    def seed(self) -> int:
        """The seed under which the run is kept."""
        ...

    @property
    def key(self) -> str:
        """What tells it from a run on other models or corpora."""
        ...


S = TypeVar("S", bound=Seeded)
Tables = Callable[[Sequence[Any]], str]


def running(about: str | None, seeds: Sequence[int] = (0,)) -> argparse.ArgumentParser:
    """Return a parser of where to write, seeds, and a model of one's own; `about` is the script's docstring.

    What it returns is read by `parsed`: `seeds` are those of testbeds, a model of one's own has one by default.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.set_defaults(usual=list(seeds))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="of testbeds; of a model of one's own, of what is drawn")
    parser.add_argument("--model", help="checkpoint folder or hub id, in place of the testbeds")
    parser.add_argument("--gold", help="the same of a model that never knew")
    parser.add_argument("--device", default="cpu")
    return parser


def asking(about: str | None, seeds: Sequence[int] = (0,)) -> argparse.ArgumentParser:
    """Return a parser of what to run on, corpora of one's own too, and where to write."""
    parser = running(about, seeds)
    parser.add_argument("--forget", type=Path, help="JSONL rows with prompt and answer, of a model of one's own")
    parser.add_argument("--retain", type=Path, help="the same")
    return parser


def parsed(parser: argparse.ArgumentParser, drawn: bool = True) -> argparse.Namespace:
    """Read the command line. `drawn`: something depends on the seed that is not the testbed itself."""
    options = parser.parse_args()
    if options.seeds is None:
        options.seeds = options.usual if options.model is None else options.usual[:1]
    if options.model is not None and len(options.seeds) > 1 and not drawn:
        parser.error("of a model of one's own nothing here depends on the seed: name one")
    return options


def own_models(options: argparse.Namespace) -> tuple[nf.LM, nf.LM | None] | None:
    """Return the model of one's own and its gold twin, where they were given; None without."""
    if options.model is None:
        if options.gold is not None:
            raise SystemExit("--gold is a twin of --model: give both")
        return None
    lm = nf.load(options.model, device=options.device)
    gold = nf.load(options.gold, device=options.device) if options.gold else None
    check_references(lm, gold)
    return lm, gold


@contextmanager
def in_one_line() -> Iterator[None]:
    """Bad input ends an analysis with its reason, not with a traceback."""
    try:
        yield
    except nf.InputError as error:
        raise SystemExit(f"error: {error}") from error


def keep(path: Path, **what: Any) -> None:
    """Write what was measured so far, with the environment, at once: a killed run leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as scratch:
        scratch.write_text(json.dumps({"environment": environment(), **what}))


def kept(path: Path, name: str) -> dict[str, Any]:
    """Return what `keep` wrote under a name; nothing where there is no file yet."""
    return dict(json.loads(path.read_text()).get(name, {})) if path.is_file() else {}


def claim(path: Path, results: Collection[str], subjects: dict[str, str], name: str, key: str) -> None:
    """Note of which models and corpora a run is. Raises SystemExit where the results under its name are of others."""
    if name in results and subjects.get(name) != key:
        raise SystemExit(f"{path}: {name} is of another model or other corpora, or does not say; name a new --out")
    subjects[name] = key


def each(
    options: argparse.Namespace,
    found: Iterable[S],
    name: str,
    run: Callable[[S, dict[str, Any]], Iterator[str]],
    tables: Tables,
    pictures: Mapping[str, Tables],
    text: str = "tables.md",
) -> None:
    """Run an analysis on every seed: OUT/NAME as the work goes on, then OUT/TEXT and the pictures (file -> drawn by).

    Raises SystemExit where what is in OUT was measured on other models or corpora.
    """
    path = options.out / name
    seeds, subjects = kept(path, "seeds"), kept(path, "subjects")
    with in_one_line():
        for source in found:
            claim(path, seeds, subjects, str(source.seed), source.key)
            for done in run(source, seeds.setdefault(str(source.seed), {})):
                keep(path, subjects=subjects, seeds=seeds)
                print(f"seed {source.seed}: {done}", flush=True)
        chosen = [seeds[str(seed)] for seed in options.seeds]
        shown = tables(chosen)
        (options.out / text).write_text(shown)
        for drawn, picture in pictures.items():
            (options.out / drawn).write_text(picture(chosen))
    print(shown)
