"""torch's distributed checkpoint: blocking, and asynchronous by a thread and by a process with shared-memory staging."""

from __future__ import annotations

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save

from benchmarks.peers.base import Job, Peer, form_group, newest, step_of


class Save(Peer):
    """Blocks until the files are synced. A checkpoint counts once its `.metadata` exists."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        form_group()

    def save(self, step: int) -> None:
        save(self._state(), checkpoint_id=self._path(step))
        self._drop_older(step)

    def finish(self) -> None:
        pass

    def restore(self) -> int:
        path = newest(self.job.storage, holding=".metadata")
        state = self._state()
        load(state, checkpoint_id=path)
        set_state_dict(
            self.workload.model,
            self.workload.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        return step_of(path)

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.workload.model, self.workload.optimizer)
        return {"model": model, "optimizer": optimizer}

    def _path(self, step: int) -> Path:
        return self.job.storage / f"step-{step}"

    def _drop_older(self, step: int) -> None:
        for path in self.job.storage.glob("step-*"):
            if step_of(path) < step:
                shutil.rmtree(path)


class AsyncThread(Save):
    """Stages a copy, then a thread writes it. One save at a time: the next waits for the last."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._saving: Future[Any] | None = None
        self._step = 0

    def save(self, step: int) -> None:
        self.finish()
        self._saving = self._begin(step)
        self._step = step

    def finish(self) -> None:
        if self._saving is not None:
            self._saving.result()
            self._saving = None
            self._drop_older(self._step)

    def _begin(self, step: int) -> Future[Any]:
        saving = async_save(self._state(), checkpoint_id=self._path(step))
        assert isinstance(saving, Future)
        return saving


class AsyncProcess(AsyncThread):
    """Stages into shared memory in a thread, then a process writes. The update waits for the staging."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=True, use_async_staging=True, use_non_blocking_copy=False
            )
        )
        self._staging: Future[Any] | None = None

    def fence(self) -> None:
        if self._staging is not None:
            self._staging.result()
            self._staging = None

    def finish(self) -> None:
        self.fence()
        super().finish()

    def close(self) -> None:
        self.finish()
        self._stager.close()

    def _begin(self, step: int) -> Future[Any]:
        response = async_save(
            self._state(),
            checkpoint_id=self._path(step),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=self._stager,
        )
        assert isinstance(response, AsyncSaveResponse)
        self._staging = response.staging_completion
        return response.upload_completion
