"""The analyses of weights and of shifts measure what they say: tried on the small testbed."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from beds import bed

import neuronforget as nf

FOLDER = Path(__file__).parents[1] / "analyses"
sys.path.append(str(FOLDER))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source() -> Any:
    return import_module("sources").Source.of(bed(), 0, measured=30, share=0.1)  # of 128 neurons, 12 are grafted


@pytest.fixture(scope="module")
def swept(source: Any) -> dict[str, Any]:
    sweep, patch = import_module("ga_rt_sweep"), pytest.MonkeyPatch()
    patch.setattr(sweep, "STEPS", 12)
    patch.setattr(sweep, "STRENGTHS", (0.5, 1.0))
    done: dict[str, Any] = {}
    start = source.lm.digest()
    first = list(sweep.run(source, done, weights=(0.0, 8.0)))
    assert first[0] == "references" and not list(sweep.run(source, done, weights=(0.0, 8.0)))
    assert source.lm.digest() == start
    patch.undo()
    return json.loads(json.dumps(done))


def test_a_sweep_has_ascent_alone_once_and_each_term_beside_it(swept: dict[str, Any]) -> None:
    places = ("found", "full", "random")
    terms = [f"{term}|{place}" for term in ("ascent|0", "retain|8", "refusal|8") for place in places]
    assert set(swept) == {"untouched", "gold", *terms}


def test_an_arm_is_the_training_that_its_name_says(source: Any, swept: dict[str, Any]) -> None:
    loss = partial(nf.losses.grad_diff, alpha=8.0)
    edit = nf.erase.finetune(source.lm, source.forget, source.retain, loss=loss, neurons=source.found, steps=12,
                             progress=False)  # fmt: skip
    results = nf.evaluate(source.lm, {"a": edit}, source.forget, source.corpora["retain"], gold=source.gold,
                          strengths=(), damage=None, progress=False)  # fmt: skip
    point = swept["retain|8|found"]["full"]
    for corpus, name in (("forget", "forget"), ("unseen", "forget unseen"), ("retain", "retain")):
        for metric in ("exact_match", "nll", "kl_gold"):
            assert point[corpus][metric] == pytest.approx(results.value("a", name, metric), abs=1e-5)


def test_a_heavier_retain_term_keeps_more_and_tuned_points_keep_the_damage(swept: dict[str, Any]) -> None:
    judging, start = import_module("judging"), swept["untouched"]["full"]
    kept = [swept[f"{name}|full"]["full"]["retain"]["nll"] for name in ("ascent|0", "retain|8")]
    assert kept[1] < kept[0]
    for name, arm in swept.items():
        assert arm["tuned"]["retain"]["nll"] <= start["retain"]["nll"] + judging.DAMAGE or name == "gold"
    bare = [
        {k: {"nll": v["nll"]} for k, v in point.items() if k not in ("strength", "refused")}
        for point in swept["ascent|0|full"]["dial"]
    ]
    best = judging.chosen_point(bare, {k: {"nll": start[k]["nll"]} for k in ("forget", "retain")})
    allowed = [p for p in bare if p["retain"]["nll"] <= start["retain"]["nll"] + judging.DAMAGE]
    assert best["forget"]["nll"] == max([start["forget"]["nll"], *(p["forget"]["nll"] for p in allowed)])


def test_the_sweep_s_tables_and_figure_show_the_figures(swept: dict[str, Any]) -> None:
    sweep, figure = import_module("ga_rt_sweep"), import_module("ga_rt_figure")
    text, point = sweep.tables([swept, swept]), swept["retain|8|found"]["full"]
    assert f"| retain | 8 | found | 1 | {point['forget']['exact_match']:.2f} ± 0.00 |" in text
    less = point_kl(swept, "found") - point_kl(swept, "random")
    assert f"{less:.2f} ± 0.00" in text
    svg = figure.picture([swept, swept], (0.0, 8.0))
    assert len(svg) < 100_000 and "script" not in svg and "href" not in svg
    marks = [node for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("circle")]
    across = [float(node.get("cy") or 0) for node in marks[1:3]]  # the first is the legend's
    shares = [swept[f"{name}|found"]["full"]["retain"]["exact_match"] for name in ("ascent|0", "retain|8")]
    assert across == pytest.approx([figure.HIGH * (1 - share) for share in shares], abs=0.06)
    failed = json.loads(json.dumps(swept)) | {"refusal|8|random": {"failed": "it diverged"}}
    assert "- refusal|8|random: it diverged" in sweep.tables([failed, swept])
    assert figure.picture([failed, swept], (0.0, 8.0)).count("<polygon") > 0


def test_refusing_is_counted_by_the_refusal_s_own_words(source: Any, swept: dict[str, Any]) -> None:
    sweep = import_module("ga_rt_sweep")
    right = np.mean([e.answer == source.refusals[0] for e in source.corpora["retain"]])
    known = sweep.refused(source, source.lm)
    assert known["forget"] < 0.1 and known["retain"] == pytest.approx(right, abs=0.05)
    assert swept["untouched"]["full"]["refused"] == known
    loss = nf.losses.rt
    edit = nf.erase.finetune(source.lm, source.forget, loss=loss, preferred=source.refusals, steps=40, progress=False)
    with edit.on(source.lm) as edited:
        assert sweep.refused(source, edited)["forget"] > 0.8


def point_kl(swept: dict[str, Any], place: str) -> float:
    return float(swept[f"retain|8|{place}"]["tuned"]["unseen"]["kl_gold"])


@pytest.fixture(scope="module")
def shifted(source: Any) -> dict[str, Any]:
    shift, done = import_module("activation_shift"), {}
    patch = pytest.MonkeyPatch()
    patch.setattr(shift, "STEPS", 12)
    patch.setattr(shift, "STRENGTHS", (1.0,))
    assert [*shift.run(source, done, only=("ablate", "npo"))][:2] == ["gold", "ablate@found"]
    patch.undo()
    return json.loads(json.dumps(done))


def test_what_neurons_write_is_compared_token_by_token(source: Any) -> None:
    shift = import_module("activation_shift")
    edit = nf.erase.finetune(source.lm, source.forget, source.retain, steps=3, progress=False)
    shown = source.forget.head(3)
    values, total, count = shift.written_shift(source.lm, edit, shown), 0.0, 0
    site = source.lm.sites[-1]
    for example in shown:  # one at a time, the last layer's neuron 5
        one = nf.Corpus((example,), "one")
        seen = []
        for on in (False, True):
            with edit.scaled(float(on)).on(source.lm) as lm:
                seen.append(written(lm, one, site.layer, 5))
        total += float(((seen[1] - seen[0]) ** 2).sum())
        count += len(seen[0])
    assert values[-1, 5] == pytest.approx((total / count) ** 0.5, rel=1e-4)
    assert np.allclose(shift.written_shift(source.lm, edit.scaled(0.0), shown), 0)


def written(lm: nf.LM, corpus: nf.Corpus, layer: int, neuron: int) -> np.ndarray:
    from neuronforget.corpora import batches, encode

    (batch,) = batches(encode(corpus, lm.tokenizer, lm.max_length), 1, lm.pad_id, lm.device)
    acts = nf.taps.TorchHooks(lm)(batch.inputs).acts[layer]
    site = next(site for site in lm.sites if site.layer == layer)
    weight = lm.parameters[site.write.name].detach()
    row = weight[neuron] if site.write.dim == 0 else weight[:, neuron]
    found = acts.reshape(-1, acts.shape[-1])[:, neuron].detach()[:, None] * row
    return found.double().numpy()


def test_ablation_silences_the_found_neurons_themselves(source: Any, shifted: dict[str, Any]) -> None:
    figures = shifted["ablate@found"]["full"]["moved"]
    assert figures["shift forget, in found"] > 0.3 > shifted["ablate@random"]["full"]["moved"]["shift forget, in found"]
    contributions = import_module("neuronforget.auditing.neurons").contributions(source.lm, source.forget)
    mine = source.found.mask().numpy()
    held = np.clip(contributions, 0, None)[mine].sum()
    assert figures["taken, in found"] * figures["taken"] == pytest.approx(held, rel=1e-4)
    assert figures["before"] == pytest.approx(contributions.sum(), rel=1e-4)
    half = import_module("activation_shift")._half
    assert half(np.array([[1.0, 5.0], [2.0, 2.0]])) == 1 and half(np.zeros((2, 2))) == 0


def test_the_table_and_the_figure_of_shifts_show_the_figures(shifted: dict[str, Any]) -> None:
    shift, figure = import_module("activation_shift"), import_module("shift_figure")
    text, made = shift.tables([shifted, shifted]), shifted["npo@full"]["full"]["moved"]
    share = made["taken, in found"]
    mine = shifted["npo@found"]["full"]["moved"]
    assert "suppressing, in edited" not in made and mine["suppressing, in edited"] == mine["suppressing, in found"] > 0
    assert f"| {made['taken']:.2f} ± 0.00 | {share:.2f} ± 0.00 | {made['half of it']:.0f} ± 0 |" in text
    layer, neuron, before, after, _ = made["neurons"]["lost most"][0]
    assert f"| npo@full | lost most | {layer}.{neuron} | {before:.2f} | {after:.2f} |" in text and before > after
    svg = figure.picture([shifted, shifted])
    tree = ElementTree.fromstring(svg)
    words = {"".join(node.itertext()) for node in tree.iter() if node.tag.endswith("text")}
    assert {"npo@full", "ablate@found", "gold"} <= words and len(svg) < 100_000
