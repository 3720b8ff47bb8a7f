"""A stream of requests: what the ledger applies, undoes alone, refuses, and sends along with a checkpoint."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import neuronforget as nf
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.errors import InputError
from neuronforget.ledger import Ledger
from neuronforget.models import LM
from neuronforget.moments import Moments
from neuronforget.neurons import Neurons

TOKENS = torch.tensor([[5, 9, 11, 3, 7], [8, 4, 12, 6, 10]])


def neurons(lm: LM, *members: tuple[int, int]) -> Neurons:
    return Neurons(frozenset(members), tuple(site.layer for site in lm.sites), lm.shape[1])


def bits(lm: LM) -> dict[str, Tensor]:
    """Every parameter's bytes: 0 and -0 differ."""
    return {
        name: p.detach().contiguous().reshape(-1).view(torch.uint8).clone()
        for name, p in lm.model.named_parameters(remove_duplicate=False)
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def ablate(lm: LM, *members: tuple[int, int], **settings: Any) -> Edit:
    return nf.erase.ablate(lm, neurons(lm, *members), **settings)


def adding(lm: LM, *columns: int, seed: int, size: float = 0.1, law: Any = "add") -> Edit:
    """A rank-one change of the first output projection's columns, as the closed forms make it."""
    draw = torch.Generator().manual_seed(seed)
    part, index = lm.sites[0].write, torch.tensor(columns)
    before = lm.parameters[part.name].detach().index_select(part.dim, index).clone()
    delta = torch.outer(torch.randn(len(before), generator=draw), torch.randn(before.shape[1], generator=draw))
    change = Change(part.name, before.double() + size * delta, before, part.dim, index, law)
    return Edit.build(lm, [change], method="rank one")


def means(lm: LM) -> Moments:
    mean = torch.randn(lm.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Moments({"mean": mean}, 1, 1, 1, 0.0, tuple(site.layer for site in lm.sites))


@pytest.fixture(params=["llama", "gpt2"])
def lm(request: pytest.FixtureRequest) -> LM:
    return LM(build(request.param))


def stream(lm: LM, *makers: Any) -> tuple[Ledger, list[dict[str, Tensor]]]:
    """Apply what each maker makes of the model as it is then, as A, B, C; return the ledger and every state's bits."""
    ledger, states = Ledger(), [bits(lm)]
    for request, make in zip("ABCDE", makers, strict=False):
        ledger.apply(lm, make(lm), request=request)
        states.append(bits(lm))
    return ledger, states


def test_requests_are_undone_in_reverse_order_bit_for_bit_whatever_they_are(lm: LM) -> None:
    makers = (
        lambda lm: ablate(lm, (0, 1), (0, 2)),
        lambda lm: adding(lm, 1, 2, 3, seed=0, law=None),
        lambda lm: adding(lm, 2, 5, seed=1, law=None),
    )
    ledger, states = stream(lm, *makers)
    for request, state in zip("CBA", reversed(states[:-1]), strict=True):
        ledger.undo(lm, request)
        assert same(bits(lm), state)
    again, states = stream(lm, *makers)
    again.undo_all(lm)
    assert (
        same(bits(lm), states[0]) and not again.applied and [e.about["state"] for e in again.entries] == ["undone"] * 3
    )


def test_an_earlier_request_on_other_values_is_undone_as_if_it_had_never_been(lm: LM) -> None:
    """Nothing covers A's values later: what is left is bit for bit the model with B alone."""
    start = bits(lm)
    ledger, _ = stream(lm, lambda lm: ablate(lm, (0, 1)), lambda lm: ablate(lm, (0, 4), (1, 2), units="dead"))
    ledger.undo(lm, "A")
    left = bits(lm)
    ledger.undo(lm, "B")
    assert same(bits(lm), start)
    with ablate(lm, (0, 4), (1, 2), units="dead").on(lm):
        assert same(bits(lm), left)


def test_what_a_later_request_set_stays_set_and_the_rest_comes_back(lm: LM) -> None:
    """A and B overlap; B puts zeros whatever was there: without A the model is the one with B alone, bit for bit."""
    start = bits(lm)
    ledger, _ = stream(lm, lambda lm: adding(lm, 1, 2, 3, seed=0), lambda lm: ablate(lm, (0, 2), (0, 7)))
    ledger.undo(lm, "A")
    left = bits(lm)
    note = ledger.entries[1].about["notes"][0]
    assert "stay as they are" in note and "measure again" in note and str(lm.sites[0].d_model) in note
    ledger.undo(lm, "B")
    assert same(bits(lm), start)  # B's own "before" is now what lay under A
    with ablate(lm, (0, 2), (0, 7)).on(lm):
        assert same(bits(lm), left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_additions_commute_up_to_one_rounding(dtype: torch.dtype) -> None:
    """W + a + b without a is W + b to within one unit in the last place, computed apart in float64."""
    lm = LM(build("llama").to(dtype))
    name = lm.sites[0].write.name
    start, states = bits(lm), [lm.parameters[name].detach().double()]
    ledger = Ledger()
    for request, columns in (("A", (1, 2, 3)), ("B", (2, 3, 4)), ("C", (3, 4, 5))):
        ledger.apply(lm, adding(lm, *columns, seed=ord(request)), request=request)
        states.append(lm.parameters[name].detach().double())
    expected = states[0] + (states[2] - states[1]) + (states[3] - states[2])
    ledger.undo(lm, "A")
    found = lm.parameters[name].detach()
    ulp = expected.to(dtype).abs().clamp(min=torch.finfo(dtype).tiny).double() * torch.finfo(dtype).eps
    assert ((found.double() - expected).abs() <= ulp).all()
    assert not torch.equal(found.double(), states[3])
    assert torch.equal(found[:, 1].double(), states[0][:, 1])  # A alone was here: exact
    assert torch.equal(found[:, 5].double(), states[3][:, 5])  # C alone is here: exact
    assert "added anew" in ledger.entries[1].about["notes"][0]
    ledger.undo_all(lm)
    assert same(bits(lm), start)


def test_a_later_training_on_the_same_values_is_named_and_nothing_changes(lm: LM) -> None:
    ledger, states = stream(
        lm, lambda lm: ablate(lm, (0, 1)), lambda lm: ablate(lm, (1, 1)), lambda lm: adding(lm, 1, 4, seed=2, law=None)
    )
    entries = list(ledger.entries)
    with pytest.raises(InputError, match=r"A cannot be undone alone: C came later.*undo C first"):
        ledger.undo(lm, "A")
    assert same(bits(lm), states[-1]) and ledger.entries == entries
    ledger.undo(lm, "B")  # other values: alone, below C
    ledger.undo(lm, "C")
    ledger.undo(lm, "A")
    assert same(bits(lm), states[0])


def test_a_bias_that_an_earlier_request_added_goes_and_a_later_ones_share_stays() -> None:
    """Mean ablations share one added bias; without the first it holds the second's shift alone."""
    lm = LM(build("llama", mlp_bias=False))
    moments, start = means(lm), bits(lm)
    ledger, _ = stream(
        lm, *(lambda lm, j=j: ablate(lm, (0, j), mode="mean", moments=moments) for j in (1, 2))
    )  # fmt: skip
    ledger.undo(lm, "A")
    found = lm.parameters[lm.sites[0].bias].detach().clone()
    ledger.undo(lm, "B")
    assert same(bits(lm), start)
    with ablate(lm, (0, 2), mode="mean", moments=moments).on(lm):
        torch.testing.assert_close(found, lm.parameters[lm.sites[0].bias], rtol=1e-5, atol=1e-6)


def test_a_tied_weight_goes_by_one_name() -> None:
    lm = LM(build("qwen2"))
    before = lm.model.lm_head.weight.detach().clone()
    with pytest.raises(InputError, match=r"no parameter lm_head\.weight"):
        Ledger().apply(lm, Edit((Change("lm_head.weight", before + 1, before),)), request="A")
    assert torch.equal(lm.model.lm_head.weight, before)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_leaving_out_any_request_is_what_brute_force_makes_of_it(data: st.DataObject) -> None:
    """Rows, columns and whole parameters that overlap at random; whole numbers, so that sums are exact."""
    lm = LM(build("llama"))
    name, integers = lm.sites[0].write.name, st.integers(-5, 5)
    parameter = lm.parameters[name]
    with torch.no_grad():
        parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) % 7 - 3)
    start, state, ledger, history = bits(lm), parameter.detach().clone(), Ledger(), []
    for request in "ABCD"[: data.draw(st.integers(2, 4))]:
        dim, law = data.draw(st.sampled_from([0, 1])), data.draw(st.sampled_from(["set", "add", None]))
        chosen = data.draw(st.sets(st.integers(0, 3), min_size=1))
        index, by = torch.tensor(sorted(chosen)), data.draw(integers.filter(bool))
        before = parameter.detach().index_select(dim, index).clone()
        after = torch.full_like(before, 20.0 + by) if law == "set" else before + by
        ledger.apply(lm, Edit((Change(name, after, before, dim, index, law),)), request=request)
        history.append((request, dim, chosen, law, 20.0 + by if law == "set" else by))
    gone = data.draw(st.sampled_from([request for request, *_ in history]))
    expected = state.clone()
    for at in itertools.product(*map(range, parameter.shape)):
        if min(at) < 4:  # rows and columns 0 to 3 are edited
            _expect(expected, at, history, gone)
    if expected.isnan().any():
        with pytest.raises(InputError, match=f"{gone} cannot be undone alone"):
            ledger.undo(lm, gone)
    else:
        ledger.undo(lm, gone)
        assert torch.equal(parameter.detach(), expected)
    ledger.undo_all(lm)
    assert same(bits(lm), start)


def _expect(values: Tensor, at: tuple[int, int], history: list[Any], gone: str) -> None:
    """Write what one value is without `gone`, or NaN where an edit of unknown law meets another value than it knew."""
    was = now = float(values[at])
    for request, dim, chosen, law, by in history:
        if at[dim] not in chosen:
            continue
        if law is None and request != gone and was != now:
            values[at] = float("nan")  # for good: its own undo would be lost, even if a later edit hid it
            return
        was = by if law == "set" else was + by
        if request != gone:
            now = by if law == "set" else now + by
    values[at] = now


def test_half_of_a_setting_edit_is_not_known_on_other_values(lm: LM) -> None:
    ledger, states = stream(lm, lambda lm: adding(lm, 1, seed=0), lambda lm: ablate(lm, (0, 1)).scaled(0.5))
    with pytest.raises(InputError, match="undo B first"):
        ledger.undo(lm, "A")
    assert same(bits(lm), states[-1])


def test_the_laws_that_operators_claim_hold_on_other_values(lm: LM) -> None:
    """On a model whose edited values differ, "set" gives the same values and "add" the same difference."""
    chosen, moments = neurons(lm, (0, 1), (1, 3)), means(lm)
    makers = {
        "ablate": lambda lm: nf.erase.ablate(lm, chosen, units="dead"),
        "mean": lambda lm: nf.erase.ablate(lm, chosen, mode="mean", moments=moments),
        "noise": lambda lm: nf.erase.noise(lm, chosen, seed=1),
        "revive": lambda lm: nf.erase.revive(lm, chosen, seed=1),
    }
    for name, make in makers.items():
        first = make(lm)
        shift = Edit(tuple(replace(c, after=c.before + 0.5) for c in first.changes if c.before is not None))
        if name == "mean":  # its bias is a sum of the neurons' own write weights, which stay
            shift = Edit(tuple(c for c in shift.changes if c.index is None))
        with shift.on(lm):
            second = make(lm)
        for one, other in zip(first.changes, second.changes, strict=True):
            assert one.law in ("set", "add")
            past = [torch.zeros_like(c.after) if c.before is None else c.before for c in (one, other)]
            mine, theirs = (
                (one.after, other.after) if one.law == "set" else (one.after - past[0], other.after - past[1])
            )
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert all(c.law is None for c in nf.erase.dampen(lm, chosen, factor=0.5).changes)


def test_the_ledger_refuses_what_it_cannot_answer_for(lm: LM) -> None:
    ledger, _ = stream(lm, lambda lm: ablate(lm, (0, 1)))
    other, state = ablate(lm, (0, 2)), bits(lm)
    for call, message in (
        (lambda: ledger.apply(lm, other, request="A"), "name of its own"),
        (lambda: ledger.apply(lm, other, request=" "), "name of its own"),
        (lambda: ledger.apply(lm, Edit(()), request="B"), "changes no weight"),
        (lambda: ledger.undo(lm, "Z"), "no request 'Z' is applied; applied: A"),
        (lambda: ledger.replay(LM(build("llama", vocab_size=70))), "another model"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert same(bits(lm), state) and len(ledger.entries) == 1
    with other.on(lm):
        for call in (lambda: ledger.undo(lm, "A"), lambda: ledger.apply(lm, ablate(lm, (0, 3)), request="B")):
            with pytest.raises(InputError, match="not as this ledger left it"):
                call()
    ledger.undo(lm, "A")
    ledger.apply(lm, ablate(lm, (0, 1)), request="A")  # an undone name is free again
    assert [entry.about["state"] for entry in ledger.entries] == ["undone", "applied"]


def test_an_interruption_while_a_request_is_undone_leaves_the_model_with_it(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, states = stream(lm, lambda lm: ablate(lm, (0, 1), (1, 1), units="dead"), lambda lm: ablate(lm, (0, 3)))
    real, calls, dies = Change.put, [], [0]

    def put(self: Change, model: Any, state: Any) -> None:
        calls.append(state)
        if len(calls) == dies[0]:
            raise KeyboardInterrupt
        real(self, model, state)

    monkeypatch.setattr(Change, "put", put)
    for dies[0] in (1, 2, 3):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            ledger.undo(lm, "A")
        assert same(bits(lm), states[-1]) and len(ledger.applied) == 2


def test_a_saved_ledger_goes_on_where_it_was(lm: LM, tmp_path: Path) -> None:
    ledger, states = stream(lm, lambda lm: adding(lm, 1, 2, seed=0), lambda lm: ablate(lm, (0, 2)))
    ledger.save(tmp_path / "ledger")
    ledger.undo_all(lm)
    again = Ledger.load(tmp_path / "ledger")
    again.replay(lm)
    assert same(bits(lm), states[-1]) and "A: applied, rank one" in repr(again)
    again.replay(lm)  # nothing to do
    again.undo(lm, "A")
    again.save(tmp_path / "ledger")
    left = bits(lm)
    again.undo_all(lm)
    third = Ledger.load(tmp_path / "ledger")
    third.replay(lm)
    assert same(bits(lm), left) and [e.about["state"] for e in third.entries] == ["undone", "applied"]
    assert len(list((tmp_path / "ledger" / "edits").iterdir())) == 1  # what was undone is not kept


def test_an_exported_ledger_loads_in_plain_transformers_and_goes_on(lm: LM, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ledger, _ = stream(lm, lambda lm: ablate(lm, (0, 1)), lambda lm: adding(lm, 3, seed=1))
    row = {"edit": "A", "corpus": "forget", "metric": "exact_match", "value": 0.25, "low": 0.1, "high": 0.5, "n": 8}
    ledger.export(lm, tmp_path / "out", measured=[row | {"point": "full"}])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.equal(plain(TOKENS).logits, lm.model(TOKENS).logits)
    record = json.loads((tmp_path / "out" / "neuronforget.json").read_text())
    first = record["entries"][0]
    assert [e["request"] for e in record["entries"]] == ["A", "B"] and record["entries"][1]["on_top_of"] == ["A"]
    assert first["neurons"] == {"0": [1]} and first["certificate"]["holds"] and "torch" in first["info"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| A | applied | ablate:zero |" in card and "0.250 | 0.100 to 0.500 | 8 |" in card and "Limits" in card
    assert not (tmp_path / "out" / "edits").exists() and "not in this folder" in card

    again, loaded = Ledger.load(tmp_path / "out"), LM(plain)
    with pytest.raises(InputError, match="did not travel"):
        again.undo(loaded, "A")
    again.apply(loaded, ablate(loaded, (1, 2)), request="C")
    again.save(tmp_path / "ledger")
    third, fresh = Ledger.load(tmp_path / "ledger"), LM(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    third.replay(fresh)
    assert same(bits(fresh), bits(loaded))
    third.undo(fresh, "C")
    assert [e.request for e in third.applied] == ["A", "B"]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_undo_information_travels_if_asked_and_undoes_in_the_stored_precision(
    lm: LM, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    start = {name: p.detach().to(dtype or p.dtype, copy=True) for name, p in lm.parameters.items()}
    ledger, states = stream(lm, lambda lm: ablate(lm, (0, 1)), lambda lm: adding(lm, 1, 3, seed=1))
    config = lm.model.config.dtype
    ledger.export(lm, tmp_path / "out", undo=True, dtype=dtype)
    assert same(bits(lm), states[-1]) and lm.model.config.dtype == config
    loaded = LM(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval())
    assert loaded.model.dtype == (dtype or torch.float32)
    again = Ledger.load(tmp_path / "out")
    again.replay(loaded)
    again.undo(loaded, "A")
    again.undo_all(loaded)
    assert all(torch.equal(p, start[name]) for name, p in loaded.parameters.items())
    assert "`edits/` contains the erased weights" in (tmp_path / "out" / "README.md").read_text()


def test_an_added_bias_travels_as_one_that_was_zero(tmp_path: Path) -> None:
    lm = LM(build("llama", mlp_bias=False))
    ledger, _ = stream(lm, lambda lm: ablate(lm, (0, 1), mode="mean", moments=means(lm)))
    with torch.no_grad():
        edited = lm.model(TOKENS).logits
    ledger.export(lm, tmp_path / "out", undo=True)
    ledger.undo_all(lm)
    from transformers import AutoModelForCausalLM

    loaded, again = LM(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()), Ledger.load(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(TOKENS).logits, edited, rtol=1e-5, atol=1e-6)
        again.undo(loaded, "A")
        torch.testing.assert_close(loaded.model(TOKENS).logits, lm.model(TOKENS).logits, rtol=1e-5, atol=1e-6)
    qwen = LM(build("qwen2"))
    ledger, _ = stream(qwen, lambda lm: ablate(lm, (0, 1), mode="mean", moments=means(lm)))
    with pytest.raises(InputError, match="plain transformers would"):
        ledger.export(qwen, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_single_edits_export_is_a_ledger_of_one(lm: LM, tmp_path: Path) -> None:
    edit = ablate(lm, (0, 1))
    edit.export(lm, tmp_path / "out", request="forget | Anna")
    ledger = Ledger.load(tmp_path / "out")
    assert [e.request for e in ledger.applied] == ["forget | Anna"] and ledger.applied[0].about["certificate"]["holds"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing is stated here" in card and "forget \\| Anna" in card and str(tmp_path) not in card
    edit.apply(lm)
    assert ledger.model == lm.digest()


def test_a_ledger_is_not_written_over_anything_else(lm: LM, tmp_path: Path) -> None:
    ledger, _ = stream(lm, lambda lm: ablate(lm, (0, 1)))
    ledger.export(lm, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for folder in ("out", "mine"):
        with pytest.raises(InputError, match="not a folder of a ledger alone"):
            ledger.save(tmp_path / folder)
    notes = tmp_path / "mine" / "notes.txt"
    with pytest.raises(InputError, match=r"notes.txt is a file: name a folder"):
        ledger.save(notes)
    assert notes.read_text() == "mine" and [*notes.parent.iterdir()] == [notes]
    with pytest.raises(InputError, match="no such file"):
        Ledger.load(tmp_path / "mine")
    (tmp_path / "mine" / "neuronforget.json").write_text('{"method": "ablate:zero"}')
    with pytest.raises(InputError, match="has the format None"):
        Ledger.load(tmp_path / "mine")
