"""Write other tools' files as a persisted step that training can start from.

Run by `ckptd import` as a process of its own, `python -m ckptd.integrations.importing`, which reads one line of JSON:

    source                 a file or directory
    storage, job, step     where to, a directory or an object store's URL; the step may be null where the files say it
    memory, time_s         what opening somebody's pickles may take, or null
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ckptd.ckpt import manifest
from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import StorageError, UsageError
from ckptd.ckpt.model import Image, Version
from ckptd.ckpt.places import root_of, shelf_at
from ckptd.ckpt.shelf import Shelf
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
    root, job = root_of(str(asked["storage"])), str(asked["job"])
    with content_at(Path(asked["source"]), asked["memory"], asked["time_s"]) as content:
        images, restorable = images_of(content, job)
        version = Version(EPOCH, _step(asked["step"], content, restorable=restorable))
        shelf = shelf_at(root)
        check_new(shelf, job, version)
        total, largest = sum(image.layout.size for image in images), max(image.layout.size for image in images)
        with (
            contextlib.closing(Storage(shelf.place(job), job)) as storage,
            target(root, job, storage, total, largest) as keep,
        ):
            tell = Teller(total if isinstance(root, Path) else 2 * total)  # made, then sent
            with contextlib.ExitStack() as undo:
                undo.callback(_abandon, storage, version)
                made = [keep(version, rank, image, tell.add) for rank, image in enumerate(images)]
                storage.publish(version, made)
                undo.pop_all()
            _check_published(storage, version, made)
    return {
        "job": job, "epoch": version.epoch, "step": version.step, "ranks": len(images), "bytes": total,
        "tensors": len(content.tensors), "values": len(content.objects),
        "loads": "Checkpointer.restore" if restorable else "ckptd.dcp.load",
        "directory": f"{root}/{job}/{manifest.dir_name(version)}",
    }  # fmt: skip


def _abandon(storage: Storage, version: Version) -> None:
    with contextlib.suppress(StorageError):  # it is said why the import failed, and `ckptd gc` finds what is left
        storage.abandon(version)


def check_new(shelf: Shelf, job: str, version: Version) -> None:
    """Raise UsageError where the job has steps on this storage, or something is being written of another one."""
    if not shelf.knows(job):
        return
    steps = shelf.published(job)
    if steps:
        raise UsageError(
            f"job {job} has {len(steps)} steps on {shelf.where}, the newest is {steps[0].version}; import into a job of a "
            "new name and start from that"
        )
    own = (f".writing-{manifest.dir_name(version)}", manifest.dir_name(version))
    if any(item.where.rpartition("/")[2] not in own for item in shelf.leftovers(job)):
        raise UsageError(
            f"job {job} writes to {shelf.where}, or has left something there (`ckptd gc`); import into another job"
        )


Keep = Callable[[Version, int, Rank, Add], Image]
"""Writes one rank's image of a version that is not published yet; returns it with its digest."""


@contextmanager
def target(root: Path | str, job: str, storage: Storage, total: int, largest: int) -> Iterator[Keep]:
    """Where the images are made: in the directory where they stay, or one by one in a temporary one, from where each goes
    to the object store. Raises StorageError where there is no room for them."""
    if isinstance(root, Path):
        check_space(root, total, "the import")
        yield partial(_write, Directory(root, job))
        return
    with tempfile.TemporaryDirectory(prefix="ckptd-import-") as folder:
        check_space(Path(folder), largest, "an image on its way (TMPDIR)")
        here = Directory(Path(folder), job)

        def keep(version: Version, rank: int, image: Rank, add: Add) -> Image:
            made = _write(here, version, rank, image, add)
            path = here.unpublished(version) / manifest.file_name(rank)
            with path.open("rb") as file:
                data = memoryview(mmap.mmap(file.fileno(), made.size, prot=mmap.PROT_READ))
            storage.write(version, made, data, add)
            path.unlink()
            return made

        yield keep


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
