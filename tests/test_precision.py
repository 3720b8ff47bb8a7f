"""What a stored dtype loses of an edit: cases worked by hand at half a unit in the last place, in bf16 and fp16."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build

import neuronforget as nf
from neuronforget.edits import Edit
from neuronforget.edits.changes import Change
from neuronforget.edits.precision import Rounding, rounding
from neuronforget.errors import InputError
from neuronforget.ledger import Ledger
from neuronforget.models import LM

#: dtype -> unit in the last place at 1.0 (just above it), by the number of bits after the point.
UNITS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@pytest.fixture(params=UNITS, ids=["bf16", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def one(dtype: torch.dtype, before: float, wanted: float) -> Rounding:
    return rounding(torch.tensor([before], dtype=dtype), torch.tensor([wanted], dtype=torch.float64), dtype)


def test_half_a_unit_in_the_last_place_is_where_a_change_is_lost(dtype: torch.dtype) -> None:
    """Ties go to the even neighbour: up from 1 is lost, up from 1 + u is not; below 1 units are half as large."""
    u = UNITS[dtype]
    for before, change, lost in (
        (1.0, 0.49 * u, True),
        (1.0, 0.5 * u, True),
        (1.0, 0.51 * u, False),
        (1.0 + u, 0.49 * u, True),
        (1.0 + u, 0.5 * u, False),
        (1.0, -0.25 * u, True),
        (1.0, -0.26 * u, False),
        (0.0, 1e-6, False),  # there is always a unit small enough at zero, down to the least number
        (64.0, 31.9 * u, True),
        (64.0, 32.1 * u, False),
    ):
        found = one(dtype, before, before + change)
        assert (found.asked, found.lost) == (1, int(lost)), (before, change / u)
        assert found.gone is lost and found.share == float(lost)


def test_half_of_the_least_fp16_number_is_lost_at_zero() -> None:
    assert one(torch.float16, 0.0, 2.0**-25).gone and not one(torch.float16, 0.0, 2.0**-24 * 0.51).gone
    assert not one(torch.bfloat16, 0.0, 2.0**-25).gone


def test_the_shares_are_l2_sizes_of_what_was_asked(dtype: torch.dtype) -> None:
    u = UNITS[dtype]
    before = torch.ones(4, dtype=dtype)
    wanted = 1 + torch.tensor([0.5 * u, 2 * u, 0.0, 1.5 * u], dtype=torch.float64)
    found = rounding(before, wanted, dtype)
    assert (found.asked, found.lost) == (3, 1)
    size = (0.25 + 4 + 2.25) ** 0.5  # of 0.5, 2 and 1.5 units; 0.5 is lost, 1.5 is stored as 2
    assert found.share == pytest.approx(0.5 / size, rel=1e-12)
    assert found.error == pytest.approx((0.25 + 0.25) ** 0.5 / size, rel=1e-12)
    halves = rounding(before[:2], wanted[:2], dtype) + rounding(before[2:], wanted[2:], dtype)
    assert halves == found
    assert Rounding().share == Rounding().error == 0.0 and not Rounding().gone


def test_the_counts_are_those_of_numpys_own_fp16() -> None:
    draw = np.random.default_rng(0)
    before = draw.normal(0, 0.02, 5000).astype(np.float32)
    wanted = before + draw.normal(0, 1e-5, 5000).astype(np.float32)
    kept = wanted.astype(np.float16).astype(np.float64) - before.astype(np.float16).astype(np.float64)
    asked = wanted.astype(np.float64) - before.astype(np.float64)
    found = rounding(torch.tensor(before), torch.tensor(wanted), torch.float16)
    lost = (asked != 0) & (kept == 0)
    assert (found.asked, found.lost) == ((asked != 0).sum(), lost.sum()) and 0 < found.lost < found.asked
    assert found.share == pytest.approx(np.linalg.norm(asked[lost]) / np.linalg.norm(asked), rel=1e-9)
    assert found.error == pytest.approx(np.linalg.norm(kept - asked) / np.linalg.norm(asked), rel=1e-9)


def ones(lm: LM, dtype: torch.dtype, *steps: float) -> Edit:
    """Put a column of ones into the model, in its place an edit of `steps` units of `dtype`, each once or for all."""
    name, index = lm.sites[0].write.name, torch.tensor([0])
    with torch.no_grad():
        lm.parameters[name][:, 0] = 1.0
    before = lm.parameters[name].detach()[:, :1].clone()
    wanted = before.double()
    wanted[: len(steps), 0] += torch.tensor(steps, dtype=torch.float64) * UNITS[dtype]
    return Edit.build(lm, [Change(name, wanted, before, 1, index)], method="nudge")


def test_an_edit_counts_what_its_models_dtype_loses_and_warns(dtype: torch.dtype, tmp_path: Path) -> None:
    lm = LM(build("llama").to(dtype))
    lost = r"nudge: 1 of 2 changed values round away .*0\.24 of the change's L2"
    with pytest.warns(UserWarning, match=lost) as caught:
        edit = ones(lm, dtype, 0.5, 2.0)
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}
    assert (edit.info["values_lost_to_dtype"], edit.info["values_changed"]) == (1, 1)
    assert edit.info["share_lost_to_dtype"] == pytest.approx(0.25**0.5 / 4.25**0.5)
    edit.save(tmp_path / "edit.safetensors")
    assert Edit.load(tmp_path / "edit.safetensors").info == edit.info
    with pytest.raises(InputError, match="changed nothing: 2 of 2 changed values round away"):
        ones(lm, dtype, 0.5, 0.3)


def test_the_odd_value_that_next_to_nothing_was_asked_of_is_counted_without_a_word() -> None:
    most = Rounding(asked=10_000, lost=9, asked_squares=1.0, lost_squares=1e-9)
    assert not most.matters and most.info["values_lost_to_dtype"] == 9
    assert replace(most, lost=11).matters and replace(most, lost_squares=1.1e-6).matters
    lm, changes = LM(build("llama")), []
    for site in lm.sites:
        before = lm.parameters[site.write.name].detach().clone()
        changes.append(Change(site.write.name, 1.01 * before.double(), before, 1, torch.arange(site.d_mlp)))
    changes[0].after[0, 0] = (1 + 1e-9) * lm.parameters[changes[0].name][0, 0].double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit = Edit.build(lm, changes, method="nudge")
    assert edit.info["values_lost_to_dtype"] == 1 and edit.info["values_changed"] > 1000


def test_a_weaker_edit_counts_what_it_loses(dtype: torch.dtype) -> None:
    lm = LM(build("llama").to(dtype))
    edit = ones(lm, dtype, 1.0, 4.0)
    weak = edit.scaled(0.25)
    assert edit.info["values_lost_to_dtype"] == 0 and edit.scaled(1.0).info["values_lost_to_dtype"] == 0
    assert (weak.info["values_lost_to_dtype"], weak.summary()["lost"]) == (1, 1)
    assert weak.info["share_lost_to_dtype"] == pytest.approx(1 / 17**0.5)


def test_an_export_in_a_narrower_dtype_says_what_is_lost_and_refuses_if_all_is(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    lm = LM(build("llama"))
    edit, tiny = ones(lm, dtype, 0.5, 2.0), ones(lm, dtype, 0.5, 0.3)
    before = {name: p.detach().clone() for name, p in lm.parameters.items()}
    assert edit.info["values_lost_to_dtype"] == tiny.info["values_lost_to_dtype"] == 0  # fp32 keeps them
    with pytest.raises(InputError, match=r"nudge: 2 of 2 changed values .* would be gone .* store it in torch.float32"):
        tiny.export(lm, tmp_path / "out", dtype=dtype)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="1 of 2 changed values round away") as caught:
        edit.export(lm, tmp_path / "out", dtype=dtype)
    assert {Path(warning.filename) for warning in caught} == {Path(__file__)}  # the caller's line, not one of ours
    assert lm.model.dtype == torch.float32 and all(torch.equal(p, before[n]) for n, p in lm.parameters.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    column = loaded.get_parameter(lm.sites[0].write.name)[:, 0]
    assert loaded.dtype == dtype and column[:3].double().tolist() == [1.0, 1 + 2 * UNITS[dtype], 1.0]
    told = Ledger.load(tmp_path / "out").entries[0].about["stored"]
    assert (told["values_lost_to_dtype"], told["dtype"]) == (1, str(dtype).removeprefix("torch."))
    assert "1 changed values are lost" in (tmp_path / "out" / "README.md").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edit.export(lm, tmp_path / "wide")


def test_a_ledgers_export_refuses_where_any_one_request_is_gone(dtype: torch.dtype, tmp_path: Path) -> None:
    lm, ledger = LM(build("llama")), Ledger()
    tiny = ones(lm, dtype, 0.5, 0.3)
    ledger.apply(lm, tiny, request="A")
    ledger.apply(lm, nf.erase.ablate(lm, nf.Neurons(frozenset({(1, 2)}), (0, 1), lm.shape[1])), request="B")
    with pytest.raises(InputError, match="A: 2 of 2 changed values round away"):
        ledger.export(lm, tmp_path / "out", dtype=dtype)
    ledger.undo(lm, "A")
    ledger.export(lm, tmp_path / "out", dtype=dtype)
    assert [e.about["state"] for e in Ledger.load(tmp_path / "out").entries] == ["undone", "applied"]


def test_a_weight_that_the_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    lm = LM(build("llama"))
    edit = ones(lm, torch.float16, 2.0)
    with torch.no_grad():
        lm.parameters[lm.sites[1].write.name][0, 0] = 1e5
    with pytest.raises(InputError, match=r"layers\.1\.mlp.*does not fit into torch\.float16"):
        edit.export(lm, tmp_path / "out", dtype=torch.float16)
    assert not list(tmp_path.iterdir()) and lm.model.dtype == torch.float32


def test_a_checkpoint_that_holds_other_values_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is checked is the file: here saving drops the last bits on the way."""
    lm, save = LM(build("llama")), LM.save
    edit = ones(lm, torch.bfloat16, 2.0, 0.3)

    def careless(self: LM, folder: Path) -> None:
        parameter = self.parameters[self.sites[0].write.name]
        kept = parameter.detach().clone()
        parameter.data.copy_(kept.bfloat16())
        save(self, folder)
        parameter.data.copy_(kept)

    monkeypatch.setattr(LM, "save", careless)
    with pytest.raises(InputError, match="stored with other values"):
        edit.export(lm, tmp_path / "out")
    assert not list(tmp_path.iterdir())
