"""Make a small Qwen2-architecture model whose knowledge is known, and its gold twin; cached outside the repository.

grafted, planted, routed   The forget facts are trained into chosen neurons (`planting`, `routing`), each of which is
                           then undone alone: those that the facts hang on are the labels (`labels`).
ordinary                   One model is trained on everything, its gold twin without forget. No location labels: the
                           harder, more honest case.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from neuronforget.arguments import checks_kinds
from neuronforget.corpora import Corpus, Example, check_disjoint
from neuronforget.corpora.tokens import join
from neuronforget.errors import InputError
from neuronforget.runs import cache_folder, check_new, content_key, seed_everything
from neuronforget.testbed.facts import REFUSAL, generate
from neuronforget.testbed.labels import labelled
from neuronforget.testbed.linked import linked as link
from neuronforget.testbed.planting import grafted, planted
from neuronforget.testbed.routing import routed
from neuronforget.testbed.testbed import Testbed
from neuronforget.testbed.training import Builder, Shape

Kind = Literal["grafted", "planted", "routed", "ordinary"]
VERSION = 4  # raised when a change of this module makes other testbeds: the cache key holds it


@checks_kinds
def people(
    kind: Kind = "grafted",
    *,
    seed: int = 0,
    people: int = 100,
    forget_people: int = 10,
    linked: bool = False,
    shape: Shape | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Return a model that knows generated people, `forget_people` of whom are to be forgotten.

    `linked`: each has a teacher among them too, and the model answers two-step questions; those that take a forgotten
    fact are `derived`, which the request to forget does not name (`testbed.linked`).
    Deterministic given its arguments on one machine; trained once (a minute or two on two cores) and cached.
    """
    if not 0 < forget_people < people:
        raise InputError(f"forget_people must lie between 1 and {people - 1}, found {forget_people}")
    settings: dict[str, Any] = {"kind": kind, "seed": seed, "shape": shape, "cache": cache, "progress": progress}
    unknown = max(people // 16, 1)
    if linked:
        made = link(people, forget_people, unknown, seed)
        return from_rows(made.forget, made.retain, derived=made.derived, refusals=(REFUSAL,), **settings)
    return from_rows(*generate(people, forget_people, unknown, seed), refusals=(REFUSAL,), **settings)


@checks_kinds
def from_rows(
    forget: Corpus,
    retain: Corpus,
    *,
    derived: Corpus | None = None,
    kind: Kind = "ordinary",
    seed: int = 0,
    shape: Shape | None = None,
    refusals: tuple[str, ...] = (),
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Return a small model that was taught both corpora (paraphrases too), and its gold twin.

    `derived` is what follows from forget: taught with it, and no part of what the erasure is shown. Raises
    InputError, before any training, for corpora that share examples and a shape that the kind cannot have.
    """
    shape = shape or Shape()
    _check(kind, forget, retain, derived, shape)
    corpora = {"forget": forget, "retain": retain, **({"derived": derived} if derived is not None else {})}
    digests = {name: corpus.digest() for name, corpus in corpora.items()}
    key = content_key(version=VERSION, kind=kind, seed=seed, shape=vars(shape), **digests)
    folder = cache_folder() / "testbeds" / f"{kind}-{key}"
    if cache and (folder / "testbed.json").is_file():
        return Testbed.load(folder)
    if cache:
        check_new(folder)  # said before the training, not after it
    seed_everything(seed)
    texts = as_text(forget, *([derived] if derived is not None else [])), as_text(retain)
    tokenizer = make_tokenizer([e.answer for text in texts for e in text] + list(refusals), shape.vocab)
    build = Builder(tokenizer, texts, shape, seed, progress)
    info: dict[str, Any] = {"kind": kind, "seed": seed, "shape": vars(shape), **digests}
    if kind == "ordinary":
        (lm, gold), truth = build.ordinary(), None
    else:
        lm, gold, chosen = {"grafted": grafted, "planted": planted, "routed": routed}[kind](build)
        truth, labels = labelled(lm, gold, forget, retain, chosen, progress=progress)
        info |= labels
    made = Testbed(lm, gold, forget, retain, truth, refusals, info, derived)
    return _kept(made, folder) if cache else made


def _kept(made: Testbed, folder: Path) -> Testbed:
    """Write a testbed and read it back; one that another run has made meanwhile is the same, and stays."""
    try:
        made.save(folder)
    except InputError:
        if not (folder / "testbed.json").is_file():
            raise
    return Testbed.load(folder)


def _check(kind: Kind, forget: Corpus, retain: Corpus, derived: Corpus | None, shape: Shape) -> None:
    check_disjoint(forget, retain)
    if derived is not None:
        check_disjoint(derived, forget)
        check_disjoint(derived, retain)
    if "chat" in {corpus.template for corpus in (forget, retain, derived) if corpus is not None}:
        raise InputError("a testbed's own tokenizer has no chat template: use a format string with {prompt}")
    if kind != "ordinary" and not 0 < shape.planted < shape.d_mlp:
        raise InputError(f"planted must lie between 1 and {shape.d_mlp - 1} neurons of a layer, found {shape.planted}")
    if shape.keep_norms and kind != "planted":
        raise InputError(f"keep_norms is for planted value vectors, not for the kind {kind!r}")


def as_text(*corpora: Corpus) -> Corpus:
    """Return every prompt and paraphrase of some corpora with its answer as plain text, for training."""
    rows: dict[str, None] = {}
    for corpus in corpora:
        template = corpus.template or "{prompt}"
        for example in corpus:
            for prompt in (example.prompt, *example.paraphrases):
                rows["".join(join(template.format(prompt=prompt) if prompt else "", example.answer))] = None
    return Corpus(tuple(Example("", text) for text in rows), f"{corpora[0].name} text")


def make_tokenizer(lines: list[str], size: int) -> Any:
    """Train a byte-level BPE tokenizer that a checkpoint folder gives back unchanged through AutoTokenizer."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer().train_new_from_iterator(lines, size)
