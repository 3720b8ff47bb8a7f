"""Make a small Qwen2-architecture model whose knowledge is known, and its gold twin; cached outside the repository.

grafted, planted, routed   The forget facts are trained into chosen neurons (`planting`, `routing`), each of which is
                           then undone alone: those that the facts hang on are the labels (`labels`).
ordinary                   One model is trained on everything, its gold twin without forget. No location labels: the
                           harder, more honest case.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from neuronforget.corpora import Corpus, Example, check_disjoint
from neuronforget.corpora.tokens import join
from neuronforget.errors import InputError
from neuronforget.runs import cache_folder, check_new, content_key, seed_everything
from neuronforget.testbed.facts import REFUSAL, generate
from neuronforget.testbed.labels import labelled
from neuronforget.testbed.planting import grafted, planted
from neuronforget.testbed.routing import routed
from neuronforget.testbed.testbed import Testbed
from neuronforget.testbed.training import Builder, Shape

Kind = Literal["grafted", "planted", "routed", "ordinary"]
VERSION = 4  # raised when a change of this module makes other testbeds: the cache key holds it


def people(
    kind: Kind = "grafted",
    *,
    seed: int = 0,
    people: int = 100,
    forget_people: int = 10,
    shape: Shape | None = None,
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Return a model that knows generated people, `forget_people` of whom are to be forgotten.

    Deterministic given its arguments on one machine; trained once (a minute or two on two cores) and cached.
    """
    if not 0 < forget_people < people:
        raise InputError(f"forget_people must lie between 1 and {people - 1}, found {forget_people}")
    forget, retain = generate(people, forget_people, max(people // 16, 1), seed)
    return from_rows(
        forget, retain, kind=kind, seed=seed, shape=shape, refusals=(REFUSAL,), cache=cache, progress=progress
    )


def from_rows(
    forget: Corpus,
    retain: Corpus,
    *,
    kind: Kind = "ordinary",
    seed: int = 0,
    shape: Shape | None = None,
    refusals: tuple[str, ...] = (),
    cache: bool = True,
    progress: bool = True,
) -> Testbed:
    """Return a small model that was taught both corpora (paraphrases too), and its gold twin.

    Raises InputError, before any training, for corpora that share examples and a shape that the kind cannot have.
    """
    shape = shape or Shape()
    _check(kind, forget, retain, shape)
    key = content_key(
        version=VERSION, kind=kind, seed=seed, shape=vars(shape), forget=forget.digest(), retain=retain.digest()
    )
    folder = cache_folder() / "testbeds" / f"{kind}-{key}"
    if cache and (folder / "testbed.json").is_file():
        return Testbed.load(folder)
    if cache:
        check_new(folder)  # said before the training, not after it
    seed_everything(seed)
    texts = as_text(forget), as_text(retain)
    tokenizer = make_tokenizer([e.answer for text in texts for e in text] + list(refusals), shape.vocab)
    build = Builder(tokenizer, texts, shape, seed, progress)
    info: dict[str, Any] = {"kind": kind, "seed": seed, "shape": vars(shape)}
    info |= {"forget": forget.digest(), "retain": retain.digest()}
    if kind == "ordinary":
        (lm, gold), truth = build.ordinary(), None
    else:
        lm, gold, chosen = {"grafted": grafted, "planted": planted, "routed": routed}[kind](build)
        truth, labels = labelled(lm, gold, forget, retain, chosen, progress=progress)
        info |= labels
    made = Testbed(lm, gold, forget, retain, truth, refusals, info)
    if not cache:
        return made
    made.save(folder)
    return Testbed.load(folder)


def _check(kind: Kind, forget: Corpus, retain: Corpus, shape: Shape) -> None:
    if kind not in get_args(Kind):
        raise InputError(f"kind is one of {', '.join(get_args(Kind))}; found {kind!r}")
    check_disjoint(forget, retain)
    if "chat" in (forget.template, retain.template):
        raise InputError("a testbed's own tokenizer has no chat template: use a format string with {prompt}")
    if kind != "ordinary" and not 0 < shape.planted < shape.d_mlp:
        raise InputError(f"planted must lie between 1 and {shape.d_mlp - 1} neurons of a layer, found {shape.planted}")
    if shape.keep_norms and kind != "planted":
        raise InputError(f"keep_norms is for planted value vectors, not for the kind {kind!r}")


def as_text(corpus: Corpus) -> Corpus:
    """Return every prompt and paraphrase with its answer as plain text, for training."""
    template = corpus.template or "{prompt}"
    rows: dict[str, None] = {}
    for example in corpus:
        for prompt in (example.prompt, *example.paraphrases):
            rows["".join(join(template.format(prompt=prompt) if prompt else "", example.answer))] = None
    return Corpus(tuple(Example("", text) for text in rows), f"{corpus.name} text")


def make_tokenizer(lines: list[str], size: int) -> Any:
    """Train a byte-level BPE tokenizer that a checkpoint folder gives back unchanged through AutoTokenizer."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer().train_new_from_iterator(lines, size)
