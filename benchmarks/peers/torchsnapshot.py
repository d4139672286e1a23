"""torchsnapshot.Snapshot.async_take: stages everything before it returns, then writes in threads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torchsnapshot

from benchmarks.peers.base import Job, Peer, newest, step_of


class AsyncTake(Peer):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._app_state = {"model": self.workload.model, "optimizer": self.workload.optimizer}
        self._pending: Any = None
        self._path = Path()

    def save(self, step: int) -> None:
        self.finish()
        self._path = self.job.storage / f"step-{step}"
        self._pending = torchsnapshot.Snapshot.async_take(str(self._path), self._app_state)

    def finish(self) -> None:
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
            for path in self.job.storage.glob("step-*"):
                if path != self._path:
                    shutil.rmtree(path)

    def restore(self) -> int:
        path = newest(self.job.storage, holding=".snapshot_metadata")
        torchsnapshot.Snapshot(str(path)).restore(self._app_state)
        return step_of(path)
