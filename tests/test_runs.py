"""A folder or a file is written whole, and an earlier one is not lost to an interruption."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from neuronforget.errors import InputError
from neuronforget.runs import whole_folder


@pytest.mark.parametrize("cut", ["the old one is out of the way", "the new one is put in", "the old one is deleted"])
def test_an_interruption_while_a_folder_is_replaced_loses_neither(
    cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ledger"
    folder.mkdir()
    (folder / "old").touch()
    rename, moves = Path.rename, []

    def broken_rename(self: Path, target: Any) -> Path:
        moves.append(target)
        if len(moves) == {"the old one is out of the way": 1, "the new one is put in": 2}.get(cut):
            if len(moves) == 1:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    def broken_delete(path: Any, **_: Any) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", broken_rename)
    if cut == "the old one is deleted":
        monkeypatch.setattr(shutil, "rmtree", broken_delete)
    with pytest.raises(KeyboardInterrupt), whole_folder(folder, replace=True) as scratch:
        (scratch / "new").touch()
    left = "new" if cut == "the old one is deleted" else "old"
    assert [path.name for path in folder.iterdir()] == [left]
    if left == "old":
        assert [path.name for path in tmp_path.iterdir()] == ["ledger"], "nothing half-written lies about"


def test_a_file_is_never_replaced_by_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file: name a folder"), whole_folder(file, replace=True):
        pass
    assert file.read_text() == "mine" and [*tmp_path.iterdir()] == [file]


def test_a_folder_that_another_run_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(InputError, match="exists and is not empty"), whole_folder(folder) as scratch:
        (scratch / "second").touch()
        folder.mkdir()
        (folder / "first").touch()
    assert [path.name for path in folder.iterdir()] == ["first"] and [*tmp_path.iterdir()] == [folder]
