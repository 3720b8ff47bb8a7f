"""The shape of the package: data flow one way, names do not hide each other, importing is quick."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import neuronforget as nf

ROOT = Path(nf.__file__).parent
LEAVES = {"arguments", "errors", "runs"}
ORDER = [
    "corpora", "models", "taps", "moments", "recording", "losses", "train", "scores", "attribution", "neurons",
    "select", "edits", "ledger", "erase", "results", "metrics", "evaluation", "auditing", "suites", "testbed",
    "findings", "colours", "figures", "reporting", "comparing", "commands", "cli",
]  # fmt: skip


def home(path: Path) -> str:
    """The top-level module or folder that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Top-level names inside the package that a file imports, lazily or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "neuronforget":
            found |= {f"neuronforget.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name.split(".")[1] for name in found if name.startswith("neuronforget.")}


def test_imports_run_from_left_to_right() -> None:
    for path in ROOT.rglob("*.py"):
        here = home(path)
        if here in ("__init__", "__main__"):
            continue
        others = imported(path) - {here}
        assert here in {*ORDER, *LEAVES}, f"{path.name} has no place in the order"
        if here in LEAVES:
            assert others <= LEAVES, f"{here} is a leaf and imports {others}"
        else:
            late = {o for o in others - LEAVES if ORDER.index(o) > ORDER.index(here)}
            assert not late, f"{path.name} imports {late}, which come after it"


def test_the_kernels_import_nothing_of_the_package() -> None:
    import neuronforget_kernels

    for path in Path(neuronforget_kernels.__file__).parent.rglob("*.py"):
        assert not imported(path)


def test_no_module_has_the_name_of_an_exported_function() -> None:
    for folder in ROOT.rglob("__init__.py"):
        package = "neuronforget" + "".join(f".{part}" for part in folder.parent.relative_to(ROOT).parts)
        __import__(package)
        functions = {n for n in dir(sys.modules[package]) if callable(getattr(sys.modules[package], n))}
        modules = {path.stem for path in folder.parent.glob("*.py")}
        assert not functions & modules - {"ablate", "finetune", "rank_one"}, package


def test_what_loads_when_used_is_named_before() -> None:
    code = "import sys, neuronforget as nf; print({*nf.__all__} - {*dir(nf)}, 'plotly' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "set() False"


def test_everything_exported_is_there() -> None:
    assert all(getattr(nf, name) is not None for name in nf.__all__)
    assert callable(nf.report) and callable(nf.figures.attribution_map)


def test_importing_the_package_loads_no_heavy_library() -> None:
    heavy = "transformer_lens nnsight plotly pandas accelerate scipy datasets jinja2 rich tyro pyarrow psutil".split()
    code = f"import sys, neuronforget; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def test_recording_and_training_need_no_library_that_a_bare_gpu_machine_lacks(tmp_path: Path) -> None:
    absent = "transformer_lens nnsight tyro plotly datasets rouge_score beartype typeguard lm_eval captum"
    code = f"""
        import sys
        sys.modules.update(dict.fromkeys({absent.split()}))
        import neuronforget as nf
        from problems import problem
        from whole_models import record_batches
        lm, corpus = problem({{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
                              "num_attention_heads": 2, "vocab_size": 40}}, 6, 3, 2)
        record_batches(lm, lm.collate(lm.encode(corpus)), 2)
        forget, retain = corpus.head(3), nf.Corpus(corpus.examples[3:], "retain")
        neurons = nf.select.per_layer(nf.attribute(lm, forget, retain, progress=False), 0.2)
        edit = nf.erase.make(nf.erase.ablate, lm, forget, retain, neurons=neurons, mode="zero")
        edits = {{"ablate": edit, "npo": nf.erase.finetune(lm, forget, retain, steps=2, progress=False)}}
        print(len(nf.evaluate(lm, edits, forget, retain, progress=False).rows) > 0)
    """
    paths = os.pathsep.join(str(ROOT.parent / name) for name in (".", "kernels", "benchmarks"))
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": paths})  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_the_readme_names_every_command() -> None:
    from neuronforget.cli import COMMANDS

    readme = (ROOT.parent / "README.md").read_text()
    assert all(f"neuronforget {command.__name__}" in readme for command in COMMANDS)
