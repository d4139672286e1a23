"""Write other tools' files as a persisted step that training can start from.

Run by `ckptd import` as a process of its own, `python -m ckptd.integrations.importing`, which reads one line of JSON:

    source                 a file or directory
    storage, job, step     where to; the step may be null where the files say it
    memory, time_s         what opening somebody's pickles may take, or null
"""

from __future__ import annotations

import mmap
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptd.ckpt import manifest, shelf
from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import StorageError, UsageError
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.storage import Storage
from ckptd.ckpt.tables import STEP_MAX
from ckptd.integrations.exchange.content import Add, Content
from ckptd.integrations.exchange.images import Rank, images_of
from ckptd.integrations.exchange.places import check_space
from ckptd.integrations.exchange.progress import Teller, answer
from ckptd.integrations.exchange.readers import content_at

EPOCH = 1
"""Of every imported step: the job that starts from it has no epochs yet."""


def import_step(asked: dict[str, Any]) -> dict[str, Any]:
    """Import it; return the step, its ranks, tensors and bytes, and what loads it.

    Raises UsageError, StateError, CorruptionError, StorageError. Nothing is published then, and nothing is left.
    """
    root, job = Path(asked["storage"]), str(asked["job"])
    with content_at(Path(asked["source"]), asked["memory"], asked["time_s"]) as content:
        images, restorable = images_of(content, job)
        version = Version(EPOCH, _step(asked["step"], content, restorable=restorable))
        check_new(root, job, version)
        total = sum(image.layout.size for image in images)
        check_space(root.absolute(), total, "the import")
        place = Directory(root, job)
        storage, tell = Storage(place, job), Teller(total)
        try:
            made = [_write(place, version, rank, image, tell.add) for rank, image in enumerate(images)]
            storage.publish(version, made)
        finally:
            place.abandon(version)  # nothing is there any more once it is published
    _check_published(storage, version, made)
    return {
        "job": job, "epoch": version.epoch, "step": version.step, "ranks": len(images), "bytes": total,
        "tensors": len(content.tensors), "values": len(content.objects),
        "loads": "Checkpointer.restore" if restorable else "ckptd.dcp.load",
        "directory": str(root / job / manifest.dir_name(version)),
    }  # fmt: skip


def check_new(root: Path, job: str, version: Version) -> None:
    """Raise UsageError where the job has steps on this storage, or something is being written of another one."""
    if not (root / job).exists():
        return
    steps = shelf.published(root, job)
    if steps:
        raise UsageError(
            f"job {job} has {len(steps)} steps on {root}, the newest is {steps[0].version}; import into a job of a new name "
            "and start from that"
        )
    unpublished = f".writing-{manifest.dir_name(version)}"
    if any(item.path.name != unpublished for item in shelf.leftovers(root, job)):
        raise UsageError(
            f"job {job} writes to {root}, or has left something there (`ckptd gc`); import into another job"
        )


def _step(asked: int | None, content: Content, *, restorable: bool) -> int:
    step = content.step if asked is None else asked
    if step is None:
        if restorable:
            raise UsageError(
                "the files do not say which step they are of; add --step with the number of finished updates"
            )
        return 0
    if not 0 <= step < STEP_MAX:
        raise UsageError(f"step {step}: expected 0 to {STEP_MAX - 1}")
    return step


def _write(place: Directory, version: Version, rank: int, image: Rank, add: Add) -> Image:
    layout = image.layout
    with place.making(version, rank, layout.size) as path:
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), layout.size)
        memory[: layout.data_start] = layout.header_for(version)
        add(layout.data_start)
        raw = torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))
        for entry in layout.entries:
            first, last = layout.spans[entry.name]
            if first < last:
                tensor = image.tensors[entry.name]
                tensor.copy_to(raw[first:last].view(tensor.dtype).view(tensor.shape))
            add(last - first)
        memory.flush()
    return place.made(version, rank, layout.size)


def _check_published(storage: Storage, version: Version, made: list[Image]) -> None:
    steps, _ = storage.steps()
    if not any(step.manifest.version == version and step.manifest.images == tuple(made) for step in steps):
        raise StorageError(
            f"{version} is not what was written: somebody else wrote one of that name; look at `ckptd list`"
        )


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    sys.exit(answer(import_step))
