"""An export is there whole or not at all, and replaces nothing but an earlier export that it was told to replace."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptd.ckpt.errors import StorageError, UsageError
from ckptd.integrations.exchange.places import check_space, put


class Broken(Exception):
    """What goes wrong while an export is written."""


def export(directory: Path, content: str = "new", *, replace: bool = False, fails: bool = False) -> None:
    """One that writes one file, or fails after that."""
    with put(directory, replace=replace) as made:
        (made / "model.safetensors").write_text(content)
        assert not (directory / "model.safetensors").exists() or replace
        if fails:
            raise Broken


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


@pytest.mark.parametrize("before", ["missing", "empty", "below another that is missing"])
def test_it_appears_whole(tmp_path: Path, before: str) -> None:
    """In a directory that was not there, that was empty, or whose parent was not there."""
    target = tmp_path / "a" / "out" if "below" in before else tmp_path / "out"
    if before == "empty":
        target.mkdir()
    export(target)
    assert (target / "model.safetensors").read_text() == "new"
    assert names(target.parent) == ["model.safetensors", "out"]


@pytest.mark.parametrize("replace", [False, True])
def test_nothing_stays_of_one_that_fails(tmp_path: Path, replace: bool) -> None:
    """The place is as it was, an earlier export too."""
    target = tmp_path / "out"
    if replace:
        export(target, "old")
    with pytest.raises(Broken):
        export(target, replace=replace, fails=True)
    assert names(tmp_path) == (["model.safetensors", "out"] if replace else [])
    assert not replace or (target / "model.safetensors").read_text() == "old"


def test_an_earlier_export_is_replaced_when_told(tmp_path: Path) -> None:
    """As a whole: no file of the old one is left among those of the new one."""
    export(tmp_path / "out", "old")
    (tmp_path / "out" / ".metadata").touch()
    with pytest.raises(UsageError, match="--force"):
        export(tmp_path / "out")
    export(tmp_path / "out", replace=True)
    assert names(tmp_path) == ["model.safetensors", "out"]
    assert (tmp_path / "out" / "model.safetensors").read_text() == "new"


@pytest.mark.parametrize("name", ["config.json", "train.py", "model-1.safetensors", "sub"])
def test_what_no_export_writes_is_never_removed(tmp_path: Path, name: str) -> None:
    """Told to replace or not: a directory with anything else in it stays, and the file is named."""
    (tmp_path / "out").mkdir()
    if name == "sub":
        (tmp_path / "out" / name).mkdir()
    else:
        (tmp_path / "out" / name).touch()
    with pytest.raises(UsageError, match=f"holds '{name}', which no export writes"):
        export(tmp_path / "out", replace=True)
    assert names(tmp_path) == sorted(["out", name])


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    """Nor is it replaced by one."""
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="is no directory"):
        export(tmp_path / "out", replace=True)


def test_a_link_to_a_directory_stays_a_link(tmp_path: Path) -> None:
    """What it names gets the files."""
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    export(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").read_text() == "new"


def test_what_comes_there_meanwhile_stays(tmp_path: Path) -> None:
    """Somebody else's files that appear while the export is written are not overwritten."""
    place = put(tmp_path / "out", replace=False)
    place.__enter__()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").touch()
    with pytest.raises(UsageError, match="not an empty directory"):
        place.__exit__(None, None, None)
    assert names(tmp_path) == ["out", "theirs"]


def test_a_place_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    """In one line, with the system's reason."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*: Not a directory"):
        export(tmp_path / "file" / "out")


def test_space_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both numbers are said; where the directory will be counts."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000 if path == tmp_path else 0))
    check_space(tmp_path / "out" / "deep", 80_000_000, "the export")
    with pytest.raises(StorageError, match=r"the export takes 99000000 bytes .* has 100000000 free"):
        check_space(tmp_path / "out" / "deep", 99_000_000, "the export")
