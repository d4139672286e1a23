"""No process of the demo stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ckptd.daemon.demo.processes import MARK, kill, reap, start, sweep, terminate
from ckptd.daemon.demo.watch import tail_of

pytestmark = pytest.mark.slow

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


def wait_for_line(log: Path) -> str:
    deadline = time.monotonic() + 20
    while not (lines := tail_of(log, 1)):
        assert time.monotonic() < deadline, "the process printed nothing"
        time.sleep(0.01)
    return lines[0]


def gone(pid: int, limit_s: float = 10.0) -> bool:
    """Wait until there is no such process, or only what its parent has not collected."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_who_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start("stubborn", [sys.executable, "-c", STUBBORN], log=log, environment=os.environ)
    wait_for_line(log)
    terminate([process], 0.2)
    assert process.code == -signal.SIGKILL


def test_a_killed_process_s_orphan_is_swept_up(tmp_path: Path) -> None:
    """torchrun's workers have a session of their own: whoever kills only the agent leaves them training."""
    mark, log = f"test-{os.getpid()}", tmp_path / "log"
    process = start("parent", [sys.executable, "-c", PARENT], log=log, environment={**os.environ, MARK: mark})
    child = int(wait_for_line(log))
    assert {member.pid for member in process.family()} == {process.pid, child}
    process.popen.kill()
    assert reap(process, 10)
    assert sweep(mark) == [child]
    assert gone(child)
    assert sweep(mark) == []


def test_a_whole_family_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start("parent", [sys.executable, "-c", PARENT], log=log, environment=os.environ)
    child = int(wait_for_line(log))
    kill(process.family())
    assert reap(process, 10)
    assert gone(child)


def test_when_the_demo_itself_is_killed_its_processes_end(tmp_path: Path) -> None:
    script = f"""
import os, sys, time
from pathlib import Path
from ckptd.daemon.demo.processes import start
start("child", [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
      log=Path({str(tmp_path / "log")!r}), environment=os.environ)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as demo:
        child = int(wait_for_line(tmp_path / "log"))
        demo.kill()
    assert gone(child)


def test_what_ends_by_itself_is_no_stray(tmp_path: Path) -> None:
    """A moment is granted: Python's own helpers end after who started them."""
    mark = f"test-{os.getpid()}-brief"
    environment = {**os.environ, MARK: mark}
    brief = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    process = start("brief", brief, log=tmp_path / "log", environment=environment)
    assert process.popen.stdin
    process.popen.stdin.close()
    assert sweep(mark, 20.0) == []
    assert reap(process, 5.0)
