"""py-spy, where it is installed: what it says is taken, and what it does not say harms nobody."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ckptd.daemon.observe import pyspy


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which commands are looked for."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    return tmp_path


def installed(folder: Path, body: str) -> None:
    """A py-spy that does this."""
    command = folder / "py-spy"
    command.write_text(f"#!/bin/sh\n{body}\n")
    command.chmod(0o755)


def test_its_stacks_are_taken_from_outside(path: Path) -> None:
    """Of the process that is meant, without stopping it, and no more of them than there is room for."""
    installed(path, 'echo "$@"; head -c 100000 /dev/zero | tr "\\0" x')
    said = pyspy.spy(4711)
    assert said.startswith("dump --nonblocking --pid 4711\nxxx")
    assert len(said) == pyspy.TEXT_MAX


def test_without_it_there_are_no_stacks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is not installed, nor where it may not look, is no program, or takes too long."""
    assert pyspy.spy(4711) == ""
    installed(path, "echo half; echo 'Permission Denied' >&2; exit 1")
    assert pyspy.spy(4711) == ""
    monkeypatch.setattr(pyspy, "SPY_S", 0.05)
    installed(path, "exec sleep 60")
    assert pyspy.spy(4711) == ""
    (path / "py-spy").write_bytes(b"\x7fELF nonsense")
    assert pyspy.spy(4711) == ""
