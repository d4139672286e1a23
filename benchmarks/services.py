"""What must run outside the trainer for a system: the daemons of ckptd, the agent of DLRover. And how to lose it.

    with serving(system, python, folder, state_bytes, every) as service:
        ...a trainer with service.environment...
        service.lose()  # what the snapshot is said to survive, beyond the trainer's kill

Leaving the block ends every process and removes every file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster import JOB, SHM, Cluster
from benchmarks.peers import System

NODES = 4
_SOCKETS = Path("/tmp/ckpt_sock")  # noqa: S108 - DLRover's choice
_AGENT = """
import time
from dlrover.python.elastic_agent.torch.ckpt_saver import AsyncCheckpointSaver
AsyncCheckpointSaver.start_async_saving_ckpt()
while True:
    time.sleep(60)
"""
"""What dlrover-run's agent does for checkpoints."""


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Service:
    """What a trainer needs to know of it."""

    memory: Path
    """The folder on a tmpfs that is the system's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    pids: Callable[[], list[int]] = list
    lose: Callable[[], None] = _nothing
    """Lose the node, or the power of all nodes, and start what replaces them; where the snapshot claims to survive it."""


@contextmanager
def serving(system: System, python: Path, folder: Path, *, state_bytes: int, every: int) -> Iterator[Service]:
    """Start what the system needs. Raises NotInTimeError."""
    if system.service == "":
        with _tmpfs() as memory:
            yield Service(memory)
    elif system.service == "dlrover":
        with _dlrover(python, folder) as service:
            yield service
    else:
        with _daemons(system.service, folder, state_bytes, every) as service:
            yield service


@contextmanager
def _tmpfs() -> Iterator[Path]:
    memory = Path(tempfile.mkdtemp(prefix="ckptd-bench-", dir=SHM))
    try:
        yield memory
    finally:
        shutil.rmtree(memory, ignore_errors=True)


@contextmanager
def _daemons(level: str, folder: Path, state_bytes: int, every: int) -> Iterator[Service]:
    """One daemon, or one on each of four nodes; as nice as they are by default. The trainer is on node 0."""
    settings = {"NICE": "19"}
    if level == "persisted":
        settings |= {"STORAGE": str(folder / "persisted"), "PERSIST_EVERY": str(every)}
    with Cluster(
        1 if level == "captured" else NODES, parity=1, size=state_bytes, slots=3, settings=settings
    ) as cluster:
        lost = {"captured": (), "sealed": (0,), "persisted": tuple(cluster.nodes)}[level]

        def lose() -> None:
            if lost:
                cluster.lose(*lost)
                cluster.start(*lost)
                cluster.wait_ready()

        environment = {
            "CKPTD_RUN_DIR": str(cluster.run_dir(0)),
            "CKPTD_JOB": JOB,
            "CKPTD_SEGMENT_DIR": str(cluster.memory / "n0"),
        }
        yield Service(
            cluster.memory, environment, lambda: [process.pid for process in cluster.processes.values()], lose
        )


@contextmanager
def _dlrover(python: Path, folder: Path) -> Iterator[Service]:
    job = f"bench-{secrets.token_hex(4)}"
    environment = {"TORCHELASTIC_RUN_ID": job, "ELASTIC_JOB_NAME": job, "ROLE_NAME": "dlrover-trainer"}
    with (folder / "agent.log").open("w") as log, _tmpfs() as memory:
        agent = subprocess.Popen(
            [str(python), "-c", _AGENT], env=dict(os.environ) | environment, stdout=log, stderr=log, cwd=folder
        )
        try:
            deadline = time.monotonic() + 30.0
            while not list((_SOCKETS / job).glob("*factory*")) and time.monotonic() < deadline and agent.poll() is None:
                time.sleep(0.05)
            yield Service(memory, environment, lambda: [agent.pid])
        finally:
            agent.kill()
            agent.wait()
            shutil.rmtree(_SOCKETS / job, ignore_errors=True)
            for path in SHM.glob(f"*{job}*"):
                path.unlink(missing_ok=True)
