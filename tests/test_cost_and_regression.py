"""What attribution costs, and what the advantage of chosen neurons depends on: their arithmetic, on small settings."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from beds import bed

import neuronforget as nf

FOLDER = Path(__file__).parents[1] / "analyses"
sys.path.append(str(FOLDER))


def test_a_full_pass_computes_every_gradient_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = import_module("attribution_cost")
    lm, corpus = cost.made("2x256", 3)
    seen: list[Any] = []
    monkeypatch.setattr(lm.model, "zero_grad", lambda: seen.append([p.grad is not None for p in lm.model.parameters()]))
    cost.full_pass(lm, corpus)
    assert len(seen) == 1 and all(seen[0])


def test_exact_is_timed_on_a_known_part_of_each_layer() -> None:
    cost = import_module("attribution_cost")
    lm, corpus = cost.made("2x256", 2)
    function, times = cost.scores_of(lm)["exact"]
    neurons = function.keywords["neurons"]
    assert set(neurons.by_layer()) == {0, 1} and len(neurons) * times == lm.shape[0] * lm.shape[1]
    values = nf.attribute(lm, corpus, score=function, progress=False).values
    assert int((values != 0).sum()) <= len(neurons)


def test_the_cost_of_one_s_own_model_is_measured_on_parts_of_its_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, made = import_module("attribution_cost"), bed()
    made.lm.save(tmp_path / "model")
    rows = [json.dumps({"prompt": e.prompt, "answer": e.answer}) for e in made.forget.examples[:5]]
    (tmp_path / "forget.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(cost, "SIZES", (2, 16))
    command = "x --turns 1 --scores grad_x_act --out {0}/out --model {0}/model --forget {0}/forget.jsonl"
    monkeypatch.setattr(sys, "argv", command.format(tmp_path).split())
    cost.main()
    found = json.loads((tmp_path / "out/cost.json").read_text())["rows"]
    assert [(row["varied"], row["examples"]) for row in found] == [("corpus", 2), ("corpus", 5)]
    monkeypatch.setattr(sys, "argv", command.format(tmp_path).split()[:-2])
    with pytest.raises(SystemExit, match="--model needs --forget"):
        cost.main()


def test_costs_are_written_as_the_work_goes_on_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost, asked = import_module("attribution_cost"), "x --turns 1 --scores grad_x_act relp --out"
    monkeypatch.setattr(cost, "MODELS", {name: cost.MODELS[name] for name in ("2x256", "4x512")})
    monkeypatch.setattr(cost, "SIZES", (2, 4))
    monkeypatch.setattr(cost, "EXAMPLES", 2)
    monkeypatch.setattr(sys, "argv", [*asked.split(), str(tmp_path)])
    cost.main()
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [(row["varied"], row["name"]) for row in rows[::2]] == [
        ("model", "2x256"), ("model", "4x512"), ("corpus", "2"), ("corpus", "4"),
    ]  # fmt: skip
    (results,) = tmp_path.glob("*-attribution.json")
    assert json.loads(results.read_text())["attribution"] == rows
    monkeypatch.setattr(cost, "row_of", lambda *_: pytest.fail("nothing is timed again"))
    cost.main()
    row = rows[0]
    assert f"| grad_x_act | {row['ratio']:.3g} [{row['lowest']:.3g}, {row['highest']:.3g}]" in cost.tables(rows)
    ElementTree.fromstring((tmp_path / "cost.svg").read_text())


def test_an_exponent_is_that_of_a_power() -> None:
    cost = import_module("attribution_cost")
    rows = [{"neurons": n, "ratio": 3 * n**0.5} for n in (512, 2048, 6144)]
    assert cost.slope(rows, "neurons") == pytest.approx(0.5)


def points(advantage: Any, operators: tuple[str, ...] = ("ablate", "simnpo")) -> list[dict[str, Any]]:
    """Points of every operator, layer and count, whose chosen neurons are closer to gold by `advantage`."""
    found = []
    for operator in operators:
        for layer in ("all", "0", "1"):
            for count in (8, 32, 128):
                about = {"operator": operator, "layer": layer, "count": count}
                gain = advantage(operator, layer, count)
                found += [{**about, "chosen": True, "left": 5.0 - gain}, {**about, "chosen": False, "left": 5.0}]
    return found


def test_a_regression_finds_what_the_advantage_was_made_of() -> None:
    informs = import_module("informs_erasure")
    made = points(lambda o, layer, n: 1.0 + 0.4 * (o == "ablate") + 0.3 * (layer == "1") + 0.1 * np.log2(n / 32))
    found, r2 = informs.fitted(informs.advantages(made), "advantage", ["operator", "count", "layer"])
    assert r2 == pytest.approx(1) and found["mean"] == pytest.approx(1.3)
    assert found["operator ablate"] == pytest.approx(0.2) and found["operator simnpo"] == pytest.approx(-0.2)
    assert found["layer 1"] == pytest.approx(0.2) and found["layer all"] == pytest.approx(-0.1)
    assert found["each doubling of the count"] == pytest.approx(0.1)


def test_r_squared_is_that_of_a_fit_by_group_means() -> None:
    informs, noise = import_module("informs_erasure"), np.random.default_rng(0)
    made = points(lambda *_: float(noise.normal()))
    rows = informs.advantages(made)
    y = np.array([row["advantage"] for row in rows])
    means = {o: np.mean([r["advantage"] for r in rows if r["operator"] == o]) for o in ("ablate", "simnpo")}
    left = sum((r["advantage"] - means[r["operator"]]) ** 2 for r in rows)
    assert informs.fitted(rows, "advantage", ["operator"])[1] == pytest.approx(1 - left / ((y - y.mean()) ** 2).sum())


def test_what_being_chosen_adds_stands_last(tmp_path: Path) -> None:
    informs = import_module("informs_erasure")
    seeds = [points(lambda o, *_, by=by: by * (1 + (o == "ablate"))) for by in (0.99, 1.0, 1.01)]
    coefficients, added = informs.regressions(seeds)
    assert [name for name, _ in added] == ["+ operator", "+ count", "+ layer", "+ chosen"]
    assert max(added[2][1]) < 0.2 < min(added[3][1])
    text = informs.tables(seeds)
    assert "| mean | 1.500 ± 0.037 | chosen |" in text and "closer to gold with chosen neurons" in text
    assert "| operator ablate | 0.500 ± 0.012 | more |\n| operator simnpo | -0.500 ± 0.012 | less |" in text
    assert "operator, count and layer explain 1.00" in text
    less = [seeds[0], [row for row in seeds[1] if row["operator"] == "ablate"], seeds[2]]  # in one seed simnpo failed
    assert "; count and layer explain" in informs.tables(less)
    few = [[row for row in rows if (row["operator"], row["count"], row["layer"]) == ("ablate", 8, "0")]
           for rows in seeds]  # fmt: skip
    assert "; the mean explains 0.00" in informs.tables(few)
    svg = informs.picture(seeds)
    marks = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("circle")]
    assert len(marks) == len(coefficients) - 1 and "script" not in svg
    assert {node.get("fill") for node in marks} == {"white", marks[0].get("fill")}  # what is not told apart is hollow


def test_the_points_of_the_map_are_read_as_they_were_compared() -> None:
    informs, regime = import_module("informs_erasure"), import_module("regime_tables")

    def arm(kl: float) -> dict[str, Any]:
        return {"tuned": {"unseen": {"kl_gold": kl}}}

    arms = {
        f"{o}|{size}|{name}": arm(kl)
        for o in ("ablate", "ga")
        for size in ("0.02", "0.16")
        for name, kl in (("fisher", 2.0), ("relp", 2.5), ("random 0", 3.0), ("random 1", 5.0))
    }
    rows = informs.rows_of_map({**arms, "untouched": {}}, "whole people", 2048)
    gains = {(r["operator"], r["selection"]): r["advantage"] for r in informs.advantages(rows)}
    assert gains["ga", "relp"] == -regime.gains([arms], "ga", "0.02", "relp")[0] == 1.5
    assert informs.factors_of(rows) == ["operator", "count", "selection"]


def test_sets_lie_in_the_layers_that_their_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    informs, study = import_module("informs_erasure"), import_module("regime_map").source_of(bed(), 0)
    monkeypatch.setattr(informs, "COUNTS", (4,))
    monkeypatch.setattr(informs, "OPERATORS", ("ablate",))
    done: dict[str, Any] = {}
    keys = list(informs.run(study, done))
    assert keys == [f"ablate|{layer}|8|{kind}" for layer in ("all", "0", "1") for kind in ("chosen", "random")]
    assert not list(informs.run(study, done)) and len(informs.rows_of(done)) == 6
    scores = nf.scores.Scores(torch.arange(256.0).reshape(2, 128), "mine", "large", (0, 1))
    assert informs.best_of(scores, [1], 3).members == {(1, 127), (1, 126), (1, 125)}
    assert len(informs.best_of(scores, [0, 1], 8)) == 8
    assert done["ablate|all|8|chosen"] < done["ablate|all|8|random"]


def test_an_operator_that_one_seed_could_not_pair_is_left_out_of_all() -> None:
    informs = import_module("informs_erasure")
    seeds = [points(lambda o, *_: 1.0 + (o == "ablate")) for _ in range(2)]
    lost = [row for row in seeds[1] if row["operator"] == "ablate" or row["chosen"]]  # no random simnpo in this seed
    coefficients, _ = informs.regressions([seeds[0], lost])
    assert "operator simnpo" not in coefficients and coefficients["mean"] == pytest.approx([2.0, 2.0])
    with pytest.raises(nf.InputError, match="no pair of chosen and random neurons"):
        informs.regressions([seeds[0], []])
