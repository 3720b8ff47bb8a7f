"""finetune(): what moves, what does not, and that the model is left as it was whatever happens."""

from __future__ import annotations

import copy
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from beds import bed
from families import build
from torch import Tensor

from neuronforget import erase, losses
from neuronforget.corpora import Corpus, Example, batches, encode
from neuronforget.edits import Edit
from neuronforget.erase.finetune import preferred_answers
from neuronforget.erase.rates import default_lr
from neuronforget.errors import InputError
from neuronforget.evaluation.measuring import measure
from neuronforget.losses import Outputs, dpo, ga, grad_diff, npo
from neuronforget.metrics import nll
from neuronforget.models import LM
from neuronforget.models.likelihood import answer_logp
from neuronforget.neurons import Neurons


@pytest.fixture
def forget(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[:3], "forget")


@pytest.fixture
def retain(corpus: Corpus) -> Corpus:
    return Corpus(corpus.examples[3:], "retain")


def some(lm: LM) -> Neurons:
    layers = tuple(site.layer for site in lm.sites)
    return Neurons(frozenset({(0, 1), (0, 7), (1, 3), (1, 30)}), layers, lm.shape[1])


def tune(lm: LM, *corpora: Corpus, **settings: Any) -> Edit:
    return erase.finetune(lm, *corpora, **{"steps": 4, "batch_size": 2, "lr": 1e-2, "progress": False, **settings})


def state(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.state_dict().items()}


def never(*_: Any) -> None:
    raise AssertionError("the model was run")


def values(edit: Edit) -> list[Tensor]:
    return [change.after for change in edit.changes]


def equal(a: Edit, b: Edit) -> bool:
    return len(a.changes) == len(b.changes) and all(map(torch.equal, values(a), values(b)))


def mean_logp(lm: LM, corpus: Corpus) -> float:
    """Mean answer log-likelihood, example by example."""
    with torch.no_grad():
        parts = batches(encode(corpus, lm.tokenizer), 1, lm.pad_id)
        found = [float(answer_logp(lm.model(**b.inputs).logits, b)[0]) for b in parts]
    return sum(found) / len(found)


@pytest.mark.parametrize("loss", [ga, grad_diff, npo, dpo])
def test_the_certificate_holds_under_momentum_and_decay(lm: LM, forget: Corpus, retain: Corpus, loss: Any) -> None:
    before = state(lm)
    edit = tune(
        lm, forget, retain, loss=loss, neurons=some(lm), preferred=["I do not know."], weight_decay=0.3, steps=6
    )
    assert edit.certificate(lm).holds
    with edit.on(lm):
        rows, wanted = some(lm).by_layer(), {}
        for site in lm.sites:
            for part in (site.write, *site.read):
                mask = torch.zeros_like(before[part.name], dtype=torch.bool)
                mask.index_fill_(part.dim, part.index(rows[site.layer]), True)
                wanted[part.name] = wanted.get(part.name, torch.zeros_like(mask)) | mask
        for name, value in lm.model.state_dict().items():
            allowed = wanted.get(name, torch.zeros_like(value, dtype=torch.bool))
            assert torch.equal(value[~allowed], before[name][~allowed]), name
            if name in wanted:
                assert (value != before[name])[allowed].float().mean() > 0.9, name
    assert all(torch.equal(v, before[n]) for n, v in lm.model.state_dict().items())


def test_masking_gradients_would_have_moved_the_rest_of_the_model(lm: LM, forget: Corpus) -> None:
    """The trap that slices avoid: with AdamW, weights whose gradient is zero decay all the same."""
    batch = next(batches(encode(forget, lm.tokenizer), 8, lm.pad_id))
    weight = lm.parameters[lm.sites[0].write.name]
    mask = torch.zeros_like(weight).index_fill_(lm.sites[0].write.dim, torch.tensor([1, 7]), 1.0)
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.3)
    answer_logp(lm.model(**batch.inputs).logits, batch).mean().backward()
    assert weight.grad is not None
    weight.grad *= mask
    optimizer.step()
    assert ((weight != before) & (mask == 0)).any()


@pytest.mark.parametrize("targeted", [True, False])
def test_weights_flags_gradients_and_mode_come_back(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    lm.model.train()
    frozen, kept = list(lm.model.parameters())[:2]
    frozen.requires_grad_(False)
    kept.grad = torch.full_like(kept, 7.0)
    before, flags = state(lm), [p.requires_grad for p in lm.model.parameters()]

    def check() -> None:
        assert all(torch.equal(v, before[n]) for n, v in lm.model.state_dict().items())
        assert [p.requires_grad for p in lm.model.parameters()] == flags and lm.model.training
        assert kept.grad is not None and bool((kept.grad == 7.0).all())
        assert [p.grad is None for p in lm.model.parameters()].count(False) == 1
        assert not any(m._forward_hooks for m in lm.model.modules())

    neurons = some(lm) if targeted else None
    tune(lm, forget, retain, neurons=neurons)
    check()

    def dies(outputs: Outputs) -> Tensor:
        dies.calls += 1  # type: ignore[attr-defined]
        if dies.calls == 3:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return ga(outputs)

    dies.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, loss=dies, neurons=neurons)
    check()
    with pytest.raises(InputError, match="at step 0: check the loss"):
        tune(lm, forget, retain, loss=lambda outputs: ga(outputs) * float("nan"), neurons=neurons)
    check()


def test_a_full_edit_is_what_plain_training_does(lm: LM, forget: Corpus) -> None:
    """Two steps of gradient ascent on all examples, against AdamW written out."""
    edit = tune(lm, forget, loss=ga, steps=2, batch_size=3, lr=1e-3, weight_decay=0.1, clip=None)
    batch = next(batches(encode(forget, lm.tokenizer), 8, lm.pad_id))
    lm.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        counts = batch.answer_mask.sum(1)
        (answer_logp(lm.model(**batch.inputs).logits, batch) / counts).mean().backward()
        optimizer.step()
    for change in edit.changes:
        torch.testing.assert_close(change.after, lm.parameters[change.name].detach(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("targeted", [True, False])
def test_training_is_a_function_of_its_seed(lm: LM, forget: Corpus, retain: Corpus, targeted: bool) -> None:
    neurons = some(lm) if targeted else None
    first = tune(lm, forget, retain, neurons=neurons, seed=1)
    assert equal(first, tune(lm, forget, retain, neurons=neurons, seed=1))
    assert not equal(first, tune(lm, forget, retain, neurons=neurons, seed=2))


@pytest.mark.parametrize("targeted", [True, False])
def test_a_killed_edit_is_finished_bit_equal(
    lm: LM, forget: Corpus, retain: Corpus, targeted: bool, tmp_path: Path
) -> None:
    neurons = some(lm) if targeted else None
    whole = tune(lm, forget, retain, neurons=neurons, steps=25)
    calls: list[int] = []

    def npo_dies(outputs: Outputs) -> Tensor:
        calls.append(1)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return npo(outputs)

    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, loss=npo_dies, neurons=neurons, steps=25, resume=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert equal(tune(lm, forget, retain, loss=npo_dies, neurons=neurons, steps=25, resume=tmp_path), whole)
    assert len(calls) == 22 + 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", ["weights", "preferred", "neurons"])
def test_a_checkpoint_of_other_work_is_not_continued(
    lm: LM, forget: Corpus, retain: Corpus, other: str, tmp_path: Path
) -> None:
    calls: list[int] = []

    def counted(outputs: Outputs) -> Tensor:
        calls.append(1)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return dpo(outputs)

    settings = {"loss": counted, "neurons": some(lm), "steps": 21, "preferred": ["No."], "resume": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, retain, **{**settings, "steps": 25})
    if other == "weights":
        with torch.no_grad():
            next(iter(lm.parameters.values())).mul_(1.01)
    elif other == "preferred":
        settings["preferred"] = ["Never heard of it."]
    else:
        settings["neurons"] = Neurons(frozenset({(0, 2), (0, 7), (1, 3), (1, 30)}), (0, 1), lm.shape[1])
    calls += [1] * 100
    tune(lm, forget, retain, **{**settings, "steps": 25})
    assert len(calls) == 22 + 100 + 25


def test_a_checkpoint_of_another_loss_is_not_continued(lm: LM, forget: Corpus, tmp_path: Path) -> None:
    """Losses of one name that differ in a closure's value, a bound argument or their code."""
    deaths: list[int] = []

    def times(scale: float) -> Any:
        def mine(outputs: Outputs) -> Tensor:
            deaths.append(1)
            if len(deaths) == 22:
                raise KeyboardInterrupt
            return scale * outputs.forget.nll

        return mine

    with pytest.raises(KeyboardInterrupt):
        tune(lm, forget, loss=times(-1.0), steps=25, resume=tmp_path)
    clean = tune(lm, forget, loss=times(1.0), steps=25)
    assert equal(tune(lm, forget, loss=times(1.0), steps=25, resume=tmp_path), clean)
    keys = [
        losses.identity(loss) for loss in (ga, partial(npo, beta=0.1), partial(npo, beta=0.2), npo, partial(npo, 1))
    ]
    assert len(set(keys)) == 5
    assert losses.identity(times(2.0)) == losses.identity(times(2.0))


HELPED = """
def helper(x):
    return x * {factor}
def constant(x):
    return x in ({factor}, 7)
def inner(x):
    return (lambda y: y * {factor})(x)
def mine(outputs):
    return helper(outputs.forget.nll) + SCALE
SCALE = {scale}
"""


def test_a_loss_is_another_one_where_what_it_calls_is() -> None:
    def made(factor: int, scale: float) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "helped"}
        exec(HELPED.format(factor=factor, scale=scale), names)
        return names

    def around(loss: Any) -> Any:
        return lambda outputs: 2 * loss(outputs)

    one, same, other, scaled = made(2, 1.0), made(2, 1.0), made(3, 1.0), made(2, 2.0)
    for name in ("helper", "constant", "inner", "mine"):
        assert losses.identity(one[name]) == losses.identity(same[name]) != losses.identity(other[name])
    assert losses.identity(one["mine"]) != losses.identity(scaled["mine"])
    assert losses.identity(around(npo)) == losses.identity(around(npo)) != losses.identity(around(ga))
    assert losses.identity(partial(npo, beta=around(ga))) == losses.identity(partial(npo, beta=around(ga)))


def test_a_setting_may_have_any_name(lm: LM, forget: Corpus) -> None:
    def mine(outputs: Outputs, *, wanted: float, method: str) -> Tensor:
        return wanted * outputs.forget.nll

    info = tune(lm, forget, loss=partial(mine, wanted=-2.0, method="x"), neurons=some(lm)).info
    assert info["loss_settings"] == {"wanted": -2.0, "method": "x"} and info["method"] == "finetune:mine"


@pytest.mark.parametrize("targeted", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up_in_narrow_dtypes(lm: LM, forget: Corpus, dtype: torch.dtype, targeted: bool) -> None:
    """At lr 1e-5 a bf16 weight of .02 would not move in one step; over thirty it has to."""
    settings: dict[str, Any] = {"loss": ga, "steps": 30, "lr": 1e-5, "neurons": some(lm) if targeted else None}
    exact = tune(lm, forget, **settings)
    narrow = LM(copy.deepcopy(lm.model).to(dtype), lm.tokenizer)
    before = state(narrow)
    with pytest.warns(UserWarning, match="round away"):
        edit = tune(narrow, forget, **settings)
    assert all(torch.equal(v, before[n]) and v.dtype == dtype for n, v in narrow.model.state_dict().items())
    assert edit.info["values_lost_to_dtype"] > 0 and edit.summary()["norm"] > 0.5 * exact.summary()["norm"]
    assert edit.certificate(narrow).holds
    if not targeted:  # four neurons of a random model say little
        with edit.on(narrow):
            assert mean_logp(narrow, forget) < mean_logp(lm, forget) - 0.05


@pytest.mark.parametrize("targeted", [True, False])
def test_what_bf16_trains_is_what_fp32_trains_to_rounding(lm: LM, forget: Corpus, targeted: bool) -> None:
    settings: dict[str, Any] = {"loss": ga, "steps": 10, "lr": 5e-3, "neurons": some(lm) if targeted else None}
    narrow = LM(copy.deepcopy(lm.model).to(torch.bfloat16), lm.tokenizer)
    for a, b in zip(tune(narrow, forget, **settings).changes, tune(lm, forget, **settings).changes, strict=True):
        assert a.name == b.name and a.before is not None and b.before is not None
        moved = [(c.after.float() - c.before.float()).flatten() for c in (a, b) if c.before is not None]
        if b.after.ndim > 1:
            assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.9, a.name


def test_the_reference_is_computed_without_dropout(lm: LM, forget: Corpus, retain: Corpus) -> None:
    dropped = LM(build("gpt2", vocab_size=lm.model.config.vocab_size, resid_pdrop=0.5), lm.tokenizer)
    calm = tune(dropped, forget, retain, neurons=some(dropped))
    dropped.model.train()
    assert equal(tune(dropped, forget, retain, neurons=some(dropped)), calm) and dropped.model.training


def test_a_training_that_touched_the_rest_of_the_model_has_no_certificate(lm: LM, forget: Corpus) -> None:
    def careless(outputs: Outputs) -> Tensor:
        with torch.no_grad():
            next(iter(lm.parameters.values()))[0, 0] += 1e-3
        return ga(outputs)

    edit = tune(lm, forget, loss=careless, neurons=some(lm))
    assert edit.certificate(lm).training_equal is False and not edit.certificate(lm).holds
    assert tune(lm, forget, loss=ga, neurons=some(lm)).certificate(lm).training_equal is True


def test_trained_values_go_with_the_selection(lm: LM, forget: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW keeps two values for each trained one; what it is given is the selection's weights alone."""
    module = sys.modules["neuronforget.erase.finetune"]
    given: list[int] = []
    real = module.fit

    def spy(parameters: Any, *args: Any, **settings: Any) -> Any:
        given.append(sum(p.numel() for p in parameters))
        return real(parameters, *args, **settings)

    monkeypatch.setattr(module, "fit", spy)
    edit = tune(lm, forget, loss=ga, neurons=some(lm))
    d_model = lm.sites[0].d_model
    assert given == [4 * 3 * d_model] == [edit.summary()["values"]]  # gate row, up row, down column


def test_losses_move_the_answer_where_they_say(lm: LM, forget: Corpus, retain: Corpus) -> None:
    start = mean_logp(lm, forget)
    kept = mean_logp(lm, retain)
    for loss in (ga, partial(npo, alpha=0.0)):
        with tune(lm, forget, loss=loss, steps=8).on(lm):
            assert mean_logp(lm, forget) < start - 1
    with tune(lm, forget, retain, loss=partial(npo, alpha=5.0), steps=30, lr=3e-3).on(lm):
        assert mean_logp(lm, forget) < start and mean_logp(lm, retain) > kept
    refusal = forget.with_answers(["I do not know."] * len(forget), "refusal")
    unsure = mean_logp(lm, refusal)
    with tune(lm, forget, loss=partial(dpo, alpha=0.0), preferred=refusal, steps=20).on(lm):
        assert mean_logp(lm, refusal) - mean_logp(lm, forget) > unsure - start + 1


def test_targeted_npo_forgets_grafted_facts_and_keeps_the_rest() -> None:
    made = bed()
    assert made.truth is not None
    forget, retain = mean_logp(made.lm, made.forget), mean_logp(made.lm, made.retain)
    edit = erase.finetune(made.lm, made.forget, made.retain, neurons=made.truth, steps=20, progress=False)
    with edit.on(made.lm):
        lost = forget - mean_logp(made.lm, made.forget)
        assert lost > 2 and retain - mean_logp(made.lm, made.retain) < 0.1 * lost


@pytest.mark.parametrize(
    ("loss", "missing"),
    [(dpo, "preferred"), (partial(losses.rt, alpha=1.0), "preferred"), (losses.ga_rt, "preferred"),
     (losses.idk_ap, "preferred"), (losses.whp, "reinforced"), (partial(npo, beta=0.0), "beta must be a number > 0")],
)  # fmt: skip
def test_a_loss_that_lacks_what_it_asks_for_is_refused_before_the_model_runs(
    lm: LM, forget: Corpus, retain: Corpus, loss: losses.Loss, missing: str
) -> None:
    lm.model.register_forward_pre_hook(never)
    for train in (
        partial(tune, lm, forget, retain, budget=1.0), partial(erase.learn_adapter, lm, forget, retain=retain),
        partial(erase.guards.o3, lm, forget, retain),
    ):  # fmt: skip
        with pytest.raises(InputError, match=missing):
            train(loss=loss)


@losses.asks_for("retain", unless_zero="alpha")
def own(outputs: Outputs, *, alpha: float = 1.0) -> Tensor:
    return outputs.forget.dlogp.mean() + alpha * outputs.retain.drift


@pytest.mark.parametrize(
    "loss",
    [npo, losses.simnpo, dpo, losses.altpo, losses.idk_ap, losses.pdu, losses.elm, losses.rmu, grad_diff,
     partial(losses.rt, alpha=1.0), own],
    ids=losses.name_of,
)  # fmt: skip
def test_without_retain_a_loss_with_a_retain_term_is_refused_before_the_model_runs_or_is_read(
    lm: LM, forget: Corpus, loss: losses.Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NPO had the start model read the whole forget corpus first, and AltPO had it answer all of it."""
    lm.model.register_forward_pre_hook(never)
    monkeypatch.setattr(LM, "digest", never)
    given: dict[str, Any] = {"preferred": "I do not know.", "progress": False}
    for train in (erase.finetune, erase.learn_adapter, erase.guards.o3):
        with pytest.raises(InputError, match="this loss has a retain term: give a retain corpus, or set alpha=0"):
            train(lm, forget, loss=loss, **given)


def test_a_number_that_lasts_is_refused_to_parts_of_a_batch_before_the_model_runs(
    lm: LM, forget: Corpus, retain: Corpus
) -> None:
    lm.model.register_forward_pre_hook(never)
    with pytest.raises(InputError, match="give accumulate=1, in one process"):
        tune(lm, forget, retain, loss=losses.pdu, accumulate=2)


def test_preferred_answers_come_from_a_corpus_a_list_or_the_examples(forget: Corpus, retain: Corpus) -> None:
    parallel = forget.with_answers(["a", "b", "c"], "mine")
    assert preferred_answers(forget, parallel, 0) is parallel
    drawn = preferred_answers(forget, ["No idea.", "I cannot say."], 0)
    assert drawn is not None and {e.answer for e in drawn} == {"No idea.", "I cannot say."}
    assert [e.prompt for e in drawn] == [e.prompt for e in forget]
    assert drawn == preferred_answers(forget, ["No idea.", "I cannot say."], 0)
    wrong = Corpus(tuple(Example(e.prompt, e.answer, wrong=("x", "y")) for e in forget), "f")
    own = preferred_answers(wrong, None, 0)
    assert own is not None and {e.answer for e in own} <= {"x", "y"}
    assert preferred_answers(forget, None, 0) is None
    one = preferred_answers(forget, "I do not know.", 0)
    assert one is not None and {e.answer for e in one} == {"I do not know."}, "a bare string is one answer"
    with pytest.raises(InputError, match="parallel"):
        preferred_answers(forget, retain, 0)
    with pytest.raises(InputError, match="holds no answer"):
        preferred_answers(wrong, [], 0)


def test_bad_input_is_refused_before_any_work(lm: LM, forget: Corpus, retain: Corpus) -> None:
    before = state(lm)
    overlap = Corpus(forget.examples[:1] + retain.examples, "retain")
    with pytest.raises(InputError, match="share"):
        tune(lm, forget, overlap)
    with pytest.raises(InputError, match="retain corpus"):
        tune(lm, forget, loss=npo)
    with pytest.raises(InputError, match="preferred"):
        tune(lm, forget, retain, loss=dpo)
    with pytest.raises(InputError, match="batch_size"):
        tune(lm, forget, retain, batch_size=0)
    with pytest.raises(InputError, match="neurons"):
        tune(lm, forget, retain, neurons=Neurons(frozenset(), (0, 1), lm.shape[1]))
    with pytest.raises(InputError, match="steps >= 1"):
        tune(lm, forget, retain, steps=0)
    with pytest.raises(InputError, match="lr > 0"):
        tune(lm, forget, retain, lr=0.0)
    assert all(torch.equal(v, before[n]) for n, v in lm.model.state_dict().items())


def test_a_model_is_trained_within_no_grad_too(lm: LM, forget: Corpus) -> None:
    with torch.no_grad():
        edits = [tune(lm, forget, loss=ga, neurons=neurons) for neurons in (some(lm), None)]
    assert equal(edits[0], tune(lm, forget, loss=ga, neurons=some(lm))) and equal(edits[1], tune(lm, forget, loss=ga))


def test_a_training_that_moves_nothing_raises(lm: LM, forget: Corpus) -> None:
    with pytest.raises(InputError, match="changed nothing"):
        tune(lm, forget, loss=ga, lr=1e-30, weight_decay=0.0)


def test_default_rates_go_with_the_size_of_the_model(lm: LM) -> None:
    assert default_lr(lm, None) == 3e-4 and default_lr(lm, some(lm)) == 1e-3


def test_what_was_done_is_written_down(lm: LM, forget: Corpus, retain: Corpus) -> None:
    info = tune(lm, forget, retain, loss=partial(npo, beta=0.5), neurons=some(lm)).info
    assert {k: info[k] for k in ("method", "loss_settings", "steps", "neurons")} == {
        "method": "finetune:npo", "loss_settings": {"beta": 0.5}, "steps": 4, "neurons": 4,
    }  # fmt: skip
    assert (info["forget"], info["retain"]) == (forget.digest(), retain.digest())


def test_a_training_that_explodes_without_nan_stops_and_leaves_the_model(
    lm: LM, forget: Corpus, retain: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(lm)
    settings: dict[str, Any] = {"loss": grad_diff, "lr": 1.0, "steps": 12}
    with pytest.raises(InputError, match=r"explodes: answers that are to be kept are at .* lower lr"):
        tune(lm, forget, retain, **settings)
    now = lm.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())
    monkeypatch.setattr(losses.outputs, "EXPLODED", float("inf"))
    tune(lm, forget, retain, **settings)  # its loss is a number to the end: nothing else would have stopped it


def test_an_ascent_without_bound_stops_where_its_loss_explodes(lm: LM, forget: Corpus) -> None:
    before = state(lm)
    with pytest.raises(InputError, match=r"explodes: the loss is -.* at first it was -.* lower lr \(now 30\)"):
        tune(lm, forget, loss=losses.ga, lr=30, steps=30)
    assert all(torch.equal(lm.model.state_dict()[name], value) for name, value in before.items())


def test_a_model_that_starts_worse_than_guessing_has_not_exploded(lm: LM, forget: Corpus, retain: Corpus) -> None:
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(40)
    assert float(measure(lm, retain, [nll])["nll"].mean()) > 2 * math.log(lm.model.config.vocab_size)
    tune(lm, forget, retain, loss=grad_diff, lr=1e-4)
