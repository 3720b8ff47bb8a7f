"""What the command line needs besides the library: corpora and functions by name, and tables on a terminal."""

from __future__ import annotations

import ast
import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from neuronforget.arguments import hints_of
from neuronforget.corpora import Corpus, check_disjoint, jsonl, tofu
from neuronforget.errors import InputError, reading
from neuronforget.models import LM, Experts, load
from neuronforget.results import Results

Folder = Annotated[Path, tyro.conf.arg(metavar="PATH")]
_MARKS = {
    ".safetensors": b'"edit":', ".html": b'content="neuronforget"', ".json": b'"written_by": "neuronforget"',
}  # fmt: skip
Tap = Literal["transformer_lens", "torch_hooks", "nnsight"]


@dataclass(frozen=True)
class Data:
    """The model and the two corpora. A corpus is a JSONL file (rows with "prompt" and "answer", or "text"),
    or `tofu:forget10` (`tofu:forget10@FOLDER` without network)."""

    model: str
    """Checkpoint folder or hub id."""
    forget: str
    """What the model should no longer know: a JSONL file, tofu:SPLIT (from the hub) or tofu:SPLIT@FOLDER."""
    retain: str | None = None
    """What it should keep, in the same form. `attribute` does without, and so do methods of `erase` that do not ask."""
    max_tokens: int | None = None
    """Cut longer sequences to this many tokens. If not given, a sequence that is too long is an error."""
    n: int | None = None
    """Use the first n examples of each corpus."""
    template: str | None = None
    """Format string with {prompt}, or "chat" for the tokenizer's chat template."""
    device: str = "cpu"
    """Device of the model: cpu, cuda, cuda:1."""
    experts: Experts | None = None
    """Read the neurons of routed experts (True), of dense MLPs (False), or of the MLPs that all tokens share beside
    routed experts (shared). If not given: routed or dense, whichever more layers have."""

    def open(self) -> tuple[LM, Corpus, Corpus | None]:
        """Return (lm, forget, retain); the corpora are read first, so that their errors do not wait for the model."""
        if self.retain is not None:
            return self.both()
        forget = self.corpus(self.forget)
        return self.load(self.model), forget, None

    def both(self) -> tuple[LM, Corpus, Corpus]:
        """Return what `open` does. Raises InputError where no retain corpus is named."""
        if self.retain is None:
            raise InputError("give --retain, what the model should keep, in the form of --forget")
        forget, retain = self.corpus(self.forget), self.corpus(self.retain)
        check_disjoint(forget, retain)
        return self.load(self.model), forget, retain

    def load(self, path: str | Path) -> LM:
        """Load a checkpoint as the model is loaded."""
        return load(path, device=self.device, experts=self.experts)

    def corpus(self, spec: str) -> Corpus:
        """Read one corpus by its file name or its tofu: name."""
        if spec.startswith("tofu:"):
            split, _, folder = spec.removeprefix("tofu:").partition("@")
            with asking_for(f"tofu:{split}@FOLDER"):
                found = tofu(split, n=self.n, path=folder or None)
        else:
            found = jsonl(spec, n=self.n)
        return replace(found, template=self.template or found.template, max_tokens=self.max_tokens)


@contextmanager
def asking_for(option: str) -> Iterator[None]:
    """An error within the block that asks for the library's `path=FOLDER` asks for this option in its place."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("path=FOLDER", option)) from None


def named(name: str, table: Any) -> Callable[..., Any]:
    """Return the function of that name in `table` (a module, or a dictionary), or `package.module:function`."""
    where, _, function = name.rpartition(":")
    listed = isinstance(table, dict)
    known = table if listed else {n: v for n, v in vars(table).items() if _defined(v, table) and not n.startswith("_")}
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module of one's own lies where one stands
    try:
        found = getattr(import_module(where), function) if where else known.get(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"no function {name!r} ({error})") from None
    if not callable(found) or inspect.isclass(found):
        raise InputError(f"no function {name!r}; known: {', '.join(known)}; or give module:function")
    return found if listed else _called(found, table)


def assigned(words: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """Return settings from words NAME=VALUE; a value is a Python literal (0.1, [3,4], True), else text.

    `options` are settings that have an option of their own (None: not given). Raises InputError for one given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name.isidentifier() or name in found:
            raise InputError(f"--set takes settings NAME=VALUE, each name once; found {word!r}")
        try:
            found[name] = float(text) if text.lstrip("+-") in ("nan", "inf") else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    own = {name: value for name, value in options.items() if value is not None}
    if twice := found.keys() & own.keys():
        raise InputError(f"{min(twice)} is given by --set and by an option of its own: leave one of them out")
    return found | own


def built(function: Callable[..., Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, a dictionary among them as the class that the function takes there.

    {"rise": 0.05, "every": 1} is such a `Budget`. Raises InputError for a dictionary of other names.
    """
    hints, made = hints_of(function), dict(settings)
    for name, value in settings.items():
        kind: Any = next((kind for kind in get_args(hints.get(name)) if is_dataclass(kind)), None)
        if kind is not None and isinstance(value, dict):
            try:
                made[name] = kind(**value)
            except TypeError as error:
                known = ", ".join(field.name for field in fields(kind))
                raise InputError(f"{name} is given by {known}; found {value} ({error})") from None
    return made


def with_command(results: Results) -> Results:
    """Return the results with the command that made them, for whoever wants them again."""
    return replace(results, info={"command": shlex.join(["neuronforget", *sys.argv[1:]]), **results.info})


def _defined(value: Any, module: Any) -> bool:
    """Is it one of the functions that this module or package is for, not a part of them or one that it imports?"""
    if not (inspect.isfunction(value) and value.__module__.startswith(module.__name__)):
        return False
    return str(inspect.signature(value).return_annotation) in ("Scores", "Tensor")


def _called(function: Callable[..., Any], module: Any) -> Callable[..., Any]:
    """Return the function; that it does not take what those of `module` are given is said in one line."""

    @functools.wraps(function)
    def call(*args: Any, **settings: Any) -> Any:
        try:
            inspect.signature(function).bind(*args, **settings)
        except TypeError as error:
            raise InputError(f"{function.__name__} cannot be called like those of {module.__name__}: {error}") from None
        except ValueError:  # a function without a signature
            pass
        return function(*args, **settings)

    return call


def lines(path: Path) -> tuple[str, ...]:
    """Return the file's lines that are not blank."""
    with reading(path, "lines of text"):
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    if not found:
        raise InputError(f"{path} is empty")
    return found


def output(path: Path, suffix: str) -> Path:
    """Return `path` if it ends as its content should, and only an earlier output of its kind lies there."""
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"--out must name a {suffix} file, found {path}")
    if path.exists() and path.stat().st_size and not _ours(path):
        raise InputError(f"{path} exists and was not written by this command: choose another name with --out")
    return path


def _ours(path: Path) -> bool:
    """Does the file's head say that it is an edit, a report or figures of this package?"""
    with path.open("rb") as file:
        return _MARKS[path.suffix] in file.read(1 << 20)


def show(results: Results) -> None:
    """Print exact match and loss at full strength, and at matched damage where it was measured."""
    from rich.console import Console
    from rich.markup import escape

    from neuronforget.reporting.tables import caption_of
    from neuronforget.results import MATCHED

    console = Console()
    console = Console(width=max(console.width, 132))  # a piped table is not wrapped
    frame = results.frame
    points = [point for point in ("full", *MATCHED) if (frame["point"] == point).any()]
    for metric in ("exact_match", "probability"):
        for point in points:
            rows = frame[(frame["metric"] == metric) & (frame["point"].isin({point}) | (frame["scope"] == "reference"))]
            if len(rows):
                title = f"{metric.replace('_', ' ')}: {caption_of(results, point)}"
                console.print(_table(rows.assign(edit=rows["edit"].map(escape)), title))


def _table(rows: Any, title: str) -> Any:
    from rich.table import Table

    from neuronforget.figures.style import shown

    table = Table(title=f"{title} (95% bootstrap interval)")
    corpora = list(rows["corpus"].unique())
    table.add_column("edit", no_wrap=True)
    for corpus in corpora:
        table.add_column(corpus, justify="right")
    for name in rows["edit"].unique():
        own = rows[rows["edit"] == name].set_index("corpus")
        table.add_row(
            shown(name, own["scope"].iloc[0]), *(_cell(own.loc[c]) if c in own.index else "" for c in corpora)
        )
    return table


def _cell(row: Any) -> str:
    return f"{row['value']:.3f} [{row['low']:.2f}, {row['high']:.2f}]"
