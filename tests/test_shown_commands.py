"""The commands that the README and the how-to pages show run as they stand, in their order, on a small model."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from commanding import run
from test_docs import ROOT, SHAPE, name_of, shown_commands

import neuronforget as nf

HOWTO = ROOT / "docs" / "howto"
SHOWN = [ROOT / "README.md", *(HOWTO / f"{name}.md" for name in ("find", "erase", "compare", "audit", "own", "suite"))]
#: Commands that other tests run: benchmarks on the published rows, and what needs lm-eval.
ELSEWHERE = ("evaluate tofu", "evaluate rwku", "evaluate utility")
#: What a command says, and the test has otherwise: full trainings take minutes.
BRIEF = {"compare ": "compare --steps 1 ", "--method finetune": "--method finetune --steps 2", "--steps 100 ": ""}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages take as there: a model, its twin, rows, neurons, edits, modules of one's own."""
    folder = tmp_path_factory.mktemp("shown")
    bed = nf.testbed.people("ordinary", people=8, forget_people=2, shape=SHAPE, cache=False, progress=False)
    bed.lm.save(folder / "CHECKPOINT")
    bed.gold.save(folder / "TWIN")
    rows = {"forget": bed.forget.examples, "a": bed.forget.examples[:4], "retain": bed.retain.sample(40, 0).examples}
    rows |= {"members": rows["retain"][:20], "others": rows["forget"]}
    for name, examples in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(asdict(e)) for e in examples), encoding="utf-8")
    layers = tuple(range(SHAPE.layers))
    neurons = nf.Neurons(frozenset((layer, j) for layer in layers for j in range(2)), layers, SHAPE.d_mlp)
    neurons.save(folder / "neurons.json")
    for name in ("ablate", "npo", "edit"):
        nf.erase.ablate(bed.lm, neurons).save(folder / f"{name}.safetensors")
    return folder


def commands() -> list[tuple[Path, str]]:
    found = [(page, line) for page in SHOWN for line in shown_commands(page) if line.startswith("neuronforget ")]
    return [(page, line) for page, line in found if not any(f"neuronforget {other}" in line for other in ELSEWHERE)]


@pytest.mark.slow
@pytest.mark.usefixtures("brief_relearning")
@pytest.mark.parametrize("page", SHOWN, ids=name_of)
def test_every_command_shown_runs(
    page: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    shutil.copytree(made, here)
    for name in ("own_score", "own_loss", "own_operator", "own_metric"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    own(here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("NEURONFORGET_CACHE", str(tmp_path / "cache"))
    lines = [line for where, line in commands() if where == page]
    outputs = {out for line in lines if (out := option(line, "--out"))}
    for output in outputs & {path.name for path in here.iterdir()}:  # no file is written over
        (here / output).unlink()
    for line in lines:
        for said, has in BRIEF.items():
            line = line.replace(said, has)
        status = run(monkeypatch, *shlex.split(line)[1:])
        assert status == 0, f"{line}: {capsys.readouterr().err[-500:]}"
    assert lines and all((here / output).exists() for output in outputs)


def option(line: str, name: str) -> str:
    words = shlex.split(line)
    return words[words.index(name) + 1] if name in words else ""


def own(folder: Path) -> None:
    """The page's own functions, each in the module that its commands name."""
    blocks = (HOWTO / "own.md").read_text(encoding="utf-8").split("```python\n")[1:]
    for module, name in (("own_score", "gap_x_grad"), ("own_loss", "until"), ("own_operator", "share")):
        (code,) = (block.split("```")[0] for block in blocks if f"def {name}(" in block)
        kept = [line for line in code.splitlines() if not line.startswith(("scores =", "edit ="))]
        (folder / f"{module}.py").write_text("import neuronforget as nf\n" + "\n".join(kept), encoding="utf-8")
    shutil.copy(ROOT / "examples" / "own_metric.py", folder)
