"""What is installed is whole: wheel and source archive hold what they should, and import."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist), built from a copy of the tree."""
    import shutil

    source, out = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "build", "dist", ".*_cache", "neuronforget-demo*")
    shutil.copytree(ROOT, source, ignore=unwanted)
    call = "import setuptools.build_meta as b, sys; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"
    subprocess.run([sys.executable, "-c", call, str(out)], cwd=source, check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_both_packages_and_their_files(archives: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(archives[0]).namelist()
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")} == {
        "neuronforget",
        "neuronforget_kernels",
    }
    kinds = ("*.py", "*.jinja", "py.typed")
    expected = {p.relative_to(ROOT).as_posix() for kind in kinds for p in (ROOT / "neuronforget").rglob(kind)}
    assert "neuronforget/reporting/page.html.jinja" in expected and expected <= set(names)


def test_the_source_archive_holds_tests_docs_and_makefile(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"Makefile", "LICENSE", "README.md", "tests/test_package.py", "docs/concepts.md", ".ci/run"} <= names


def test_the_wheel_imports_from_elsewhere(archives: tuple[Path, Path], tmp_path: Path) -> None:
    zipfile.ZipFile(archives[0]).extractall(tmp_path / "site")
    check = "import neuronforget, neuronforget_kernels; print(neuronforget.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", check],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
