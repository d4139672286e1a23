"""Which persisted step is exported, and its images as files: where they stand, or brought from an object store."""

from __future__ import annotations

import contextlib
import mmap
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptd.ckpt import disk
from ckptd.ckpt.errors import CkptdError, StorageError, UsageError
from ckptd.ckpt.manifest import file_name
from ckptd.ckpt.model import Version
from ckptd.ckpt.places import root_of
from ckptd.ckpt.storage import Step, Storage
from ckptd.daemon import bars


@contextmanager
def stored(step: str, root: str, job: str, beside: Path, *, quiet: bool) -> Iterator[tuple[Version, list[Path]]]:
    """The step's images where they were persisted, every byte checked first.

    Those of an object store are brought to a directory beside `beside`, which is gone afterwards. Raises UsageError,
    CkptdError where there is no such step, StorageError, CorruptionError.
    """
    found = root_of(root)
    with contextlib.closing(Storage(found, job)) as storage:
        steps, problems = storage.steps()
        version = pick(step, [item.manifest.version for item in steps], "; ".join(problems[:3]))
        chosen = next(item for item in steps if item.manifest.version == version)
        if isinstance(found, Path):
            _check(storage, chosen, quiet=quiet)
            yield version, [chosen.path / file_name(image.rank) for image in chosen.manifest.images]
            return
        target = beside.resolve()
        scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.images")
        try:
            disk.make_dir(scratch)
            yield version, _brought(storage, chosen, scratch, quiet=quiet)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _check(storage: Storage, step: Step, *, quiet: bool) -> None:
    work: dict[str, int] = {"done": 0, "total": sum(image.size for image in step.manifest.images)}
    with bars.bar(f"checking {step.manifest.version}", "read", lambda: {"read": work}, quiet=quiet):
        for image in step.manifest.images:
            storage.check(step, image.rank)
            work["done"] += image.size


def _brought(storage: Storage, step: Step, scratch: Path, *, quiet: bool) -> list[Path]:
    """The images as files in `scratch`. Nothing is fetched where there is no room for all."""
    work: dict[str, int] = {"done": 0, "total": sum(image.size for image in step.manifest.images)}
    free = shutil.disk_usage(scratch).free
    if free < work["total"]:
        raise StorageError(
            f"the images of {step.manifest.version} take {work['total']} bytes on their way, {scratch.parent} has {free} "
            "free; free some, or choose another disk"
        )

    def add(count: int) -> None:
        work["done"] += count

    paths = []
    with bars.bar(f"fetching {step.manifest.version}", "read", lambda: {"read": work}, quiet=quiet):
        for image in step.manifest.images:
            path = scratch / file_name(image.rank)
            with disk.filled_in_place(path, image.size) as room, room.open("r+b") as file:
                storage.read(step, image.rank, memoryview(mmap.mmap(file.fileno(), image.size)), add)
            paths.append(path)
    return paths


def pick(step: str, known: list[Version], problems: str = "") -> Version:
    """The newest of the versions that `step` names. Raises UsageError, CkptdError."""
    fitting = known
    if step != "latest":
        if not (step.isascii() and step.isdigit()):
            raise UsageError(f"step {step!r}: expected a number or 'latest'")
        fitting = [version for version in known if version.step == int(step)]
    if not fitting:
        there = ", ".join(str(version.step) for version in sorted(known, reverse=True)) or "none"
        more = f"; {problems}" if problems else ""
        raise CkptdError(f"step {step} can't be recovered; recoverable steps: {there} (`ckptd list` says why){more}")
    return max(fitting)
