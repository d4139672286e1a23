"""nvidia-resiliency-ext: asynchronous torch.save by a process of its own, and checkpoints on node-local storage."""

from __future__ import annotations

from typing import Any

import torch
from nvidia_resiliency_ext.checkpointing.async_ckpt.torch_ckpt import TorchAsyncCheckpoint
from nvidia_resiliency_ext.checkpointing.local.basic_state_dict import BasicTensorAwareStateDict
from nvidia_resiliency_ext.checkpointing.local.ckpt_managers.local_manager import LocalCheckpointManager

from benchmarks.peers.base import Job, Peer, form_group, newest, step_of


class Async(Peer):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._checkpoint = TorchAsyncCheckpoint()

    def save(self, step: int) -> None:
        self.finish()
        self._checkpoint.async_save(self.workload.state(), str(self.job.storage / f"step-{step}.pt"))

    def finish(self) -> None:
        self._checkpoint.finalize_async_save(blocking=True)

    def restore(self) -> int:
        path = newest(self.job.storage, "step-*.pt")
        self.workload.load(torch.load(path, weights_only=True, mmap=True))
        return step_of(path)

    def close(self) -> None:
        self._checkpoint.finalize_async_save(blocking=True, terminate=True)


class CpuState(BasicTensorAwareStateDict):  # type: ignore[misc]
    """The library's own one, which wants every tensor on a GPU, without that."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state_dict = state
        self._is_hollow = False

    def restore_tensor_device(self, non_blocking: bool = True) -> None:
        """They are where they belong."""


class Local(Peer):
    """Blocks: asynchronously it needs CUDA, like `Async`. The file goes to a tmpfs, as the library proposes."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        form_group()
        self._manager: Any = LocalCheckpointManager(job.memory)

    def save(self, step: int) -> None:
        self._manager.save(CpuState(self.workload.state()), step, is_async=False)

    def finish(self) -> None:
        pass

    def restore(self) -> int:
        step = self._manager.find_latest()
        state, _ = self._manager.load()
        self.workload.load(state.state_dict)
        return int(step)
