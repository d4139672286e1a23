"""What every adapter does in the trainer's process."""

from __future__ import annotations

import os
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from benchmarks.workload import Workload


@dataclass(frozen=True, slots=True)
class Job:
    """What a system gets: the state, and two folders of its own that outlive the trainer."""

    workload: Workload
    storage: Path
    """On the disk."""
    memory: Path
    """On a tmpfs."""


class Peer(ABC):
    """One system at work. Making it is its set-up; the calls that block the training are timed by the caller."""

    skipped = 0
    """Snapshots that the system left out, because it was busy with an earlier one."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.workload = job.workload

    def begin(self) -> None:  # noqa: B027 - most need nothing
        """What the system wants of a training that starts for the first time, beyond being made."""

    @abstractmethod
    def save(self, step: int) -> None:
        """Take a snapshot of the state after `step` updates; return as soon as the system lets the training go on."""

    def fence(self) -> None:  # noqa: B027
        """What the system asks for before an update."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until the last snapshot is what the system calls complete."""

    @abstractmethod
    def restore(self) -> int:
        """Load the newest snapshot into the workload, in a trainer that has just been started; return its step."""

    def close(self) -> None:  # noqa: B027
        """Let go of everything. Not called when the trainer is killed."""


def step_of(path: Path) -> int:
    """The step in a name like step-12."""
    return int(path.name.split("-")[1].split(".")[0])


def newest(folder: Path, pattern: str = "step-*", *, holding: str = "") -> Path:
    """The file or folder with the highest step, of those that hold a file of that name. Raises FileNotFoundError."""
    found = [path for path in folder.glob(pattern) if (path / holding).exists()]
    if not found:
        raise FileNotFoundError(f"no {pattern}/{holding} in {folder}: nothing was saved")
    return max(found, key=step_of)


def form_group() -> None:
    """A process group of this one process, for systems that want one, by the environment that torchrun would set."""
    if not dist.is_initialized():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
        dist.init_process_group("gloo")
