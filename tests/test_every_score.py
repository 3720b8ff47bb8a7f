"""Every score on every family, and on what no score can use."""

from __future__ import annotations

import inspect
import re
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


@pytest.mark.parametrize("name", SCORES)
def test_a_model_that_is_offloaded_is_refused_with_the_reason(name: str, pair: tuple[Corpus, Corpus], lm: LM) -> None:
    lm.model.get_submodule(lm.sites[0].path).to("meta")
    with pytest.raises(InputError, match="parts of the model are offloaded to CPU or disk: load it whole"):
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


def only_forget(forget: nf.Moments, against: nf.Moments, *, power: int) -> scores.Scores:
    raise AssertionError("was called")


@pytest.mark.parametrize(
    ("score", "corpora", "message"),
    [
        *(
            (name, 1, f"{name} compares two corpora: give retain too")
            for name in ("activation_ratio", "activation_entropy", "expert")
        ),
        *((partial(getattr(scores, name), contrast="z"), 2, "contrast must be 'difference' or 'ratio'; found 'z'")
          for name in ("fisher", "wanda", "activation_norm")),
        *((partial(getattr(scores, name), contrast="z"), 1, "contrast='z' compares two corpora")
          for name in ("grad_x_act", "exact", "relp", "direct")),
        (partial(scores.exact, contrast="z"), "single", "2 or more examples of each corpus"),
        (partial(scores.expert, measure="f1"), 2, "expert: measure must be 'auroc' or 'ap'; found 'f1'"),
        (partial(scores.fisher, contrst="z"), 2, "score 'fisher' has no setting 'contrst'; it has contrast"),
        (partial(only_forget, power=2), 1, "cannot be called as scores are: missing a required argument: 'against'"),
        (only_forget, 2, "score 'only_forget' cannot be called as scores are: missing a required"),
        (lambda forget: None, 2, "'<lambda>' cannot be called as scores are: too many positional arguments"),
    ],
)  # fmt: skip
def test_what_a_score_can_only_refuse_is_refused_before_the_model_runs(
    score: Any, corpora: int | str, message: str, lm: LM, pair: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lm.model), "forward", lambda *_, **__: pytest.fail("the model was run"))
    score = getattr(scores, score) if isinstance(score, str) else score
    given = (pair[0], pair[1].head(1)) if corpora == "single" else pair[: int(corpora)]
    with pytest.raises(InputError, match=re.escape(message)):
        nf.attribute(lm, *given, score=score, tap="torch_hooks", progress=False)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("size", [0, 2.5, -1])
def test_a_batch_is_a_whole_number_of_examples(
    size: float, name: str, lm: LM, pair: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(lm.model), "forward", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(InputError, match="batch_size must be a whole number"):
        scored(name, lm, *pair, batch_size=size)
    if name not in (*MOMENTS, "relp"):
        with pytest.raises(InputError, match="batch_size must be a whole number"):
            getattr(scores, name)(lm, *pair, batch_size=size, progress=False)


def test_a_z_contrast_asked_of_a_score_itself_runs_over_no_corpus(
    lm: LM, pair: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronforget.scores.per_example._mean_and_error", lambda *_: pytest.fail("was measured"))
    for name in ("exact", "integrated", "direct", "gradient_drop", "value_fisher", "relp"):
        for given in (pair[:1], (pair[0], pair[1].head(1))):
            with pytest.raises(InputError, match="contrast='z'"):
                getattr(scores, name)(lm, *given, contrast="z", progress=False)
