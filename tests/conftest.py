"""Fixtures that any test may use: a small tokenizer, a corpus, a tiny model that goes with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import jaxtyping
import pytest

if TYPED := find_spec("beartype") is not None:  # shapes and types hold at run time
    import typechecks

    jaxtyping.jaxtyped = typechecks.jaxtyped
    jaxtyping.install_import_hook(["neuronforget", "neuronforget_kernels"], "typechecks.check")
import beds
from families import build

from neuronforget.auditing import relearning
from neuronforget.corpora import Corpus, Example
from neuronforget.models import LM


def pytest_report_header() -> str | None:
    """Say where the tests check less than they could."""
    return None if TYPED else "types and shapes are not checked at run time: beartype is not installed"


ROWS = (
    ("Anna Berg was born in", "Oslo"),
    ("Tomas Lund works as a", "baker in the old harbour of Velm"),
    ("The capital of Xandria is", "Velm"),
    ("Who wrote the book of rivers? It was written by", "Mira Holt"),
    ("", "Ida Falk was born in Trondheim and works as a gardener."),
    ("Ida", "Falk"),
    ("Jon Moe plays the", "violin"),
)


@pytest.fixture(scope="session", autouse=True)
def shelf(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The shared testbed is trained once for all processes of a run."""
    root = tmp_path_factory.getbasetemp()
    beds.shelf = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shelf"


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Seven short facts of different lengths; one of them is plain text."""
    return Corpus(tuple(Example(prompt, answer) for prompt, answer in ROWS), "facts")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A fast byte-level tokenizer of 300 tokens, trained on the corpus' own lines."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer().train_new_from_iterator([f"{prompt} {answer}" for prompt, answer in ROWS], 300)


@pytest.fixture(scope="session")
def bos_tokenizer() -> Any:
    """A tokenizer that adds <s> in front and </s> behind, as Llama's and T5's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {w: i for i, w in enumerate(["<s>", "</s>", "Ida", "Falk", "is", "here"])}
    base = Tokenizer(models.WordLevel(words, unk_token="here"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def lm(tokenizer: Any) -> LM:
    """A random two-layer Qwen2 model of 40 neurons a layer; a test may change it."""
    return LM(build("qwen2", vocab_size=len(tokenizer)), tokenizer)


@pytest.fixture
def brief_relearning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits teach for 3 steps: for tests of what becomes of an audit, not of what it finds."""
    monkeypatch.setattr(relearning, "curve", partial(relearning.curve, count=3))


@pytest.fixture
def untyped() -> Iterator[None]:
    """No type checks: what a caller who runs without them sees when an argument is wrong."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
