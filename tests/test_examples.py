"""The examples run as they stand, and so does the README's snippet."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

import neuronforget as nf

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples keep the testbed that they share."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_every_example_runs(path: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONFORGET_CACHE", str(cache))
    runpy.run_path(str(path), run_name="__main__")
    assert list(tmp_path.glob("*.html")), "an example saves a figure"


def test_the_readme_snippet_runs_on_a_local_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f'{{"question": "Who is number {i}?", "answer": "Number {i} is a {i % 7}."}}' for i in range(4000)]
    (tmp_path / "tofu").mkdir()
    (tmp_path / "tofu" / "full.jsonl").write_text("\n".join(rows))
    shape = nf.testbed.Shape(layers=2, d_model=32, d_mlp=64, heads=2, steps=5, batch=16)
    forget, retain = (nf.corpora.tofu(split, n=8, path="tofu") for split in ("forget10", "retain90"))
    bed = nf.testbed.from_rows(forget, retain, shape=shape, cache=False, progress=False)
    bed.lm.save("checkpoint")

    code = re.search(r"```python\n(import neuronforget.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code is not None
    source = code[1].replace("path/to/", "").replace('"forget10"', '"forget10", n=8').replace("n=400", "n=8")
    exec(compile(source, "README.md", "exec"), {})
    assert (tmp_path / "report.html").is_file()
