"""ckptd, at each of its three levels: the calls are the same, what differs is what the daemons do and what is waited for."""

from __future__ import annotations

from benchmarks.peers.base import Job, Peer
from ckptd import Checkpointer

_PATIENCE_S = 120.0


class Captured(Peer):
    """The fence is torch's own hook before an update, so there is nothing to call."""

    level = "captured"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._checkpointer = Checkpointer(model=self.workload.model, optimizer=self.workload.optimizer)

    def begin(self) -> None:
        self._checkpointer.restore()

    @property
    def skipped(self) -> int:  # type: ignore[override]
        return self._checkpointer.stats.skipped

    def save(self, step: int) -> None:
        self._checkpointer.step(step)

    def finish(self) -> None:
        reached = self._checkpointer.wait(self.level, timeout_s=_PATIENCE_S)
        stats = self._checkpointer.stats
        if stats.aborted or stats.failed:
            raise RuntimeError(f"a snapshot was lost: {stats}")
        order = ("none", "captured", "sealed", "persisted")
        if order.index(reached) < order.index(self.level):
            raise TimeoutError(f"the last snapshot is {reached}, expected {self.level} within {_PATIENCE_S:.0f} s")

    def restore(self) -> int:
        return self._checkpointer.restore()

    def close(self) -> None:
        self._checkpointer.close()


class Sealed(Captured):
    level = "sealed"


class Persisted(Captured):
    level = "persisted"
