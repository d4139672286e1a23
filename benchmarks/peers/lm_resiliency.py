"""lm-resiliency's in-memory checkpoints: a copy in the trainer's own memory. One trainer has no peer to replicate to."""

from __future__ import annotations

from lm_resiliency.checkpointing.config import InMemoryCkptConfig
from lm_resiliency.checkpointing.manager import InMemoryCheckpointManager

from benchmarks.peers.base import Job, Peer


class Gemini(Peer):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        config = InMemoryCkptConfig(
            interval=1, disk_flush_interval=0, disk_folder=str(job.storage), run_id="bench", pin_memory=False
        )
        self._manager = InMemoryCheckpointManager(config)

    def save(self, step: int) -> None:
        self._manager.save(self.workload.state(), step)

    def fence(self) -> None:
        self._manager.maybe_wait()

    def finish(self) -> None:
        self._manager.finalize_replication()

    def restore(self) -> int:
        found = self._manager.load()
        if found is None:
            raise LookupError("nothing was found in memory or on the disk")
        state, step = found
        self.workload.load(state)
        return int(step)

    def close(self) -> None:
        self._manager.close()
