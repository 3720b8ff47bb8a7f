"""What an edit promises: it changes what it says, nothing else, and can be undone bit for bit."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor

import neuronforget as nf
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.errors import InputError
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons
from neuronforget.taps import TorchHooks

FAMILIES = ("gpt2", "opt", "phi3", "llama", "qwen2", "gpt_neox")
TOKENS = torch.tensor([[5, 9, 11, 3, 7], [8, 4, 12, 6, 10]])


def some(lm: LM) -> Neurons:
    layers = tuple(site.layer for site in lm.sites)
    return Neurons(frozenset({(0, 1), (0, 7), (1, 3)}), layers, lm.shape[1])


def snapshot(lm: LM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.state_dict().items()}


def same(lm: LM, before: dict[str, Tensor]) -> bool:
    now = lm.model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def means(lm: LM) -> Moments:
    """Moments that hold a mean for every neuron, which is all that mean ablation asks of them."""
    mean = torch.randn(lm.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Moments({"mean": mean}, 1, 1, 1, 0.0, tuple(site.layer for site in lm.sites))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> LM:
    return LM(build(request.param))


@pytest.mark.parametrize("mode", ["zero", "mean"])
@pytest.mark.parametrize("units", ["sleeping", "dead"])
def test_an_edit_changes_the_model_and_undoing_it_restores_every_bit(family: LM, mode: Any, units: Any) -> None:
    before, untouched = snapshot(family), logits(family.model)
    edit = nf.erase.ablate(family, some(family), mode=mode, units=units, moments=means(family))
    assert same(family, before)
    edit.apply(family)
    assert not torch.allclose(logits(family.model), untouched)
    edit.undo(family)
    assert same(family, before)


def test_an_exception_within_on_restores_the_model_too(family: LM) -> None:
    before, edit = snapshot(family), nf.erase.ablate(family, some(family), mode="mean", moments=means(family))
    with pytest.raises(KeyboardInterrupt), edit.on(family):
        assert not same(family, before)
        raise KeyboardInterrupt
    assert same(family, before)


def test_an_edit_is_put_on_without_a_look_at_the_model_from_the_cpu(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a card that would be a copy of every changed parameter, each time."""
    edit = nf.erase.ablate(lm, some(lm))
    monkeypatch.setattr(torch.Tensor, "cpu", lambda _: pytest.fail("copied to the CPU"))
    with edit.on(lm):
        pass


def test_an_edit_goes_onto_its_own_model_once(family: LM) -> None:
    edit = nf.erase.ablate(family, some(family), mode="mean", moments=means(family))
    with pytest.raises(InputError):
        edit.undo(family)
    edit.apply(family)
    applied = snapshot(family)
    with pytest.raises(InputError):
        edit.apply(family)
    assert same(family, applied)


def test_another_models_edit_is_refused_and_changes_nothing() -> None:
    one, other, wide = LM(build("llama")), LM(build("llama", vocab_size=70)), LM(build("gpt2"))
    edit = nf.erase.ablate(one, some(one))
    for lm in (other, wide):
        before = snapshot(lm)
        if lm is other:  # equal names and shapes, other values
            with torch.no_grad():
                lm.parameters[edit.changes[-1].name].add_(1.0)
            before = snapshot(lm)
        with pytest.raises(InputError):
            edit.apply(lm)
        assert same(lm, before)


def test_zero_ablation_is_what_a_hook_that_puts_zero_does(family: LM) -> None:
    chosen = some(family).by_layer()

    def zero(index: Tensor) -> Any:
        return lambda a: a.index_fill(-1, index, 0.0)

    with torch.no_grad():
        hooked = TorchHooks(family)(
            {"input_ids": TOKENS}, {layer: zero(index) for layer, index in chosen.items()}
        ).logits
    for units in ("sleeping", "dead"):
        with nf.erase.ablate(family, some(family), units=units).on(family):  # type: ignore[arg-type]
            torch.testing.assert_close(logits(family.model), hooked, rtol=1e-4, atol=1e-5)


def test_mean_ablation_is_what_a_hook_that_puts_the_mean_does(family: LM) -> None:
    moments, chosen = means(family), some(family).by_layer()

    def put(layer: int, index: Tensor) -> Any:
        return lambda a: a.index_copy(-1, index, moments["mean"][layer, index].float().expand(*a.shape[:-1], -1))

    with torch.no_grad():
        hooked = TorchHooks(family)({"input_ids": TOKENS}, {k: put(k, index) for k, index in chosen.items()}).logits
    with nf.erase.ablate(family, some(family), mode="mean", moments=moments).on(family):
        torch.testing.assert_close(logits(family.model), hooked, rtol=1e-4, atol=1e-5)


def test_a_dead_unit_gets_no_gradient_and_a_sleeping_one_does(family: LM) -> None:
    def gradients(units: Any) -> tuple[float, float]:
        """(largest gradient of the write weights, of the read weights) of the ablated neurons."""
        edit = nf.erase.ablate(family, some(family), units=units)
        chosen = some(family).by_layer()
        with edit.on(family):
            family.model.zero_grad()
            family.model(TOKENS).logits.square().sum().backward()
            found = []
            for parts in ([[s.write] for s in family.sites], [s.read for s in family.sites]):
                grads = [
                    family.parameters[p.name].grad.index_select(p.dim, p.index(chosen[s.layer])).abs().max()  # type: ignore[union-attr]
                    for s, own in zip(family.sites, parts, strict=True)
                    for p in own
                ]
                found.append(float(torch.stack(grads).max()))
        return found[0], found[1]

    sleeping, dead = gradients("sleeping"), gradients("dead")
    assert sleeping[0] > 0 and dead == (0.0, 0.0)


def test_strengths_lie_on_the_line_from_before_to_after(family: LM) -> None:
    edit = nf.erase.ablate(family, some(family), mode="mean", moments=means(family))
    for strength in (0.0, 0.5, 1.0, 1.5):
        for change, own in zip(edit.scaled(strength).changes, edit.changes, strict=True):
            before = own.before if own.before is not None else torch.zeros_like(own.after)
            torch.testing.assert_close(change.after, before + strength * (own.after - before))
    assert all(torch.equal(a.after, b.after) for a, b in zip(edit.scaled(1.0).changes, edit.changes, strict=True))
    assert edit.scaled(0.5).scaled(0.5).info["strength"] == 0.25
    untouched = logits(family.model)
    with edit.scaled(0.0).on(family):
        torch.testing.assert_close(logits(family.model), untouched)


def test_an_edit_is_saved_and_read_back_equal(family: LM, tmp_path: Path) -> None:
    edit = nf.erase.ablate(family, some(family), mode="mean", moments=means(family))
    edit.save(tmp_path / "edit.safetensors")
    again, before = Edit.load(tmp_path / "edit.safetensors"), snapshot(family)
    assert again.info == edit.info and again.summary() == edit.summary()
    with edit.on(family):
        expected = logits(family.model)
    with again.on(family):
        assert torch.equal(logits(family.model), expected)
    assert same(family, before)


def test_the_summary_of_a_case_worked_by_hand() -> None:
    lm = LM(build("llama"))
    name = lm.sites[0].write.name
    before = lm.parameters[name].detach()[:, :2].clone()
    after = before.clone()
    after[0, 0] += 3.0
    after[1, 1] += 4.0
    edit = Edit.build(lm, [Change(name, after, before, 1, torch.tensor([0, 1]))], method="by hand")
    summary = edit.summary()
    assert (summary["values"], summary["parameters"], summary["method"]) == (before.numel(), 1, "by hand")
    assert summary["norm"] == pytest.approx(5.0, rel=1e-6)
    assert summary["relative"] == pytest.approx(5.0 / float(before.norm()), rel=1e-6)
    assert edit.info["values_changed"] == 2 and "Edit(by hand:" in repr(edit)


def test_the_certificate_holds_for_an_edit_that_keeps_to_its_slices(family: LM) -> None:
    certificate = nf.erase.ablate(family, some(family)).certificate(family)
    assert certificate.holds
    total = sum(p.numel() for p in family.parameters.values())
    assert certificate.inside_values == 3 * family.sites[0].d_model
    assert certificate.outside_values == total - certificate.inside_values


def test_the_certificate_fails_where_a_neighbour_is_touched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LM(build("llama"))
    edit, real = nf.erase.ablate(lm, some(lm)), Change.put

    def careless(change: Change, model: Any, state: Any) -> None:
        real(change, model, state)
        if state == "after":
            lm.parameters[lm.sites[0].write.name].data[0, 0] += 1.0

    monkeypatch.setattr(Change, "put", careless)
    certificate = edit.certificate(lm)
    assert not certificate.outside_equal and not certificate.undone_equal and not certificate.holds


def test_an_exported_checkpoint_gives_equal_logits_in_plain_transformers(family: LM, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    edit, before = nf.erase.ablate(family, some(family)), snapshot(family)
    edit.export(family, tmp_path / "out")
    assert same(family, before)
    with edit.on(family):
        expected = logits(family.model)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), expected)
    with pytest.raises(InputError, match="not empty"):
        edit.export(family, tmp_path / "out")


@pytest.mark.parametrize("bias", [False, True])
def test_a_mean_ablation_is_exported_where_the_architecture_can_hold_its_bias(bias: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = LM(build("llama", mlp_bias=bias))
    edit, before = nf.erase.ablate(lm, some(lm), mode="mean", moments=means(lm)), snapshot(lm)
    edit.export(lm, tmp_path / "out")
    assert same(lm, before) and lm.model.config.mlp_bias is bias
    with edit.on(lm):
        expected = logits(lm.model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, logits(lm.model))


def test_a_mean_ablation_that_plain_transformers_would_drop_is_not_exported(tmp_path: Path) -> None:
    lm = LM(build("qwen2"))
    edit = nf.erase.ablate(lm, some(lm), mode="mean", moments=means(lm))
    with pytest.raises(InputError, match="plain transformers would"):
        edit.export(lm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_the_stored_dtype_rounds_away_is_counted_and_losing_all_of_it_is_an_error() -> None:
    lm = LM(build("llama").to(torch.bfloat16))
    name = lm.sites[0].write.name
    before = lm.parameters[name].detach()[:, :1].clone()
    tiny, large = before.double() * (1 + 1e-4), before.double() * (1 + 1e-4)
    large[0] *= 2
    index = torch.tensor([0])
    with pytest.warns(UserWarning, match="15 of 16 changed values round away"):
        edit = Edit.build(lm, [Change(name, large, before, 1, index)], method="nudge")
    assert edit.info["values_lost_to_dtype"] == len(before) - 1 and edit.info["values_changed"] == 1
    assert edit.changes[0].after.dtype == torch.bfloat16
    with pytest.raises(InputError, match="round away"):
        Edit.build(lm, [Change(name, tiny, before, 1, index)], method="nudge")


def test_an_operator_that_changed_nothing_raises(family: LM) -> None:
    before = {c.name: c for c in nf.erase.ablate(family, some(family)).changes}
    with pytest.raises(InputError, match="changed nothing"):
        Edit.build(family, [replace(c, after=c.before.clone()) for c in before.values()], method="idle")  # type: ignore[union-attr]
    with nf.erase.ablate(family, some(family)).on(family), pytest.raises(InputError, match="changed nothing"):
        nf.erase.ablate(family, some(family))


def test_values_that_are_not_finite_make_no_edit() -> None:
    lm = LM(build("llama"))
    good = nf.erase.ablate(lm, some(lm)).changes[0]
    with pytest.raises(InputError, match="NaN"):
        Edit.build(lm, [replace(good, after=good.after * torch.nan)], method="broken")


def test_sets_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    lm = LM(build("llama"))
    empty = some(lm) - some(lm)
    for call, message in (
        (lambda: nf.erase.ablate(lm, empty), "empty"),
        (lambda: nf.erase.ablate(lm, Neurons(frozenset({(0, 1)}), (0, 1), 99)), "another model"),
        (lambda: nf.erase.ablate(lm, some(lm), mode="mean"), "needs moments"),
        (lambda: Edit.load(tmp_path / "nowhere"), "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_two_edits_can_be_on_at_once_and_are_undone_in_turn() -> None:
    lm = LM(build("gpt2"))
    before, layers = snapshot(lm), (0, 1)
    one, two = (nf.erase.ablate(lm, Neurons(frozenset({(0, j)}), layers, lm.shape[1])) for j in (1, 2))
    with one.on(lm), two.on(lm):
        both = logits(lm.model)
    assert same(lm, before)
    with nf.erase.ablate(lm, Neurons(frozenset({(0, 1), (0, 2)}), layers, lm.shape[1])).on(lm):
        assert torch.equal(logits(lm.model), both)


def test_a_tied_weight_is_changed_in_both_its_places() -> None:
    lm = LM(copy.deepcopy(build("qwen2")))
    name = next(n for n in lm.parameters if "embed_tokens" in n)
    before = lm.parameters[name].detach().clone()
    edit = Edit.build(lm, [Change(name, before * 1.5, before)], method="louder")
    with edit.on(lm):
        assert torch.equal(lm.model.lm_head.weight, lm.parameters[name])
    assert torch.equal(lm.model.lm_head.weight, before)


def test_an_interruption_while_an_edit_goes_on_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LM(build("llama", mlp_bias=False))
    neurons = Neurons(frozenset({(0, 1), (1, 2)}), (0, 1), lm.shape[1])
    edit = nf.erase.ablate(lm, neurons, mode="mean", moments=means(lm))
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    real, calls, dies = Change.put, [], [0]

    def put(self: Change, model: Any, state: Any) -> None:
        calls.append(state)
        if len(calls) == dies[0]:
            raise KeyboardInterrupt
        real(self, model, state)

    monkeypatch.setattr(Change, "put", put)
    for dies[0] in range(1, len(edit.changes) + 1):
        calls.clear()
        with pytest.raises(KeyboardInterrupt), edit.on(lm):
            pytest.fail("the block ran")
        assert lm.parameters.keys() == before.keys()
        assert all(torch.equal(p, before[name]) for name, p in lm.parameters.items())


def test_mean_ablations_go_on_top_of_each_other_and_keep_their_certificates() -> None:
    lm = LM(build("llama", mlp_bias=False))
    moments = means(lm)
    one, two = (Neurons(frozenset({(0, j)}), (0, 1), lm.shape[1]) for j in (1, 2))
    first = nf.erase.ablate(lm, one, mode="mean", moments=moments)
    first.apply(lm)
    second = nf.erase.ablate(lm, two, mode="mean", moments=moments)
    assert second.certificate(lm).holds
    with second.on(lm):
        shift = lm.parameters[lm.sites[0].bias].detach().clone()
    first.undo(lm)
    weight = lm.parameters[lm.sites[0].write.name]
    mu = moments["mean"][0].float()
    torch.testing.assert_close(shift, mu[1] * weight[:, 1] + mu[2] * weight[:, 2])


def test_an_edit_or_moments_of_a_wider_model_are_refused() -> None:
    wide, lm = LM(build("llama", intermediate_size=80)), LM(build("llama"))
    edit = nf.erase.ablate(wide, Neurons(frozenset({(0, 70)}), (0, 1), 80))
    with pytest.raises(InputError, match="does not fit"):
        edit.apply(lm)
    neurons = Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])
    with pytest.raises(InputError, match="moments are of another model"):
        nf.erase.ablate(lm, neurons, mode="mean", moments=means(wide))


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "a"])
def test_a_strength_is_a_finite_number(strength: Any) -> None:
    lm = LM(build("llama"))
    with pytest.raises(InputError, match=r"strength must be a (finite )?number"):
        nf.erase.ablate(lm, Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])).scaled(strength)


def test_a_strength_whose_values_the_dtype_cannot_hold_is_refused() -> None:
    lm = LM(build("llama"))
    edit = nf.erase.dampen(lm, some(lm), factor=2.0)
    assert edit.scaled(1e30).info["strength"] == 1e30
    with pytest.raises(InputError, match=r"at strength 1e\+42 the values of .* are NaN or infinite, as float32"):
        edit.scaled(1e42)


def test_an_edit_that_changes_nothing_is_not_exported_and_the_card_counts_what_changed(tmp_path: Path) -> None:
    lm = LM(build("llama"))
    with torch.no_grad():  # one of the values that are put to zero is zero already
        lm.parameters[lm.sites[0].write.name][0, 1] = 0.0
    edit = nf.erase.ablate(lm, Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1]))
    with pytest.raises(InputError, match="changes nothing"):
        edit.scaled(0.0).export(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    edit.export(lm, tmp_path / "out")
    width = edit.summary()["values"]
    assert f"| {width - 1} | 1 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "opt", "bloom", "gpt_neox"])  # the last renames what it saves
def test_an_edit_of_the_whole_model_is_exported_tied_and_renamed_weights_included(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    lm = LM(build(family))
    changes = [Change(n, p.detach() + 0.01, p.detach().clone()) for n, p in lm.parameters.items()]
    edit, tokens = Edit.build(lm, changes, method="shift"), torch.tensor([[3, 4, 5]])
    edit.export(lm, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad(), edit.on(lm):
        assert torch.equal(lm.model.eval()(tokens).logits, plain(tokens).logits)
