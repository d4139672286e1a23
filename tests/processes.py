"""The ends of processes that somebody else has started."""

from __future__ import annotations

import psutil

from tests.cluster import until


def has_ended(pid: int) -> bool:
    """Whether the process has; whoever should take notice may be slow to, and it is a zombie until then."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_ended(*pids: int, timeout_s: float = 20.0) -> None:
    """Wait until they have ended; fails when it takes too long."""
    until(lambda: all(map(has_ended, pids)), f"the end of processes {pids}", timeout_s)
