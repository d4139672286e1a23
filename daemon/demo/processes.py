"""Start and end the demo's processes: each in a session of its own, with a log file, and none may stay behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "_CKPTD_DEMO"
"""In the environment of every process of a demo: the demo's name. Children inherit it, so that orphans are found too."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that we started."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self.popen.poll()

    def family(self) -> list[psutil.Process]:
        """It and all its descendants, as far as they live."""
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def start(name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Process:
    """Start `command` with its output appended to `log`; its standard input is a pipe that closes when we end."""
    tied = [sys.executable, "-m", "ckptd.daemon.demo.tied", str(os.getpid()), *command]
    with log.open("ab") as output:
        popen = subprocess.Popen(
            tied,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    return Process(name, popen, log)


def kill(victims: Iterable[psutil.Process]) -> None:
    """SIGKILL all of them. Their descendants have to be among them."""
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()  # psutil makes sure that the pid has not got a new owner


def reap(process: Process, timeout_s: float) -> bool:
    """Wait for its end; False when it still runs. Closes its standard input, which ends the rendezvous store."""
    if process.popen.stdin:
        process.popen.stdin.close()
    try:
        process.popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def terminate(processes: Sequence[Process], timeout_s: float) -> None:
    """End them with SIGTERM, and after `timeout_s` together with SIGKILL."""
    deadline = time.monotonic() + timeout_s
    families = [process.family() for process in processes]
    for process in processes:
        if process.code is None:
            process.popen.send_signal(signal.SIGTERM)
    for process, family in zip(processes, families, strict=True):
        if not reap(process, max(0.0, deadline - time.monotonic())):
            kill(family)
            reap(process, 5.0)


def sweep(mark: str, grace_s: float = 0.0) -> list[int]:
    """SIGKILL whatever still carries this mark in its environment after `grace_s`; returns the pids: there should be none.

    Python's fork server and resource tracker end by themselves, a moment after who started them.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
    _, left = psutil.wait_procs(found, timeout=grace_s)
    kill(left)
    psutil.wait_procs(left, timeout=5.0)
    return [process.pid for process in left]
