"""torch_checkpointing: stages into shared memory while a lock holds the update back, a process writes."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch_checkpointing import CheckpointManager
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from benchmarks.peers.base import Job, Peer, newest, step_of


class Manager(Peer):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        # Its O_DIRECT streams write unaligned pieces, which ext4 refuses.
        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        self._manager = CheckpointManager(CheckpointManager.Config(storage_config=storage))
        self._saving: Future[Any] | None = None
        self._path = Path()

    def save(self, step: int) -> None:
        self._path = self.job.storage / f"step-{step}"
        self._drop_older(step)
        self._saving = self._manager.save(str(self._path), self.workload.state())

    def fence(self) -> None:
        with self._manager.lock():  # a lock that is held through the update and this one wait for the same staging
            pass

    def finish(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None

    def restore(self) -> int:
        path = newest(self.job.storage)
        self.workload.load(self._manager.load(str(path), into=self.workload.state()))
        return step_of(path)

    def close(self) -> None:
        self._manager.close()

    def _drop_older(self, step: int) -> None:
        for path in sorted(self.job.storage.glob("step-*"), key=step_of)[:-1]:
            shutil.rmtree(path)
