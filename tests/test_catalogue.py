"""The table of operators: each is called with what it names, and a wrong call is refused before any work."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from neuronforget import erase, losses
from neuronforget.commands.console import assigned, named
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase import OPERATORS, make
from neuronforget.erase.catalogue import addressed, further
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.recording import record


@pytest.fixture
def halves(corpus: Corpus) -> tuple[Corpus, Corpus]:
    return Corpus(corpus.examples[:3], "forget"), Corpus(corpus.examples[3:], "retain")


def some(lm: LM) -> Neurons:
    return Neurons(frozenset({(0, 1), (1, 3)}), (0, 1), lm.shape[1])


def test_every_operator_of_the_package_stands_in_the_table_under_its_own_name() -> None:
    others = {"alternates", "guards", "make", "units_of"}  # no edits, or ones that need more than corpora
    others |= {"learn_adapter", "retrained", "sisa"}
    public = {name for name in (*erase.__all__, *erase.guards.__all__) if name.islower()} - others
    assert set(OPERATORS) == public
    assert all(operator.__name__ == name for name, operator in OPERATORS.items())


@pytest.mark.parametrize("name", [*OPERATORS, "learn_adapter", "make"])
def test_nothing_is_made_of_a_model_with_a_guard_on_it_or_without_numbers(
    name: str, lm: LM, halves: tuple[Corpus, Corpus], untyped: None
) -> None:
    def begin() -> None:
        if name == "make":
            make(lambda lm, forget: pytest.fail("called"), lm, *halves)
        {**OPERATORS, "learn_adapter": erase.learn_adapter}[name](lm)  # refused before anything else is asked for

    guard = erase.guards.repe(lm, halves[0].head(1), Corpus(halves[0].examples[1:], "retain"))
    with guard.on(lm), pytest.raises(InputError, match="the guard repe is on this model"):
        begin()
    with torch.no_grad():
        lm.parameters[lm.sites[1].write.name][0, 0] = math.nan
    with pytest.raises(InputError, match=r"1 values of .* are NaN or infinite"):
        begin()


def test_a_recording_does_where_an_operator_reads_no_more_of_the_retain_corpus(
    lm: LM, halves: tuple[Corpus, Corpus]
) -> None:
    forget, retain = halves
    moments = {"retain": record(lm, retain, progress=False)}
    tables = {"retain": record(lm, retain, per_example=True, progress=False)}
    whole, found = (
        make(OPERATORS["ablate_mean"], lm, *corpora, neurons=some(lm), moments=moments, progress=False)
        for corpora in ((forget, retain), (forget,))
    )
    assert [c.after.tolist() for c in found.changes] == [c.after.tolist() for c in whole.changes]  # type: ignore[union-attr]
    assert make(OPERATORS["aura"], lm, forget, moments=tables, progress=False).changes
    for wants, given in (("ablate_mean", {}), ("aura", moments), ("rank_one", tables)):
        with pytest.raises(InputError, match="reads what the model should keep"):
            make(OPERATORS[wants], lm, forget, neurons=some(lm) if wants != "aura" else None, moments=given)


def test_a_loss_with_a_retain_term_is_refused_before_any_work_where_there_is_none(
    lm: LM, halves: tuple[Corpus, Corpus]
) -> None:
    def trained(lm: LM, forget: Corpus, retain: Corpus | None = None, *, loss: losses.Loss = losses.grad_diff) -> Edit:
        pytest.fail("called")

    with pytest.raises(InputError, match="this loss has a retain term"):
        make(trained, lm, halves[0])
    with pytest.raises(pytest.fail.Exception, match="called"):
        make(trained, lm, *halves)
    with pytest.raises(pytest.fail.Exception, match="called"):
        make(trained, lm, halves[0], loss=losses.ga)


def test_an_operator_is_given_what_its_parameters_name_and_nothing_else(
    lm: LM, halves: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def own(lm: LM, retain_moments: Moments, forget_peaks: Moments, *, neurons: Neurons, power: float = 2.0) -> Edit:
        seen.update(locals())
        return erase.ablate(lm, neurons)

    make(own, lm, *halves, neurons=some(lm), tap="torch_hooks", progress=False, power=3.0)
    assert seen["lm"] is lm and seen["neurons"] == some(lm) and seen["power"] == 3.0
    assert seen["retain_moments"].info["corpus"] == "retain" and not seen["retain_moments"].table
    assert seen["forget_peaks"].info["corpus"] == "forget" and seen["forget_peaks"].table
    again = {"forget": seen["forget_peaks"], "retain": seen["retain_moments"]}
    monkeypatch.setattr("neuronforget.erase.catalogue.record", lambda *_, **__: pytest.fail("recorded again"))
    make(own, lm, *halves, neurons=some(lm), moments=again, progress=False)


def test_making_by_name_is_calling_the_function(lm: LM, halves: tuple[Corpus, Corpus]) -> None:
    found, expected = make(OPERATORS["ablate"], lm, *halves, neurons=some(lm)), erase.ablate(lm, some(lm))
    assert found.info == expected.info
    assert all(torch.equal(a.after, b.after) for a, b in zip(found.changes, expected.changes, strict=True))


@pytest.mark.parametrize(
    ("method", "chosen", "settings", "message"),
    [
        ("ablate", False, {}, "ablate edits chosen neurons"),
        ("ablate", True, {"mod": "mean"}, "no setting 'mod'; it has mode, moments, units"),
        ("rank_one", False, {"steps": "many"}, "steps must be a whole number"),
        ("rank_one", False, {"preserve": "much"}, "preserve must be a number"),
        ("memit", False, {"layers": 3}, "layers must be a list of whole numbers"),
        ("memit", False, {"layers": ["a"]}, "layers must be a list of whole numbers"),
        ("alpha_edit", False, {"target": 3}, "target must be str; found 3"),
        ("finetune", False, {"checkpointing": "maybe"}, "checkpointing must be True or False; found 'maybe'"),
        ("finetune", False, {"lr": "fast"}, "lr must be a number or a dictionary of numbers by name or a function"),
        ("finetune", False, {"accumulate": 1.5}, "accumulate must be a whole number"),
        ("finetune", False, {"batch_size": True}, "batch_size must be a whole number"),
        ("finetune", False, {"lora": True}, "lora must be a whole number or LoRA; found True"),
        ("finetune", False, {"lora": 2.5}, "lora must be a whole number or LoRA; found 2.5"),
        ("finetune", False, {"weight_decay": -1.0, "progress": False}, "weight_decay must be 0 or more"),
        ("finetune", False, {"weight_decay": math.nan, "progress": False}, "weight_decay must be a number; found nan"),
        ("revs", True, {"most": 2.5}, "most must be a whole number"),
        ("rank_one", False, {"preserve": math.inf}, "preserve is lambda"),
        ("memit", False, {"layers": [True]}, "layers must be a list of whole numbers"),
    ],
)
def test_a_wrong_call_is_refused_in_words(
    lm: LM, halves: tuple[Corpus, Corpus], method: str, chosen: bool, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(OPERATORS[method], lm, *halves, neurons=some(lm) if chosen else None, **settings)


@pytest.mark.parametrize(
    ("operator", "settings", "message"),
    [
        ("ssd", {"alpha": -1.0}, "ssd: alpha must be a number > 0, found -1.0"),
        ("ssd", {"dampening": math.nan}, "ssd: dampening must be a number; found nan"),
        ("ablate_mean", {"neurons": Neurons(frozenset({(0, 1)}), (0,), 8)}, "the neurons are of another model"),
        ("ablate_mean", {"neurons": Neurons(frozenset(), (0, 1), 40)}, "the set of neurons is empty"),
        ("finetune", {"loss": partial(losses.npo, beta=-1.0)}, "npo: beta must be a number > 0"),
        ("finetune", {"loss": partial(losses.rmu, layer=2)}, "no block 2: the model has blocks 0 to 1"),
        ("finetune", {"loss": partial(losses.rmu, layer="last")}, "rmu: layer must be a whole number; found 'last'"),
        ("finetune", {"loss": partial(losses.elm, novice="of Velm " * 40)}, "tokens with the context, but the model"),
        ("o3", {"loss": partial(losses.rmu, layer=2)}, "no block 2: the model has blocks 0 to 1"),
        ("repe", {"coefficient": 0}, "repe: coefficient must be a number != 0, found 0"),
        ("finetune", {"loss": losses.rt}, "this loss needs preferred answers"),
        ("first_order_update", {"preferred": []}, "preferred= holds no answer"),
        ("second_order_update", {"preferred": ()}, "preferred= holds no answer"),
        ("o3", {"kept": 2.0, "retain": None}, "kept is the share of the request's prompts"),
        ("rank_one", {"cache": "/dev/null/no-folder"}, "cannot write"),
        ("memit", {"cache": "/dev/null/no-folder"}, "cannot write"),
        ("alpha_edit", {"cache": "/dev/null/no-folder"}, "cannot write"),
    ],
)
def test_what_an_operator_cannot_work_with_is_refused_before_anything_is_recorded_or_run(
    lm: LM, halves: tuple[Corpus, Corpus], operator: str, settings: dict[str, Any], message: str
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("the model was run")

    lm.model.register_forward_pre_hook(never)
    calls = [partial(OPERATORS[operator], lm, halves[0], **({"retain": halves[1]} | settings))]
    if "retain" not in settings:
        calls.append(partial(make, OPERATORS[operator], lm, *halves, progress=False, **settings))
    if operator in ("ssd", "ablate_mean"):  # called without `make`, they are given recordings
        calls = calls[1:]
    if operator == "first_order_update":
        calls[0].keywords.pop("retain")
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_an_operator_that_brings_other_answers_itself_is_taken_at_its_word(
    lm: LM, halves: tuple[Corpus, Corpus]
) -> None:
    def refuse(lm: LM, forget: Corpus, retain: Corpus, *, loss: losses.Loss = losses.rt) -> Edit:
        return erase.finetune(lm, forget, retain, loss=loss, preferred="No.", steps=1, progress=False)

    assert make(refuse, lm, *halves).info["loss"] == "rt"


def test_an_operator_that_returns_no_edit_is_named(lm: LM, halves: tuple[Corpus, Corpus]) -> None:
    def forgetful(lm: LM) -> Any:
        return None

    with pytest.raises(InputError, match="an operator must return an Edit, but forgetful returned NoneType"):
        make(forgetful, lm, *halves)


@pytest.mark.parametrize("value", [None, 1.0, torch.zeros(()), "each example's"])
def test_a_loss_that_is_no_number_to_train_on_is_named(
    value: Any, lm: LM, halves: tuple[Corpus, Corpus], untyped: None
) -> None:
    def loss(outputs: Any) -> Any:
        return outputs.forget.nlls if value == "each example's" else value

    with pytest.raises(InputError, match="a loss must return one number as a tensor"):
        erase.finetune(lm, *halves, loss=loss, progress=False)


def test_a_losss_own_settings_are_handed_to_it() -> None:
    finetune = OPERATORS["finetune"]
    found = addressed(finetune, {"loss": losses.npo, "beta": 0.5, "steps": 3, "seed": 1})
    assert found["loss"].func is losses.npo and found["loss"].keywords == {"beta": 0.5}
    assert {k: v for k, v in found.items() if k != "loss"} == {"steps": 3, "seed": 1}
    assert addressed(finetune, {"alpha": 2.0})["loss"].keywords == {"alpha": 2.0}  # of the default loss
    assert addressed(finetune, {"steps": 3}) == {"steps": 3} == addressed(OPERATORS["rank_one"], {"steps": 3})
    with pytest.raises(InputError, match="npo: beta must be a number"):
        addressed(finetune, {"loss": losses.npo, "beta": "x"})
    with pytest.raises(InputError, match="--loss NAME"):
        addressed(finetune, {"loss": "npo"})


def test_settings_on_the_command_line_are_numbers_lists_or_text() -> None:
    found = assigned(
        ("sigma=0.2", "layers=[0, 1]", "target=I do not know", "mode=noise", "cache=None", "lr=nan", "beta=-inf")
    )
    assert math.isnan(found.pop("lr")) and found.pop("beta") == -math.inf
    assert found == {"sigma": 0.2, "layers": [0, 1], "target": "I do not know", "mode": "noise", "cache": None}
    for wrong in (("sigma",), ("=2",), ("a b=2",), ("x=1", "x=2")):
        with pytest.raises(InputError, match="NAME=VALUE"):
            assigned(wrong)
    assert assigned(("steps=5",), lr=0.1, seed=None) == {"steps": 5, "lr": 0.1}
    with pytest.raises(InputError, match="steps is given by --set and"):
        assigned(("steps=5",), steps=2)
    assert named("ablate", OPERATORS) is erase.ablate
    with pytest.raises(InputError, match="known: ablate"):
        named("abate", OPERATORS)


def test_a_comparison_runs_further_operators_on_the_selection_a_control_and_their_own_choice(
    lm: LM, halves: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    def own(lm: LM, neurons: Neurons) -> Edit:
        return erase.ablate(lm, neurons, units="dead")

    operators = (erase.ssd, erase.noise, own)
    chosen, other = some(lm), Neurons(frozenset({(0, 9)}), (0, 1), lm.shape[1])
    moments = {c.name: record(lm, c, tap="torch_hooks", progress=False) for c in halves}
    monkeypatch.setattr("neuronforget.erase.catalogue.record", lambda *_, **__: pytest.fail("recorded again"))
    plan = further(operators, lm, *halves, {"@neurons": chosen, "@random 0": other, "@none": None}, moments)
    assert set(plan) == {"ssd", *(f"{n}@{w}" for n in ("ssd", "noise", "own") for w in ("neurons", "random 0"))}
    assert plan["own@random 0"]().info["units"] == "dead"
    found, expected = plan["noise@neurons"](), erase.noise(lm, chosen)
    assert all(torch.equal(a.after, b.after) for a, b in zip(found.changes, expected.changes, strict=True))
