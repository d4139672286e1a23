"""The command line in the test's own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.daemon import cli

Run = Callable[..., tuple[int, str, str]]
"""Runs `ckptd` with these arguments: exit code, standard output, standard error."""


def clean(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A wide terminal in a folder of its own, and no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("CKPTD_", "SLURM"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(folder)


def console(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], folder: Path) -> Run:
    """`capture`: capsys, or capfd where the command starts processes."""
    clean(monkeypatch, folder)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ckptd", *map(str, arguments)])
        capture.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capture.readouterr()
        assert isinstance(done.value.code, int | None), done.value.code
        return done.value.code or 0, out, err

    return call
