"""Progress of long work: what the daemon says, and the bar that the command line draws from it."""

from __future__ import annotations

import pytest
from tests.cluster import until

from ckptd.ckpt.errors import DaemonUnavailable
from ckptd.daemon import bars
from ckptd.daemon.progress import Progress


def test_work_is_known_while_it_runs() -> None:
    """Bytes add up, never beyond the total, and the entry goes when the work ends."""
    progress = Progress()
    with progress.of("gather", 10) as add:
        assert progress.now() == {"gather": {"done": 0, "total": 10}}
        add(4)
        add(100)
        assert progress.now() == {"gather": {"done": 10, "total": 10}}
    assert progress.now() == {}


def test_work_that_fails_does_not_stay() -> None:
    """An error inside ends the entry too."""
    progress = Progress()
    with pytest.raises(ValueError, match="no"), progress.of("verify", 1):
        raise ValueError("no")
    assert progress.now() == {}


def test_nothing_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, or with --json, no bar and no question to the daemon."""

    def ask() -> bars.Work:
        raise AssertionError("nobody looks")

    for quiet in (True, False):
        with bars.bar("verifying", "verify", ask, quiet=quiet):
            pass
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_bar_survives_a_daemon_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the bar asks again; what is wrong is said by the call itself."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(bars, "_POLL_S", 0.001)
    asked: list[int] = []

    def ask() -> bars.Work:
        asked.append(1)
        if len(asked) % 2:
            raise DaemonUnavailable("gone")
        return {"verify": {"done": 1, "total": 2}}

    with bars.bar("verifying", "verify", ask, quiet=False):
        until(lambda: len(asked) >= 4, "four questions")
