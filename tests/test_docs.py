"""The documentation keeps its word: links lead somewhere, every page is named in the README, every code block runs."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import neuronforget as nf
from neuronforget.testbed import Shape

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "analyses").glob("*.md")])
SHAPE = Shape(layers=6, d_model=16, d_mlp=32, heads=2, steps=4, graft_steps=4, planted=4, batch=8)
#: Page -> what its code says and the test has otherwise.
INSTEAD = {
    "guards.md": {"lm.model.generate(...)": "__import__('neuronforget.generation').generation.generate(lm, forget)"},
    "influence.md": {
        "head(200)": "head(9)",
        'lm, forget, retain, "adapter"': 'lm, forget, retain.head(9), "adapter"',
        "damping=0.1": "damping=1.0, tolerance=0.9",
        "shards=4": "shards=4, train=quick",
    },
    "operators.md": {"layers=[3, 4, 5],": "layers=[3, 4, 5], cut=0.9,"},
    "training.md": {"2: 1e-3": "2: 1e-3, 3: 0.0, 4: 0.0, 5: 0.0"},
    "suites.md": {'path="FOLDER"': 'path="FOLDER", n=2, protocol=short, progress=False'},
}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the forge makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not re.match(r"https?:|mailto:", link)):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        others = [p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md") if p != page]
        assert f"docs/{page.name}" in text or any(f"]({page.name}" in other for other in others), page.name


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    """What the pages' code takes as there: a small model of six layers, its twin, two corpora, neurons, an edit."""
    bed = nf.testbed.people("ordinary", people=8, forget_people=2, shape=SHAPE, cache=False, progress=False)
    lm, forget, retain = bed.lm, bed.forget, bed.retain
    neurons = nf.select.per_layer(nf.attribute(lm, forget, retain, progress=False), 0.1)
    edit = nf.erase.ablate(lm, neurons)
    people = sorted({str(example.subject) for example in forget})
    a, b = (nf.Corpus(tuple(e for e in forget if e.subject == name), name) for name in people)
    results = nf.evaluate(lm, {"a": edit}, forget, retain, strengths=(), damage=None, progress=False)
    return {
        "nf": nf, "partial": partial,
        "quick": partial(nf.erase.finetune, loss=nf.losses.learn, steps=2, progress=False),
        "lm": lm, "twin": bed.gold, "retain_only": bed.gold, "start": lm,
        "forget": forget, "retain": retain,
        "corpus": nf.Corpus(forget.examples + retain.examples, "all"), "neurons": neurons, "edit": edit, "a": a, "b": b,
        "results": results,
    }  # fmt: skip


CODED = [page for page in PAGES if page.parent.name == "docs" and "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", CODED, ids=lambda path: path.name)
def test_every_code_block_runs(
    page: Path, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names, digest = dict(given), given["lm"].digest()
    if page.name == "influence.md":
        nf.erase.learn_adapter(names["lm"], names["forget"], steps=2, progress=False).save("adapter")
        names["start"] = nf.LM(nf.testbed.training.shared_twin_copy(given["lm"].model), given["lm"].tokenizer)
    if page.name == "suites.md":
        names |= {"short": tofu_rows(tmp_path / "FOLDER")}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for said, has in INSTEAD.get(page.name, {}).items():
            code = code.replace(said, has)
        exec(compile(code, page.name, "exec"), names)
    if page.name != "ledger.md":  # whose last state is on the model
        assert given["lm"].digest() == digest
    else:
        names["ledger"].undo_all(given["lm"])


def tofu_rows(folder: Path) -> Any:
    """Two rows of each of TOFU's sets, and how to ask them in few tokens."""
    from neuronforget.generation import Decoding
    from neuronforget.suites.tofu_questions import Protocol

    folder.mkdir()
    for name in ("retain", "forget10", "real_authors", "world_facts"):
        rows = [
            {"question": f"Who {i}?", "answer": "Oslo", "paraphrased_answer": "in Oslo", "paraphrased_question": "Who?",
             "perturbed_answer": ["Velm", "Bergen"], "option1": "Oslo", "option2": "Velm"}
            for i in range(2)
        ]  # fmt: skip
        (folder / f"{name}_perturbed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Protocol(decoding=Decoding(2, ()))
