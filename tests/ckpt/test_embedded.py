"""The embedded default: where no daemon runs on the node one is started, once, and it outlives who started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.cluster import shm_dir, until
from tests.processes import has_ended, wait_ended

from ckptd.ckpt.embedded import connect
from ckptd.ckpt.errors import AccessError, DaemonUnavailable, UsageError

STARTER = """
import sys
from ckptd.ckpt.embedded import connect
client = connect(persist_every=5, storage=sys.argv[1])
print(client.attach(rank=0, world=1, local_world=1).nodes)
client.close()
"""


class Places:
    """Where the daemon of a test lives."""

    def __init__(self, run_dir: Path, segments: Path) -> None:
        self.run_dir, self.segments = run_dir, segments

    def daemon(self) -> int:
        """The process id of the daemon, 0 if none has the segments."""
        try:
            return int((self.segments / "lock").read_text())
        except (OSError, ValueError):
            return 0


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Directories of the test's own, by the environment; whatever daemon was started there is ended."""
    for name in list(os.environ):
        if name.startswith("CKPTD_") or name in ("RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    with shm_dir() as shm:
        made = Places(tmp_path / "run", shm / "s")
        monkeypatch.setenv("CKPTD_RUN_DIR", str(made.run_dir))
        monkeypatch.setenv("CKPTD_SEGMENT_DIR", str(made.segments))
        monkeypatch.setenv("CKPTD_NICE", "0")
        monkeypatch.chdir(tmp_path)
        try:
            yield made
        finally:
            pid = made.daemon()
            if pid and not has_ended(pid):
                os.kill(pid, signal.SIGTERM)
                wait_ended(pid)


@pytest.mark.slow
def test_one_daemon_for_all_and_after_them(places: Places, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Several trainers at once start one daemon; it says so, has their settings, and lives on when they are gone."""
    command = [sys.executable, "-W", "error", "-c", STARTER, str(tmp_path / "storage")]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [starter.communicate(timeout=60.0) for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0, 0], outputs
    assert [out for out, _ in outputs] == ["1\n"] * 3
    said = [err for _, err in outputs if err]
    assert len(said) == 1, said
    assert len(said[0].splitlines()) == 1, said[0]
    pid = places.daemon()
    assert f"no daemon ran on this node, so one was started (pid {pid}, log {places.run_dir / 'daemon.log'})" in said[0]
    assert f"stop it with: kill {pid}" in said[0]

    client = connect()  # a trainer that comes later finds it
    assert client.document("Status")["ready"]
    assert not capfd.readouterr().err
    client.close()
    line = psutil.Process(pid).cmdline()
    assert line[line.index("--persist-every") + 1] == "5"
    assert line[line.index("--storage") + 1] == str(tmp_path / "storage")
    assert os.getsid(pid) == pid  # in a session of its own: no signal of a terminal or a launcher reaches it
    until(lambda: "rank_lost" in (places.run_dir / "events.jsonl").read_text(), "the starters' end noticed")
    assert psutil.pid_exists(pid)


@pytest.mark.slow
def test_a_killed_daemon_is_replaced(places: Places) -> None:
    """After SIGKILL the socket is dead; the next trainer starts another daemon, which finds the segments again."""
    first = connect()
    pid = places.daemon()
    first.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    second = connect()
    assert places.daemon() not in (0, pid)
    assert until(lambda: second.document("Status")["ready"], "ready")
    second.close()
    psutil.Process(places.daemon()).send_signal(signal.SIGTERM)
    os.waitpid(places.daemon(), 0)


@pytest.mark.slow
def test_a_daemon_that_cannot_start_says_why(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason stands in the error, not only in a log."""
    monkeypatch.setenv("CKPTD_SEGMENT_DIR", "/proc/nowhere")
    with pytest.raises(
        DaemonUnavailable, match=r"ended with code 1 at its start: ckptd: cannot make /proc/nowhere: .*choose"
    ):
        connect()


@pytest.mark.parametrize(("name", "value"), [("CKPTD_SLOTS", "1"), ("CKPTD_SLOTS", "two"), ("CKPTD_JOB", "../x")])
def test_wrong_settings_are_said_at_once(
    places: Places, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A setting that can't work is a usage error here, before any process is started."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError):
        connect()
    assert not (places.run_dir / "daemon.log").exists()


def test_persisting_without_storage(places: Places) -> None:
    """An argument that needs another one is a usage error too."""
    with pytest.raises(UsageError, match="give a directory, or an object store"):
        connect(persist_every=5)
    assert places.daemon() == 0


def test_a_run_directory_that_cannot_be(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory that can't be made is an access error that names it."""
    monkeypatch.setenv("CKPTD_RUN_DIR", "/proc/nowhere")
    with pytest.raises(AccessError, match="cannot make /proc/nowhere"):
        connect()
