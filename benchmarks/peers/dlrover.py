"""DLRover's flash checkpoint to memory: the trainer copies into shared memory that the node's agent owns."""

from __future__ import annotations

from dlrover.trainer.torch.flash_checkpoint.checkpointer import StorageType
from dlrover.trainer.torch.flash_checkpoint.ddp import DdpCheckpointer

from benchmarks.peers.base import Job, Peer


class Flash(Peer):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._checkpointer = DdpCheckpointer(str(job.storage))

    def save(self, step: int) -> None:
        state = self.workload.state() | {"at": step}
        self._checkpointer.save_checkpoint(step, state, storage_type=StorageType.MEMORY)

    def finish(self) -> None:
        pass

    def restore(self) -> int:
        state = self._checkpointer.load_checkpoint()
        self.workload.load(state)
        return int(state["at"])
