"""What is handed to a public function: another kind than it takes is refused by name, before any work."""

from __future__ import annotations

import enum
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import neuronforget as nf
from neuronforget.arguments import check_settings, checks_kinds, numbers

NOUNS = ("LM", "Corpus", "Source", "Moments", "Scores", "Neurons", "Edit", "Results")
MOMENT_SCORES = (
    "activation_entropy", "activation_gap", "activation_norm", "activation_ratio", "expert", "fisher", "grad_x_act",
    "mean_patch", "snip", "wanda",
)  # fmt: skip
PICTURES = ("attribution_map", "dots", "frontier", "layer_share", "rank_profile")
MODEL_SCORES = ("exact", "direct", "gradient_drop", "hard_concrete", "slimming", "integrated", "relp", "value_fisher")
HELPERS = ("how_many", "benjamini_hochberg", "zero_ablation")  # they take arrays and numbers


def public() -> dict[str, Callable[..., Any]]:
    """Every public function that takes a noun, by the name a user calls it by."""
    found = {f"nf.{n}": getattr(nf, n) for n in ("attribute", "audit", "compare", "evaluate", "record", "report")}
    for home in (nf.erase, nf.erase.guards, nf.select):
        where = home.__name__.replace("neuronforget", "nf")
        functions = {n: f for n, f in vars(home).items() if inspect.isfunction(f) and n not in HELPERS}
        found |= {f"{where}.{n}": f for n, f in functions.items() if not n.startswith("_")}
    for home, names in (
        (nf.scores, (*MODEL_SCORES, *MOMENT_SCORES, "lens")),
        (nf.metrics, ("activation_shift", "neuron_shift")),
        (nf.metrics.membership, ("membership",)),
        (nf.testbed, ("from_rows",)),
        (nf.figures, PICTURES),
    ):
        found |= {f"{home.__name__.replace('neuronforget', 'nf')}.{n}": getattr(home, n) for n in names}
    return found


def noun_arguments() -> list[tuple[str, str]]:
    """(function, argument) for each argument whose annotation begins with a noun."""
    return [
        (name, argument)
        for name, function in public().items()
        for argument, about in inspect.signature(function).parameters.items()
        if str(about.annotation).split(" | ")[0] in NOUNS
    ]


def test_there_are_as_many_as_the_catalogue_says() -> None:
    assert len(public()) > 64
    assert len(noun_arguments()) > 145


@pytest.mark.parametrize(("name", "argument"), noun_arguments())
def test_every_public_function_refuses_what_is_no_noun(name: str, argument: str) -> None:
    function = public()[name]
    with pytest.raises(nf.InputError, match=f"^{function.__name__}: {argument} must be .*; found object$"):
        function(**{argument: object()})


@checks_kinds
@numbers(whole=">= 0", share="> 0")
def taken(
    place: str | Path = "",
    names: Sequence[str] = (),
    corpora: Sequence[nf.Corpus] = (),
    pair: tuple[nf.Corpus, int] | None = None,
    edits: Mapping[str, nf.Edit] | None = None,
    score: Callable[..., nf.Scores] | None = None,
    count: int | float = 1,
    whole: int = 1,
    share: float = 1.0,
    sure: bool = True,
    by: Literal["value", "magnitude"] = "value",
    shares: Sequence[float] = (),
    batch_size: int | None = 1,
    kept: str | Path | None = None,
    tokens: Sequence[int | str] = (),
    rows: Sequence[Mapping[str, Any]] | None = None,
    **more: Any,
) -> str:
    return "taken"


CORPUS = nf.Corpus.from_rows([{"prompt": "a", "answer": "b"}])
EDIT = nf.Edit(())


@pytest.mark.parametrize(
    "given",
    [
        {"place": Path("x")},
        {"names": "one"},  # a text is a row of texts, which the functions read as one
        {"names": ["a", "b"]},
        {"corpora": (CORPUS, CORPUS)},
        {"names": {"a", "b"}},
        {"names": {"a": 1}.keys()},
        {"corpora": []},
        {"corpora": {"a": CORPUS}.values()},
        {"tokens": "one"},
        {"tokens": ["one", 2]},
        {"rows": [{"value": 0.5, "edit": "ablate"}]},
        {"pair": (CORPUS, 3)},
        {"pair": None},
        {"edits": {"a": EDIT}},
        {"edits": {}},
        {"score": nf.scores.grad_x_act},
        {"count": np.float32(2)},
        {"count": torch.tensor(2.0)},
        {"whole": np.int64(2)},
        {"whole": torch.tensor(2)},
        {"sure": np.bool_(True)},
        {"shares": np.ones(3)},
        {"by": "magnitude"},
        {"batch_size": None},
        {"kept": "new/folder"},
        {"other": object()},
    ],
)
def test_what_fits_is_taken(given: dict[str, Any]) -> None:
    assert taken(**given) == "taken"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"place": 3}, "taken: place must be str or Path; found 3"),
        ({"names": ["a", 3]}, "taken: names must be a list of str; found list of int and str"),
        ({"names": None}, "taken: names must be a list of str; found None"),
        ({"names": (n for n in "ab")}, "taken: names must be a list of str; found generator"),
        ({"names": {3}}, "taken: names must be a list of str; found set"),
        ({"tokens": 3}, "taken: tokens must be a list of whole numbers or str; found 3"),
        ({"rows": [3]}, "taken: rows must be a list of a dictionary of Any by name; found list of int"),
        ({"corpora": CORPUS}, "taken: corpora must be a list of Corpus; found Corpus"),
        ({"corpora": "forget"}, "taken: corpora must be a list of Corpus; found 'forget'"),
        ({"pair": (3, CORPUS)}, "taken: pair must be (Corpus, a whole number); found tuple of Corpus and int"),
        ({"edits": [EDIT]}, "taken: edits must be a dictionary of Edit by name; found list of Edit"),
        ({"edits": {"a": CORPUS}}, "taken: edits must be a dictionary of Edit by name; found dict of Corpus"),
        ({"score": "grad_x_act"}, "taken: score must be a function, such as those of nf.scores; found 'grad_x_act'"),
        ({"count": True}, "taken: count must be a number; found True"),
        ({"count": float("nan")}, "taken: count must be a number; found nan"),
        ({"whole": 2.5}, "taken: whole must be a whole number; found 2.5"),
        ({"whole": True}, "taken: whole must be a whole number; found True"),
        ({"whole": -1}, "taken: whole must be a whole number >= 0, found -1"),
        ({"share": 0}, "taken: share must be a number > 0, found 0"),
        ({"sure": "yes"}, "taken: sure must be True or False; found 'yes'"),
        ({"sure": None}, "taken: sure must be True or False; found None"),
        ({"by": "size"}, "taken: by must be 'value' or 'magnitude'; found 'size'"),
        ({"shares": [0.5, "a"]}, "taken: shares must be a list of numbers; found list of float and str"),
        ({"batch_size": 0}, "taken: batch_size must be a whole number >= 1, found 0"),
        ({"kept": __file__}, f"{__file__} is a file: name a folder, which may be new"),
        ({"count": "3"}, "taken: count must be a number; found '3'"),
    ],
)
def test_what_does_not_fit_is_said(given: dict[str, Any], words: str) -> None:
    with pytest.raises(nf.InputError) as caught:
        taken(**given)
    assert str(caught.value) == words


def test_the_message_says_how_one_comes_by_the_noun() -> None:
    words = (
        r"record: corpus must be Corpus or Stream \(nf.corpora.jsonl\(path\) or nf.Corpus.from_rows\(rows\) makes one\)"
    )
    with pytest.raises(nf.InputError, match=words + "; found list of dict"):
        nf.record(corpus=[{"prompt": "a", "answer": "b"}])  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("read", [nf.corpora.rwku, nf.corpora.counterfact, nf.corpora.tofu])
def test_a_corpus_is_not_read_from_what_is_no_path(read: Callable[..., nf.Corpus]) -> None:
    with pytest.raises(nf.InputError, match=f"^{read.__name__}: path must be str or Path; found 3$"):
        read(path=3)


def test_a_models_batches_are_those_of_a_corpus_or_of_tokens(lm: nf.LM) -> None:
    stream = nf.corpora.stream([{"text": "a b"}])
    with pytest.raises(nf.InputError, match=r"^batches: rows must be Corpus or a list of Encoded.*; found Stream$"):
        lm.batches(stream, 2)  # type: ignore[arg-type]
    with pytest.raises(nf.InputError, match=r"^encode: corpus must be Corpus.*; found list of dict$"):
        lm.encode([{"prompt": "a", "answer": "b"}])  # type: ignore[arg-type]


def test_a_missing_argument_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        taken_whole(3)  # type: ignore[call-arg]


@checks_kinds
def taken_whole(one: int, other: int) -> int:
    return one + other


def test_a_corpus_holds_examples() -> None:
    """In a process of its own: here the tests' checks of every annotation come first."""
    lines = "import neuronforget as nf\nfor rows in (('text',), ({'prompt': 'a', 'answer': 'b'},)):\n"
    lines += "    try:\n        nf.Corpus(rows)\n    except nf.InputError as error:\n        print(error)"
    printed = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout
    words = "corpus 'corpus' must hold nf.Example, found {}: nf.Corpus.from_rows reads rows"
    assert printed.splitlines() == [words.format("str"), words.format("dict")]


class Way(enum.Enum):
    UP = 1


class Named(typing.Protocol):
    name: str


def test_a_choice_is_of_any_library() -> None:
    def own(
        way: Literal["mean", "wrong"] = "mean", experts: Literal[True, 2] = 2, to: Literal[Way.UP] = Way.UP
    ) -> None: ...

    check_settings(own, {"way": np.str_("wrong"), "experts": np.bool_(True), "to": Way.UP})
    check_settings(own, {"experts": np.int64(2)})
    for wrong in ({"way": "other"}, {"way": None}, {"experts": 1}, {"experts": False}, {"to": 1}):
        with pytest.raises(nf.InputError, match=next(iter(wrong))):
            check_settings(own, wrong)


def test_a_function_of_ones_own_names_and_annotates_its_settings_as_it_likes(tmp_path: Path) -> None:
    def own(n: float, seed: int, resume: str, words: typing.List, by: typing.Dict, who: Named) -> None: ...  # noqa: UP006

    file = tmp_path / "state.pt"
    file.touch()
    check_settings(own, {"n": 0.5, "seed": -1, "resume": str(file), "words": ["a"], "by": {"a": 1}, "who": 3})
    with pytest.raises(nf.InputError, match="own: words must be a list of Any; found 3"):
        check_settings(own, {"words": 3})

    def said(alpha: float) -> None: ...

    said.__annotations__["alpha"] = "the weight of retain"
    check_settings(said, {"alpha": 2})


@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), torch.tensor(3)])
def test_a_number_of_another_library_is_written_down(seed: Any, tmp_path: Path) -> None:
    some = nf.Neurons(frozenset([(0, 1)]), (0,), 8)
    for drawn in (some.random_like(seed), some.random_like(seed=seed)):
        drawn.save(tmp_path / "neurons.json")
        assert nf.Neurons.load(tmp_path / "neurons.json") == some.random_like(3)
