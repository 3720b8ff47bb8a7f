"""Which models can be read: the benchmark tells read, refused and wrong apart, and the page names what it found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import architectures
import pytest
import torch

import neuronforget as nf

ROOT = Path(__file__).resolve().parent.parent
TRIED = {"llama": "read", "gpt2": "read", "mixtral": "read", "qwen2_moe": "read", "mamba": "refused",
         "fuyu": "not built"}  # fmt: skip


def test_a_model_is_read_refused_or_not_built() -> None:
    found = {row["model"]: row for row in architectures.rows(list(TRIED))}
    assert {name: row["outcome"] for name, row in found.items()} == TRIED
    assert found["llama"]["output projection"] == "model.layers.0.mlp.down_proj"
    assert (found["gpt2"]["layers"], found["gpt2"]["neurons"]) == (2, 40)
    assert found["mixtral"]["output projection"] == "model.layers.0.mlp.experts.down"
    assert [found[kind].get("experts", "") for kind in ("llama", "mixtral", "qwen2_moe")] == ["", 2, 2]
    assert [found[kind]["shared"] for kind in ("llama", "mixtral", "qwen2_moe")] == ["", "", 2]
    assert "no MLP that can be read" in found["mamba"]["why"] and "kind of its own" in found["fuyu"]["why"]


def test_neurons_that_are_not_the_projection_s_inputs_are_called_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = nf.erase.ablate
    model = architectures.built("llama")
    monkeypatch.setattr(nf.erase, "ablate", lambda lm, neurons: honest(lm, neurons.random_like(1)))
    assert architectures.tried(model)["why"] == "the edit is not the zeroed neurons"
    monkeypatch.undo()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # type: ignore[operator]
    assert architectures.tried(model)["why"] == "the edit changes nothing"


def test_the_page_names_what_the_committed_results_name() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("*-architectures.json"))
    rows = json.loads(newest.read_text(encoding="utf-8"))["models"]
    kinds = {
        o: [row["model"] for row in rows if row["outcome"] == o] for o in ("wrong", "read", "refused", "not built")
    }
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    tried, readme = len(rows) - len(kinds["not built"]), (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(kinds['read'])} of the {tried} architectures in transformers" in readme
    assert f"**Read: {len(kinds['read'])} of the {tried} that could be built**, none of them wrongly" in page
    assert not kinds["wrong"] and f"before any work: {len(kinds['refused'])}.**" in page
    assert f"**Not tried: {len(kinds['not built'])}**" in page
    assert (
        f"| read | {len(kinds['read'])} of {tried} |" in page and f"| not tried | {len(kinds['not built'])} |" in page
    )
    lists = [re.findall(r"`([\w-]+)`", part) for part in page.split("\n\n") if part.startswith("`") and "," in part]
    assert lists[0] == kinds["read"] and lists[-1] == kinds["not built"]
    assert f"{len(lists[1] + lists[2])} of the models that are read have routed experts: {len(lists[1])} have" in page
    assert set(kinds["refused"]) <= set(re.findall(r"`([\w-]+)`", page))
    shared = [row for row in rows if row["shared"] != ""]
    assert f"In {sum(row['experts'] != '' for row in shared)} of these models every token also passes an MLP" in page
    assert [row["model"] for row in shared if row["outcome"] == "refused"] == ["llama4_text"]
