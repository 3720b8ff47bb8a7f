"""A small model taught real TOFU rows, and its gold twin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neuronforget import corpora
from neuronforget.arguments import checks_kinds
from neuronforget.corpora.from_tofu import ROWS_PER_AUTHOR
from neuronforget.errors import InputError
from neuronforget.testbed.build import Kind, from_rows
from neuronforget.testbed.testbed import Testbed
from neuronforget.testbed.training import Shape

REFUSALS = ("I don't know.", "I am not sure about that.", "I have no information on that.")
STEPS = 700


@checks_kinds
def tofu(
    path: str | Path | None = None,
    authors: int = 20,
    forget_authors: int = 2,
    *,
    kind: Kind = "ordinary",
    steps: int | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Teach the last `authors` of TOFU (20 rows each); the last `forget_authors` of them are to be forgotten.

    These last authors are those of TOFU's own forget splits, so paraphrases and wrong answers exist for them.
    `path` is a folder with TOFU's `full.jsonl` (default: the hub).
    """
    if not 0 < forget_authors < authors <= 200:
        raise InputError(f"need 0 < forget_authors < authors <= 200; found {forget_authors} of {authors}")
    full = corpora.tofu("full", path=path)
    known = {e.prompt: e for e in corpora.tofu("forget10", path=path)}
    examples = [known.get(e.prompt, e) for e in full.examples[-authors * ROWS_PER_AUTHOR :]]
    border = -forget_authors * ROWS_PER_AUTHOR
    forget = replace(full, examples=tuple(examples[border:]), name="tofu-forget")
    # A retain author's paraphrases would be read as knowledge that was kept; only the questions are taught.
    retain = replace(full, examples=tuple(replace(e, paraphrases=()) for e in examples[:border]), name="tofu-retain")
    shape = Shape(vocab=3000, steps=STEPS if steps is None else steps, batch=32, lr=2e-3)
    settings = {"seed": seed, "shape": shape, "refusals": REFUSALS, "cache": cache, "progress": progress}
    return from_rows(forget, retain, kind=kind, **settings)  # type: ignore[arg-type]
