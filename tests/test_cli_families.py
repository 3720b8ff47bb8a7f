"""Every operator and every loss from the command line, on four kinds of architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import build
from test_cli import run
from test_operators import FAMILIES, QUICK

import neuronforget as nf
from neuronforget.corpora import Corpus
from neuronforget.edits import Edit
from neuronforget.erase import OPERATORS
from neuronforget.erase.catalogue import takes
from neuronforget.models import LM

#: What random weights need besides; guards are shown as many examples as there are.
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {k: v for k, v in settings.items() if k != "progress"} for name, settings in QUICK.items()},
    "task_vector": {"steps": 2},
    "second_order_update": {"tolerance": 0.9},
    "llm_eraser": {"tolerance": 0.99, "damping": 10.0, "steps": 50},
    "o3": {"steps": 2, "lora": 2},
    "icu": {"shown": 1, "kept": 1},
    "finetune": {},
}
LOSSES = sorted(
    {name for name in nf.losses.__all__ if name.islower()} - {"asks_for", "identity", "name_of", "names", "settings_of"}
)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, corpus: Corpus
) -> Path:
    """A model of random weights with an adapter merged in, two corpora, chosen neurons."""
    path = tmp_path_factory.mktemp(request.param)
    longer = {"n_positions" if request.param == "gpt2" else "max_position_embeddings": 256}  # guards add examples
    lm = LM(build(request.param, vocab_size=len(tokenizer), **longer), tokenizer)
    asked = [example for example in corpus.examples if example.prompt]
    for name, rows in (("forget", asked[:3]), ("retain", asked[3:])):
        lines = [json.dumps({"prompt": e.prompt, "answer": e.answer, "subject": e.prompt}) for e in rows]
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    adapter = nf.erase.learn_adapter(lm, corpus, lora=2, steps=2, progress=False)
    adapter.save(path / "adapter")
    adapter.edit(lm).apply(lm)
    lm.save(path / "model")
    layers = tuple(site.layer for site in lm.sites)
    nf.Neurons(frozenset((layer, j) for layer in layers for j in range(3, 27)), layers, lm.shape[1]).save(
        path / "neurons.json"
    )
    (path / "refusals.txt").write_text("unknown\nnobody knows\n")
    return path


def words(folder: Path, method: str, out: Path) -> list[object]:
    found: list[object] = ["--model", folder / "model", "--method", method, "--out", out]
    for name in ("forget", "retain"):
        found += [f"--{name}", folder / f"{name}.jsonl"]
    return [*found, *(["--neurons", folder / "neurons.json"] if takes(OPERATORS[method], "neurons") else [])]


@pytest.mark.slow
def test_every_operator_runs_on_every_family(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for method in sorted(OPERATORS):
        out = tmp_path / f"{method}.safetensors"
        settings = {**SETTINGS.get(method, {}), **({"adapter": folder / "adapter"} if method == "llm_eraser" else {})}
        extra: list[object] = ["--steps", 2] if method == "finetune" else []
        extra += ["--set", *(f"{k}={v}" for k, v in settings.items())] if settings else []
        status = run(monkeypatch, "erase", *words(folder, method, out), *extra)
        assert status == 0, (method, capfd.readouterr().err[-300:])
        edit = Edit.load(out)
        assert edit.changes or edit.info["scope"] == "guard", method


@pytest.mark.slow
def test_every_loss_runs_on_every_family(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reinforced = tmp_path / "learn.safetensors"
    for loss in ["learn", *(name for name in LOSSES if name != "learn")]:
        out = tmp_path / f"{loss}.safetensors"
        extra: list[object] = ["--loss", loss, "--steps", 2, "--refusals", folder / "refusals.txt"]
        extra += ["--reinforced", reinforced] if loss == "whp" else []
        status = run(monkeypatch, "erase", *words(folder, "finetune", out), *extra)
        assert status == 0, (loss, capfd.readouterr().err[-300:])
        assert Edit.load(out).changes, loss
