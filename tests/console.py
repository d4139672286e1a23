"""The command line in the test's own process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from ckptd.daemon import cli

Run = Callable[..., tuple[int, str, str]]
"""Runs `ckptd` with these arguments: exit code, standard output, standard error."""


def console(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> Run:
    """`capture`: capsys, or capfd where the command starts processes."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ckptd", *map(str, arguments)])
        capture.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capture.readouterr()
        assert isinstance(done.value.code, int | None), done.value.code
        return done.value.code or 0, out, err

    return call
