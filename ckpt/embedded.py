"""The embedded default: connect to the node's daemon, and start one where there is none.

The daemon runs in a session of its own, so it outlives the trainer: that is what keeps the snapshots when it dies.
"""

from __future__ import annotations

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
    run_dir = private_dir(settings.where())
    with (run_dir / "starting").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            client = Client(run_dir, settings.job, timeout_s=5.0)
            client.document("Status")
            client.close()
        except DaemonUnavailable:
            _start(settings, run_dir)
    return Client(run_dir, settings.job)


def _start(settings: Settings, run_dir: Path) -> None:
    settings.config()  # says what is wrong with the settings here, not in a log file
    command = [sys.executable, "-m", "ckptd.daemon.cli", "serve", "--job", settings.job, "--run-dir", str(run_dir)]
    if settings.persist_every:
        command += ["--persist-every", str(settings.persist_every)]
    if settings.storage:
        command += ["--storage", str(settings.storage)]
    log_path = run_dir / "daemon.log"
    with log_path.open("a") as out:
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, env=_environment()
        )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise DaemonUnavailable(
                f"the daemon ended with code {daemon.returncode} at its start: {_last_line(log_path)}"
            )
        try:
            client = Client(run_dir, settings.job, timeout_s=2.0)
            client.document("Status")
            client.close()
        except DaemonUnavailable:
            time.sleep(_POLL_S)  # a process is starting; there is nothing to wait on but its socket
        else:
            log.warning(
                "ckptd: no daemon ran on this node, so one was started (pid %d, log %s); it outlives this process, "
                "stop it with: kill %d",
                daemon.pid, log_path, daemon.pid,
            )  # fmt: skip
            daemon.returncode = 0  # nobody waits for it: without this Python warns that it still runs
            return
    raise DaemonUnavailable(f"the daemon did not answer within {_START_S:.0f} s; look at {log_path}")


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
