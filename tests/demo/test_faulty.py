"""A trainer of the demo is an ordinary one until the signal comes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.cluster import until

pytestmark = pytest.mark.slow

MODULE = """
import sys, time
print(__name__, sys.argv[1:], flush=True)
while True:
    time.sleep(0.01)
    print(time.monotonic(), flush=True)
"""


class Trainer:
    """A module that says every hundredth of a second that it goes on."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.log, self.process = log, process

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def silent_s(self) -> float:
        return time.time() - self.log.stat().st_mtime


@contextmanager
def trainer(folder: Path, fault: str) -> Iterator[Trainer]:
    """One that is to misbehave so at the signal, and has begun to train."""
    (folder / "steady.py").write_text(MODULE)
    command = [sys.executable, "-m", "ckptd.daemon.demo.faulty", fault, "steady", "--steps=3"]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stdin=subprocess.DEVNULL)
    try:
        made = Trainer(folder / "log", process)
        until(lambda: len(made.lines()) > 20, "twenty steps")
        assert made.lines()[0] == "__main__ ['--steps=3']"
        yield made
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", ["hang", "gil", "loader", "stop"])
def test_a_trainer_that_hangs_stands_still_and_lives(tmp_path: Path, fault: str) -> None:
    with trainer(tmp_path, fault) as made:
        made.process.send_signal(signal.SIGUSR1)
        until(lambda: made.silent_s() > 1.0, "it stands still", 10.0)
        assert made.process.poll() is None


def test_a_slow_trainer_is_stopped_again_and_again_and_goes_on(tmp_path: Path) -> None:
    """By a child, which ends with it."""
    with trainer(tmp_path, "slow-rank") as made:
        made.process.send_signal(signal.SIGUSR1)
        it = psutil.Process(made.process.pid)
        until(lambda: it.status() == psutil.STATUS_STOPPED, "it is stopped", 10.0)
        lines = len(made.lines())
        until(lambda: len(made.lines()) > lines + 3, "some more steps", 10.0)
        until(lambda: it.status() == psutil.STATUS_STOPPED, "it is stopped again", 10.0)
        (child,) = it.children()
        made.process.kill()
        made.process.wait()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the end of the child", 10.0)


ECHO = """
import socket, sys
wire = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
while data := wire.recv(100):
    wire.sendall(data)
"""


def is_silent(wire: socket.socket) -> bool:
    """Whether no echo comes."""
    wire.sendall(b"c")
    try:
        wire.recv(1)
    except TimeoutError:
        return True
    return False


def test_at_the_signal_the_connections_that_are_listed_go_bad(tmp_path: Path) -> None:
    """And no others."""
    (tmp_path / "echo.py").write_text(ECHO)
    listed = tmp_path / "spoiled.json"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", "ckptd.daemon.demo.faulty", f"cut-link={listed}", "echo", str(port)]
        process = subprocess.Popen(command, cwd=tmp_path)
        try:
            server.settimeout(30.0)
            wire, peer = server.accept()
            with wire:
                wire.settimeout(10.0)
                wire.sendall(b"a")
                assert wire.recv(1) == b"a"
                listed.write_text(json.dumps([[peer[1], port + 1]]))  # somebody else's
                process.send_signal(signal.SIGUSR1)
                wire.sendall(b"b")
                assert wire.recv(1) == b"b"
                listed.write_text(json.dumps([[peer[1], port]]))
                process.send_signal(signal.SIGUSR1)
                wire.settimeout(0.5)
                until(lambda: is_silent(wire), "it is cut")
        finally:
            process.kill()
            process.wait()
