"""The regime map: its requests, its cells against `evaluate`, its verdicts by hand."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from beds import bed
from test_analyses import analysis

import neuronforget as nf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mapped() -> dict[str, Any]:
    """A few cells of the small testbed, as they come back from the file."""
    regimes, done = analysis("regime_map"), {}
    regimes.SIZES, regimes.STRENGTHS, regimes.DRAWS, regimes.RELEARNED_AT = (0.1,), (0.5, 1.0), 2, 0.1
    regimes.SELECTIONS = {"grad_x_act": nf.scores.grad_x_act}
    regimes.OPERATORS = ("ablate", "ga")
    start, study = bed().lm.digest(), regimes.source_of(bed(), 0)
    finished = list(regimes.run(study, done))
    assert finished[0] == "references" and len(finished) == 8 and not list(regimes.run(study, done))
    assert bed().lm.digest() == start
    return {"study": study, "done": json.loads(json.dumps(done)), "regimes": regimes}


def test_cells_are_what_evaluate_measures_and_tuned_keeps_the_damage(mapped: dict[str, Any]) -> None:
    study, done, regimes = mapped["study"], mapped["done"], mapped["regimes"]
    scores = nf.attribute(study.lm, study.forget, study.retain.head(len(study.forget)), progress=False)
    edit = nf.erase.ablate(study.lm, nf.select.per_layer(scores, 0.1))
    results = nf.evaluate(study.lm, {"a": edit}, study.forget, study.corpora["retain"], gold=study.gold,
                          strengths=(), damage=None, progress=False)  # fmt: skip
    cell, start = done["ablate|0.1|grad_x_act"], done["untouched"]["tuned"]
    for name, corpus in (("forget", "forget"), ("unseen", "forget unseen"), ("retain", "retain")):
        assert cell["dial"][1][name]["kl_gold"] == pytest.approx(results.value("a", corpus, "kl_gold"), abs=1e-6)
    assert cell["values"] == edit.summary()["values"] and "relearning" in cell
    for arm in (arm for key, arm in done.items() if "|" in key):
        allowed = [start, *(p for p in arm["dial"] if p["retain"]["nll"] <= start["retain"]["nll"] + regimes.DAMAGE)]
        assert arm["tuned"] == min(allowed, key=lambda point: point["forget"]["kl_gold"])


def test_the_map_says_chosen_where_neurons_are_known_and_the_tables_hold_its_numbers(mapped: dict[str, Any]) -> None:
    tables, done = analysis("regime_tables"), mapped["done"]
    kl = {
        name: done[f"ablate|0.1|{name}"]["tuned"]["unseen"]["kl_gold"]
        for name in ("grad_x_act", "random 0", "random 1")
    }
    gain = kl["grad_x_act"] - (kl["random 0"] + kl["random 1"]) / 2
    assert tables.gains([done], "ablate", "0.1", "grad_x_act") == pytest.approx([gain]) and gain < 0
    text = tables.tables({"bed 0": done}, ["bed"], [0])
    assert f"| ablate | 10.00% | {gain:.2f} |" in text and "| ga | 100.00% |" in text
    picture = analysis("regime_figure").picture({"bed 0": done}, ["bed"], [0])
    assert picture.count(f">{gain:+.2f}<") >= 1 and picture.count("<rect") == 3  # the ground and two cells
    assert len(picture) < 100_000
    words, wide = re.findall(r'<text x="8" y="[\d.]+">(.+?)</text>', picture), re.search(r' width="(\d+)"', picture)
    assert wide and len(words) == 2 and all(8 + 7 * len(sentence) <= int(wide[1]) for sentence in words)


def test_matched_controls_are_alike_in_norm_or_activation_and_measured_as_the_map_is(mapped: dict[str, Any]) -> None:
    study, controls, done = mapped["study"], analysis("regime_controls"), {}
    lm, start = study.lm, mapped["done"]["untouched"]["tuned"]
    cells = [("ablate", "0.1", "grad_x_act")]
    controls.SELECTIONS["grad_x_act"] = nf.scores.grad_x_act
    assert len(list(controls.run(study, cells, start, done))) == 2 and not list(controls.run(study, cells, start, done))
    chosen = nf.select.per_layer(
        nf.attribute(lm, study.forget, study.retain.head(len(study.forget)), progress=False), 0.1
    )
    norms = torch.stack([lm.model.get_submodule(site.path).weight.detach().double().norm(dim=0) for site in lm.sites])
    others = chosen.matched(norms, 0)
    gap = abs(float(norms[others.mask()].mean() - norms[chosen.mask()].mean()))
    assert not others.members & chosen.members and gap < 0.1 * float(norms[chosen.mask()].mean())
    with nf.erase.ablate(lm, others).on(lm):
        left = study.values(lm)
    assert done["ablate|0.1|grad_x_act|norm"]["dial"][1]["unseen"] == pytest.approx(left["unseen"], abs=1e-6)


def test_a_cell_is_won_by_its_interval_and_holds_by_each_control(mapped: dict[str, Any]) -> None:
    controls = analysis("regime_controls")

    def kl(value: float) -> dict[str, Any]:
        return {"tuned": {"unseen": {"kl_gold": value}}}

    done, matched = {}, {}
    for seed, (own, random, norm, activation) in enumerate(
        [(1.0, 2.0, 1.9, 1.0), (1.1, 2.2, 2.0, 0.5), (0.9, 1.9, 2.1, 1.6)]
    ):
        done[f"bed {seed}"] = {"ablate|0.1|a": kl(own), "ablate|0.1|random 0": kl(random), "ablate|0.1|b": kl(random)}
        matched[f"bed {seed}"] = {"ablate|0.1|a|norm": kl(norm), "ablate|0.1|a|activation": kl(activation)}
    assert controls.won([done[f"bed {seed}"] for seed in range(3)]) == [("ablate", "0.1", "a")]
    rows = controls.compared(done, matched, ["bed"], [0, 1, 2])
    assert rows[0]["random"] == pytest.approx([-1.0, -1.1, -1.0])
    assert rows[0]["activation"] == pytest.approx([0.0, 0.6, -0.7])
    text = controls.tables(rows)
    assert "norm-matched neurons too: 1 of 1" in text and "activation-matched neurons too: 0 of 1" in text
    assert "| bed | ablate | 10.00% | a | -1.03 " in text


def test_told_apart_is_an_interval_that_excludes_zero() -> None:
    tables = analysis("regime_tables")
    for values, word in (([-1.0, -1.1, -0.9], "chosen"), ([1.0, 1.1, 0.9], "random"), ([-1.0, 1.0, 0.2], "")):
        half = 4.302652729911275 * np.std(values, ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
        assert bool(word) == (abs(np.mean(values)) > half) and tables.verdict(values) == word


def test_a_relation_of_their_own_is_asked_of_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    regimes, made = analysis("regime_map"), []
    monkeypatch.setattr(nf.testbed, "from_rows", lambda forget, retain, **_: made.append((forget, retain)))
    for seed in (0, 1):
        regimes.one_relation(seed, shared=False)
        regimes.one_relation(seed, shared=True)
        (forget, alone), (same, shared) = made[-2:]
        assert forget.examples == same.examples and len({e.subject for e in forget}) == 10
        forms = {e.prompt.replace(str(e.subject), "N") for e in forget}
        assert len(forms) == 2  # of three phrasings one is kept out
        asks = [sum(e.prompt.replace(str(e.subject), "N") in forms for e in corpus) for corpus in (alone, shared)]
        assert asks[0] == 0 and asks[1] == 2 * (regimes.PEOPLE - 10 + 3)
        assert len(shared) - len(alone) == asks[1] and {e.subject for e in forget} <= {e.subject for e in alone}
