"""The examples run as they stand, the notebooks are their scripts, and the README's code runs."""

from __future__ import annotations

import difflib
import json
import re
import runpy
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import beds
import pytest
from accelerate import PartialState
from launching import launch

import neuronforget as nf

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "notebooks")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples keep the testbed that they share, which is that of the other tests."""
    beds.bed()
    return shutil.copytree(beds.shelf, tmp_path_factory.mktemp("examples") / "cache")


@pytest.fixture
def here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONFORGET_CACHE", str(cache))
    return tmp_path


def run(name: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """Run an example; return its names."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")


NUMBER = re.compile(r"[-+]?\d[\d.,]*")


def bare(text: str) -> list[str]:
    """The words of a text, without its numbers, which differ a little from machine to machine."""
    return NUMBER.sub("", text).split()


def numbers(line: str) -> list[float]:
    return [float(found.rstrip(".,").replace(",", "")) for found in NUMBER.findall(line)]


def differences(shown: str, now: str, *, same_model: bool = True) -> list[str]:
    """What a notebook shows otherwise than its script prints, beyond what machines differ in.

    Words are nine tenths alike, verdicts equal, and, of the same model, numbers of lines of the same words within 5% or
    0.05.
    """
    found = []
    if difflib.SequenceMatcher(None, bare(shown), bare(now), False).ratio() <= 0.9:
        found.append("other words")
    old, new = shown.splitlines(), now.splitlines()
    verdicts = [[line for line in lines if line.startswith("Verdict")] for lines in (old, new)]
    if verdicts[0] != verdicts[1]:
        found.append(f"verdicts {verdicts[0]}, now {verdicts[1]}")
    if not same_model:
        return found
    same = difflib.SequenceMatcher(None, [str(bare(line)) for line in old], [str(bare(line)) for line in new], False)
    for i, j, size in same.get_matching_blocks():
        for before, after in zip(old[i : i + size], new[j : j + size], strict=True):
            if numbers(before) != pytest.approx(numbers(after), rel=0.05, abs=0.05):
                found.append(f"{before!r}, now {after!r}")
    return found


def printed(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [out for cell in cells for out in cell.get("outputs", []) if out["output_type"] == "stream"]
    return "".join("".join(out["text"]) for out in outputs)


FOLDERS = ("large_model", "export_to_hub")  # what these leave has tests of its own


WHOLE = ("audit_an_edit", "compare_methods")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(path.stem, marks=[pytest.mark.slow] if path.stem in WHOLE else [])
        for path in SCRIPTS
        if path.stem not in FOLDERS
    ],
)
def test_every_example_runs_and_its_notebook_shows_what_it_prints(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run(name, monkeypatch)
    assert list(here.glob("*.html")), "an example saves a figure"
    notebook = ROOT / "examples" / f"{name}.ipynb"
    if notebook in NOTEBOOKS:
        same = json.loads(notebook.read_text(encoding="utf-8"))["metadata"]["model"] == names["lm"].digest()
        if not same:
            warnings.warn(f"{notebook.name}: this processor trains another model: no numbers compared", stacklevel=1)
        found = differences(printed(notebook), capsys.readouterr().out, same_model=same)
        assert not found, f"{notebook.name} no longer shows what its script prints: make notebooks ({found})"


@pytest.mark.parametrize(
    ("name", "right", "wrong", "small"),
    [
        ("audit_an_edit", "Verdict: suppressed", "Verdict: hidden", "0.982"),
        ("audit_an_edit", "the untouched model 3.00", "the untouched model 2.00", "0.982"),
        ("audit_an_edit", "(choice 0.042", "(choice 0.142", "0.982"),
        ("erase_people", "0.583", "0.783", "0.969"),
        ("erase_people", "4992 values", "1664 values", "0.969"),
    ],
)
def test_a_notebook_of_wrong_numbers_or_another_verdict_is_found(name: str, right: str, wrong: str, small: str) -> None:
    text = printed(ROOT / "examples" / f"{name}.ipynb")
    assert right in text and small in text and not differences(text, text)
    assert differences(text.replace(right, wrong, 1), text)
    assert not differences(text.replace(small, f"{small[:-1]}{int(small[-1]) - 1}"), text)
    of_another = differences(text.replace(right, wrong, 1), text, same_model=False)
    assert bool(of_another) is right.startswith("Verdict")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_run_from_top_to_bottom(notebook: Path) -> None:
    cells_of = runpy.run_path(str(ROOT / "examples" / "notebooks.py"))["cells_of"]
    text = notebook.read_text(encoding="utf-8")
    made, has = cells_of(notebook.stem), json.loads(text)
    assert len(has["metadata"].pop("model")) == 16 and has["metadata"] == made.metadata and len(text) < 500_000
    assert [(c["cell_type"], "".join(c["source"]), c["metadata"]) for c in has["cells"]] == [
        (c.cell_type, c.source, c.metadata) for c in made.cells
    ], "make notebooks"
    code = [cell for cell in has["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [out for cell in code for out in cell["outputs"]]
    assert any("image/png" in out.get("data", {}) for out in outputs), "no picture that a forge shows"
    assert all(out["output_type"] in ("stream", "display_data") and out.get("name") != "stderr" for out in outputs)
    assert not re.search(r"/home/|/root/|/tmp/|site-packages", text)


def test_the_examples_page_has_every_example() -> None:
    listed = set(re.findall(r"\]\(([\w.]+)\)", (ROOT / "examples" / "README.md").read_text(encoding="utf-8")))
    assert {path.name for path in [*SCRIPTS, *NOTEBOOKS]} <= listed


@pytest.mark.slow
def test_a_launch_finds_the_neurons_of_one_process_and_trains_over_both(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("large_model", monkeypatch, "--out", "one", "--steps", "2")
    PartialState._reset_state()  # this process goes on to other tests
    alone = capsys.readouterr().out
    both = launch(here, ROOT / "examples" / "large_model.py", "--out", "two", "--steps", "2")
    assert "1 process(es)" in alone and "2 process(es)" in both
    one, two = (nf.Neurons.load(here / out / "neurons.json") for out in ("one", "two"))
    assert len(one & two) >= 0.9 * len(one)  # bfloat16, in batches of other examples
    for name, spread in (("npo-on-neurons", False), ("npo", True)):
        first, second = (nf.Edit.load(here / out / f"{name}.safetensors") for out in ("one", "two"))
        assert (first.info["processes"], second.info["processes"]) == (1, 2)
        assert second.info["sharded"] is spread and second.summary()["relative"] > 0
    assert (here / "two" / "map.html").is_file() and not list((here / "two").rglob("*.pt"))


def test_the_exported_folder_is_uploaded_if_asked_and_the_hub_reads_its_card(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, repo_id: str, **settings: Any) -> None:
            calls.append((repo_id, settings["private"]))

        def upload_folder(self, *, folder_path: Path, repo_id: str, **_: Any) -> None:
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    run("export_to_hub", monkeypatch, "--licence", "mit")
    assert not calls and "nothing was uploaded" in (text := capsys.readouterr().out)
    files = sorted(path.name for path in (here / "edited-model").iterdir())
    assert all(name in text for name in files)
    data = huggingface_hub.ModelCard.load(here / "edited-model" / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "transformers", "text-generation")
    assert {"unlearning", "neuronforget"} <= set(data.tags)

    run("export_to_hub", monkeypatch, "--out", "again", "--push", "owner/name")
    assert calls == [("owner/name", True), ("owner/name", files)]


def test_the_code_of_the_readme_runs_on_a_local_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f'{{"question": "Who is number {i}?", "answer": "Number {i} is a {i % 7}."}}' for i in range(4000)]
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu" / "full.jsonl").write_text("\n".join(rows))
    shape = nf.testbed.Shape(layers=2, d_model=32, d_mlp=64, heads=2, steps=5, batch=16)
    forget, retain = (nf.corpora.tofu(split, n=8, path="tofu") for split in ("forget10", "retain90"))
    bed = nf.testbed.from_rows(forget, retain, shape=shape, cache=False, progress=False)
    bed.lm.save("checkpoint")

    (tmp_path / "forget.jsonl").write_text('{"prompt": "Who is number 3?", "answer": "Number 3 is a 3."}')
    code, own = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    source = code.replace("path/to/", "").replace('"forget10"', '"forget10", n=8').replace("n=400", "n=8")
    source = source.replace("loss=nf.losses.npo", "loss=nf.losses.npo, steps=5")
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    assert (tmp_path / "report.html").is_file()
    exec(compile(own, "README.md", "exec"), names)
    assert names["scores"].name == "fisher" and len(names["forget"]) == 1
