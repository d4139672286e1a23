"""Lightning's own checkpoints as files of a step in memory: a plugin where Lightning has one for their place."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

import fsspec
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from ckptd.ckpt.settings import read
from ckptd.integrations.dcp.names import SCHEME


class CkptdIO(TorchCheckpointIO):  # type: ignore[misc]  # its types are not looked at
    """`Trainer(plugins=[CkptdIO()])`: what ModelCheckpoint saves is a snapshot, sealed when the save returns.

    For one device and DDP: sharded strategies write their files themselves and refuse a CheckpointIO. The directory of a
    checkpoint's path counts for nothing; its name is that of a file in `ckptd://job/step-12/`. Memory keeps the newest step:
    an older one, as the best, only as long as its slot is not needed, or where storage has it.
    """

    def __init__(self, job: str | None = None) -> None:
        """`job`: another one than that of the settings. Raises UsageError for what is no name of a job."""
        super().__init__()
        self._job = read(job=job).job
        self._saved: dict[str, str] = {}

    def newest(self) -> str | None:
        """The newest checkpoint, for `trainer.fit(ckpt_path=...)`; None where there is none yet, and for a new training."""
        fs = fsspec.filesystem("ckptd")
        steps = fs.ls(f"{SCHEME}{self._job}", detail=False) if fs.exists(f"{SCHEME}{self._job}") else []
        for step in sorted(steps, key=_number, reverse=True):
            files = [name for name in fs.ls(step, detail=False) if name.endswith(".ckpt")]
            if files:
                return f"{SCHEME}{files[0]}"
        return None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save the checkpoint as a file of its step. Raises OSError when that failed, TypeError for `storage_options`."""
        if storage_options is not None:
            raise TypeError(
                "found storage_options; expected none: a snapshot has no other options than those of CkptdIO()"
            )
        name = PurePath(path).name
        url = f"{SCHEME}{self._job}/step-{checkpoint['global_step']}/{name}"
        with fsspec.filesystem("ckptd").open(url, "wb") as file:
            torch.save(checkpoint, file)
        self._saved[name] = url

    def load_checkpoint(self, path: str | os.PathLike[str], *options: Any, **named: Any) -> dict[str, Any]:
        """Load a checkpoint by its URL, or by the path that Lightning gave it in this process. Raises FileNotFoundError."""
        url = str(path) if str(path).startswith(SCHEME) else self._saved.get(PurePath(path).name, str(path))
        found: dict[str, Any] = super().load_checkpoint(url, *options, **named)
        return found

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Nothing is to be done: memory is used again by itself, and `keep_last` thins out storage."""
        self._saved.pop(PurePath(path).name, None)


def _number(step: str) -> int:
    return int(step.rpartition("-")[2])
