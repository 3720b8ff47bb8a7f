"""The model card of an exported checkpoint, as the Hub reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import build
from huggingface_hub import ModelCard, ModelCardData

import neuronforget as nf
from neuronforget.models import LM
from neuronforget.neurons import Neurons


def exported(name: str, folder: Path) -> ModelCard:
    """The card of a small model that is said to come from `name`."""
    lm = LM(build("llama"))
    lm.model.config._name_or_path = name
    nf.erase.ablate(lm, Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1])).export(lm, folder)
    return ModelCard.load(folder / "README.md")


def test_a_card_names_library_task_tags_and_a_base_model_of_the_hub(tmp_path: Path) -> None:
    data = exported("owner/name", tmp_path / "out").data
    assert (data.library_name, data.pipeline_tag, data.base_model) == ("transformers", "text-generation", "owner/name")
    assert set(data.tags) == {"unlearning", "neuronforget"} and data.license is None


def test_a_card_has_the_measured_rows(tmp_path: Path) -> None:
    lm = LM(build("llama"))
    row = {"edit": "ablate", "corpus": "forget", "metric": "exact_match", "point": "full"}
    rows = (row | {"value": 0.25, "low": 0.125, "high": 0.5, "n": 8},)
    edit = nf.erase.ablate(lm, Neurons(frozenset({(0, 1)}), (0, 1), lm.shape[1]))
    edit.export(lm, tmp_path / "out", measured=rows)
    assert "0.25" in ModelCard.load(tmp_path / "out" / "README.md").text


@pytest.mark.parametrize("page", [None, "# A model\n", "---\nlicense: [\n---\n", "---\n1: mit\n---\n"])
def test_a_base_without_a_readable_card_gives_no_licence(page: str | None, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    if page is not None:
        (tmp_path / "base" / "README.md").write_text(page)
    data = exported(str(tmp_path / "base"), tmp_path / "out").data
    assert data.license is None and data.base_model is None


@pytest.mark.parametrize("name", ["Edited model (v2)", "runs/models/first"])
def test_a_name_that_the_hub_cannot_have_gives_no_base_and_no_licence(name: str, tmp_path: Path) -> None:
    card = exported(name, tmp_path / "out")
    assert card.data.license is None and card.data.base_model is None and f"`{name}`" in card.text


def test_licence_and_languages_of_the_base_go_on_to_the_edited_model(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    stated = {"license": "other", "license_name": "mine", "license_link": "LICENSE", "language": ["de", "no"]}
    card = ModelCard(f"---\n{ModelCardData(**stated, tags=['chat'], datasets=['theirs'])}\n---\n# A model\n")
    card.save(tmp_path / "base" / "README.md")
    found = exported(str(tmp_path / "base"), tmp_path / "out").data.to_dict()
    assert {key: found[key] for key in stated} == stated
    assert "datasets" not in found and "chat" not in found["tags"]
