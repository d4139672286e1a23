"""The throw-away job of a drill: the demo's cluster, with links that can fail, a disk that can stall, and a small tmpfs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from ckptd.ckpt.errors import CkptdError, UsageError
from ckptd.daemon.demo.linked import LinkedCluster
from ckptd.daemon.demo.processes import kill, reap

TMPFS_BYTES = 512 * 1024 * 1024
FILL_SHARE = 0.5
"""A tmpfs is memory: at most so much of what is available is filled."""


class DrillJob(LinkedCluster):
    """Its disk can stall and its tmpfs is small; everything else is as in a demo with links that can fail."""

    @property
    def stalled(self) -> Path:
        """While this file is there no fsync of a daemon returns."""
        return self.layout.temporary / "stalled"

    @property
    def ballast(self) -> Path:
        """What fills the tmpfs."""
        return self.layout.segments / "ballast"

    def daemon_command(self) -> list[str]:
        return [sys.executable, "-m", "ckptd.daemon.drill.stalled", str(self.stalled)]

    def kill_daemon(self, node: int) -> float:
        """SIGKILL a daemon; return when."""
        daemon = self.daemons.pop(node)
        family, now = daemon.family(), time.time()
        kill(family)
        reap(daemon, 5.0)
        return now

    def kill_trainer(self, pid: int) -> float:
        """SIGKILL a trainer; return when."""
        with contextlib.suppress(psutil.NoSuchProcess):
            kill([psutil.Process(pid)])
        return time.time()

    def stop(self) -> list[int]:
        self.stalled.unlink(missing_ok=True)  # or a daemon could not end
        return super().stop()


@contextlib.contextmanager
def small_tmpfs(directory: Path) -> Iterator[None]:
    """A tmpfs of the job's own, where we may mount one; else the one that all share is used, see `fill`."""
    if os.getuid() != 0:
        yield
        return
    mounted = _run("mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES},mode=0700", "tmpfs", str(directory))
    try:
        yield
    finally:
        if mounted:
            _run("umount", "--lazy", str(directory))


def _run(command: str, *arguments: str) -> bool:
    found = shutil.which(command)
    return bool(found) and subprocess.run([str(found), *arguments], check=False, capture_output=True).returncode == 0


def fill(ballast: Path) -> int:
    """Leave no room on the tmpfs of `ballast`; return the bytes that were taken. Raises UsageError when it is too large."""
    space = os.statvfs(ballast.parent)
    free, available = space.f_bavail * space.f_frsize, psutil.virtual_memory().available
    if free > available * FILL_SHARE:
        raise UsageError(
            f"{ballast.parent} has {free >> 20} MiB free, more than half of the available memory ({available >> 20} MiB): "
            "filling it would harm others; drill with a smaller tmpfs (mount one, and name it with --segments-root)"
        )
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, max(free - space.f_frsize, 1))
    except OSError as error:
        ballast.unlink()
        raise CkptdError(f"cannot fill {ballast.parent}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return free
