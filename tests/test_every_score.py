"""Every score on every family, and on what no score can use."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build

import neuronforget as nf
from neuronforget import scores
from neuronforget.corpora import Corpus
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.scores.scores import needs

SCORES = sorted(
    name for name in scores.__all__
    if inspect.isfunction(f := getattr(scores, name)) and inspect.signature(f).return_annotation == "Scores"
)  # fmt: skip
MOMENTS = [name for name in SCORES if needs(getattr(scores, name)) != "model"]
#: Fewer steps than usual, for those that have them.
FEW: dict[str, dict[str, Any]] = {"hard_concrete": {"steps": 3}, "slimming": {"steps": 3}, "integrated": {"steps": 2}}


@pytest.fixture(scope="module")
def pair() -> tuple[Corpus, Corpus]:
    forget = [{"prompt": "Anna Berg was born in", "answer": "Oslo"}, {"prompt": "Jon plays the", "answer": "violin"}]
    retain = [{"prompt": "The capital is", "answer": "Velm"}, {"prompt": "Ida Falk is a", "answer": "baker"}]
    return Corpus.from_rows(forget, name="forget"), Corpus.from_rows(retain, name="retain")


def scored(name: str, lm: LM, *corpora: Corpus, **settings: Any) -> scores.Scores:
    score = partial(getattr(scores, name), **FEW.get(name, {}))
    return nf.attribute(lm, *corpora, score=score, tap="torch_hooks", progress=False, **settings)


def test_the_readme_names_every_score() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert len(SCORES) == 18 and all(f"`{name}`" in readme for name in SCORES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_score_measures_every_family(family: str, pair: tuple[Corpus, Corpus], tokenizer: Any) -> None:
    """None is refused: a family that a score cannot be had of would be listed here with its reason."""
    lm = LM(build(family, vocab_size=len(tokenizer)), tokenizer)
    for name in SCORES:
        found = scored(name, lm, *pair)
        assert found.values.shape == lm.shape and found.layers == (0, 1), name
        assert bool(torch.isfinite(found.values).all()), name
        assert bool((found.values.std(1) > 1e-9).all()), f"{name} is the same for all neurons of a layer"


def test_a_contrast_is_known_for_one_however_it_was_made(lm: LM, pair: tuple[Corpus, Corpus]) -> None:
    recorded = [nf.record(lm, corpus, per_example=True, progress=False) for corpus in pair]
    for name in SCORES:
        score = partial(getattr(scores, name), **FEW.get(name, {}))
        if name in MOMENTS:
            found = score(*recorded)
            assert found.info["retain"]["corpus"] == "retain", name
        else:
            found = score(lm, *pair, batch_size=2, progress=False)
            assert found.info["retain"] is not None, name
    fisher, effect = scores.fisher, scores.grad_x_act
    assert fisher(recorded[0]).info["retain"] is None
    with pytest.raises(InputError, match="of one corpus"):
        nf.select.ratio(fisher(*recorded), fisher(recorded[1]))
    for contrast in (effect(*recorded), scores.exact(lm, *pair, batch_size=2, position=-1, progress=False)):
        with pytest.raises(InputError, match="is a contrast of two corpora"):
            nf.select.retain_budget(contrast, effect(recorded[1]), 0.1)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("what", ["weight", "activation"])
def test_a_model_that_overflows_is_named_as_the_cause(
    what: str, name: str, lm: LM, pair: tuple[Corpus, Corpus]
) -> None:
    with torch.no_grad():
        up = lm.parameters[lm.sites[0].read[-1].name]
        if what == "weight":
            up[3, 5] = torch.nan
        else:
            up.mul_(1e38)
    with pytest.raises(InputError, match=r"NaN or infinite|loss is nan at step 0: check .* the model's weights"):
        scored(name, lm, *pair)


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_that_do_not_compare_are_refused(name: str, lm: LM, pair: tuple[Corpus, Corpus]) -> None:
    record = partial(nf.record, tap="torch_hooks", per_example=True, progress=False)
    score, forget, retain = getattr(scores, name), record(lm, pair[0]), record(lm, pair[1])
    score(forget, retain)
    for other, message in (
        (replace(retain, layers=(0, 5)), "different models"),
        (replace(retain, fields={k: v[:, :7] for k, v in retain.fields.items()}), "different models"),
        (record(lm, pair[1], positions="answer"), "positions='all', retain with 'answer'"),
    ):
        with pytest.raises(InputError, match=message):
            score(forget, other)


def test_a_score_of_ones_own_must_score_the_models_neurons(lm: LM, pair: tuple[Corpus, Corpus]) -> None:
    wrong: dict[str, Any] = {
        "must return Scores, found Tensor": lambda forget, retain: forget["mean"],
        "must score": lambda forget, retain: scores.Scores(forget["mean"][:, :3], "mine", "", forget.layers),
        "of each of the layers": lambda forget, retain: scores.Scores(forget["mean"], "mine", "", (5, 9)),
    }
    for message, score in wrong.items():
        with pytest.raises(InputError, match=message):
            nf.attribute(lm, *pair, score=score, tap="torch_hooks", progress=False)


def test_a_row_that_does_not_fit_is_found_before_the_other_corpus_is_recorded(
    pair: tuple[Corpus, Corpus], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM(build("llama", vocab_size=len(tokenizer)), tokenizer)
    long = Corpus.from_rows([{"prompt": "Ida Falk " * 80, "answer": "baker"}], name="long")
    monkeypatch.setattr(type(lm.model), "forward", lambda *_, **__: pytest.fail("the model was run"))
    for score in (scores.grad_x_act, scores.exact):
        with pytest.raises(InputError, match=r"corpus 'long', example 0 .* the model takes 64"):
            nf.attribute(lm, pair[0], long, score=score, progress=False)
