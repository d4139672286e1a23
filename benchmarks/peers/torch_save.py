"""torch.save to a temporary name, then a rename: what most training scripts do."""

from __future__ import annotations

import torch

from benchmarks.peers.base import Peer, newest, step_of


class TorchSave(Peer):
    def save(self, step: int) -> None:
        path = self.job.storage / f"step-{step}.pt"
        unfinished = path.with_suffix(".tmp")
        torch.save(self.workload.state(), unfinished)
        unfinished.rename(path)
        for older in self.job.storage.glob("step-*.pt"):
            if older != path:
                older.unlink()

    def finish(self) -> None:
        pass

    def restore(self) -> int:
        path = newest(self.job.storage, "step-*.pt")
        self.workload.load(torch.load(path, weights_only=True, mmap=True))
        return step_of(path)
