"""The embedded default: connect to the node's daemon, and start one where there is none.

The daemon runs in a session of its own, so it outlives the trainer: that is what keeps the snapshots when it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import CkptdError, DaemonUnavailable
from ckptd.ckpt.settings import Settings, read
from ckptd.ckpt.shm import private_dir

log = logging.getLogger(__name__)

_START_S = 30.0
_POLL_S = 0.02


def connect(*, job: str | None = None, persist_every: int | str | None = None, storage: str | None = None) -> Client:
    """A client of this node's daemon; starts one in the background if none runs.

    `persist_every` and `storage` only matter for a daemon that is started here. Several ranks may call at once: one
    starts the daemon and the others find it. Raises UsageError for bad settings, DaemonUnavailable when it won't start.
    """
    settings = read(job=job, persist_every=persist_every, storage=storage)
    daemon = start_if_none(settings)
    if daemon is not None:
        log.warning(
            "ckptd: no daemon ran on this node, so one was started (pid %d, log %s); it outlives this process, "
            "stop it with: kill %d",
            daemon.pid, log_of(settings), daemon.pid,
        )  # fmt: skip
        daemon.returncode = 0  # nobody waits for it: without this Python warns that it still runs
    return Client(settings.where(), settings.job)


def start_if_none(settings: Settings) -> subprocess.Popen[bytes] | None:
    """Start this node's daemon in a session of its own and wait until it answers; None where one answers already.

    Raises UsageError for bad settings, DaemonUnavailable when it won't start.
    """
    run_dir = private_dir(settings.where())
    with (run_dir / "starting").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        return None if _answers(settings, 5.0) else _start(settings, run_dir)


def log_of(settings: Settings) -> Path:
    """Where a daemon that is started here writes its log."""
    return settings.where() / "daemon.log"


def _answers(settings: Settings, timeout_s: float) -> bool:
    try:
        with contextlib.closing(Client(settings.where(), settings.job, timeout_s=timeout_s)) as client:
            client.document("Status")
    except DaemonUnavailable:
        return False
    return True


def _start(settings: Settings, run_dir: Path) -> subprocess.Popen[bytes]:
    settings.config()  # says what is wrong with the settings here, not in a log file
    command = [sys.executable, "-m", "ckptd.daemon.cli", "serve", "--job", settings.job, "--run-dir", str(run_dir)]
    if settings.persist_every:
        command += ["--persist-every", str(settings.persist_every)]
    if settings.storage:
        command += ["--storage", str(settings.storage)]
    with log_of(settings).open("a") as out:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=_environment()
        )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise DaemonUnavailable(
                f"the daemon ended with code {daemon.returncode} at its start: {_last_line(log_of(settings))}"
            )
        if _answers(settings, 2.0):
            return daemon
        time.sleep(_POLL_S)  # a process is starting; there is nothing to wait on but its socket
    daemon.kill()
    daemon.wait()
    raise DaemonUnavailable(f"the daemon did not answer within {_START_S:.0f} s; look at {log_of(settings)}")


def _environment() -> dict[str, str]:
    # A daemon is no rank: what torchrun told this process must not confuse whoever reads the daemon's environment.
    return {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
    }


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text().strip().splitlines()
    except OSError as error:
        raise CkptdError(f"{path}: {error.strerror}") from error
    return lines[-1] if lines else f"nothing was logged in {path}"
