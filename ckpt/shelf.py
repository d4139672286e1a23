"""A storage root looked at from outside, without daemons: whose steps are there, how large, how old, whole or not.

Reads names, sizes and manifests; no image is opened. Links are never followed below a job's directory.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ckptd.ckpt import disk, manifest
from ckptd.ckpt.errors import CkptdError, CorruptionError, StorageError
from ckptd.ckpt.model import JOB_NAME, Version
from ckptd.ckpt.retention import Kept

_UNPUBLISHED = (".writing-", ".removing-")


@dataclass(frozen=True, slots=True)
class Published:
    """A directory with a step's name."""

    version: Version
    world: int
    """The ranks of its manifest; 0 where that can't be read."""
    nbytes: int
    """What its files take."""
    written_at: float
    """Seconds since 1970."""
    problem: str
    """Why it can't be restored; empty where it can."""

    @property
    def kept(self) -> Kept:
        return Kept(self.version, self.written_at, not self.problem)


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is being written or removed, or was when its process died."""

    path: Path
    nbytes: int
    touched_at: float
    """When it was last written to; seconds since 1970."""


def jobs(root: Path) -> list[str]:
    """The jobs that have steps, or beginnings of some, below a storage root. Raises StorageError."""
    return [path.name for path in _entries(root) if JOB_NAME.fullmatch(path.name) and _has_steps(path)]


def published(root: Path, job: str) -> list[Published]:
    """A job's steps, newest first; none where the job is not known. Raises StorageError."""
    found = []
    for path in _entries(root / job):
        version = manifest.version_of(path.name)
        if version is not None:
            found.append(_published(path, job, version))
    return sorted(found, key=lambda step: step.version, reverse=True)


def leftovers(root: Path, job: str) -> list[Leftover]:
    """What is not, or no longer, a published step, and files of writers that died in those that are. Raises StorageError."""
    found = []
    for path in _entries(root / job):
        if _is_unpublished(path.name) and _is_dir(path):
            sizes = list(_sizes(path))
            touched = [path.lstat().st_mtime, *(at for _, at in sizes)]
            found.append(Leftover(path, sum(size for size, _ in sizes), max(touched)))
        elif manifest.version_of(path.name) is not None and _is_dir(path):
            for file in path.glob(f"*{disk.UNFINISHED}"):
                status = file.lstat()
                found.append(Leftover(file, status.st_size, status.st_mtime))
    return sorted(found, key=lambda item: item.path)


def discard(leftover: Leftover) -> None:
    """Remove what was left behind; a directory by its name first, so that nobody can publish it any more.

    Raises StorageError. What somebody else removed is fine.
    """
    path = leftover.path
    try:
        if not _is_dir(path):
            path.unlink(missing_ok=True)
            return
        removing = path.with_name(path.name.replace(".writing-", ".removing-", 1))
        if removing != path and not removing.exists():
            path.rename(removing)
            path = removing
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror}") from error


def _published(path: Path, job: str, version: Version) -> Published:
    if not _is_dir(path):
        return Published(version, 0, 0, path.lstat().st_mtime, f"{path} is no directory")
    nbytes = sum(size for size, _ in _sizes(path))
    described = path / manifest.MANIFEST
    try:
        written_at = described.lstat().st_mtime
    except OSError:
        written_at = path.lstat().st_mtime
    try:
        found = manifest.decode(disk.read_small(described, manifest.MANIFEST_MAX), path.name)
        if found.job != job:
            raise CorruptionError(f"{path.name} belongs to job {found.job!r}")
        for image in found.images:
            _check_size(path / manifest.file_name(image.rank), image.size)
    except CkptdError as error:
        return Published(version, 0, nbytes, written_at, str(error))
    return Published(version, found.world, nbytes, written_at, "")


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        raise StorageError(f"{path} has {found.st_size} bytes, expected a file of {size}")


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError as error:
        raise StorageError(f"{directory} does not exist; is the storage mounted, and the job's name right?") from error
    except OSError as error:
        raise StorageError(f"cannot read {directory}: {error.strerror}") from error


def _has_steps(directory: Path) -> bool:
    try:
        return any(manifest.version_of(p.name) is not None or _is_unpublished(p.name) for p in directory.iterdir())
    except OSError:
        return False


def _is_unpublished(name: str) -> bool:
    return any(name.startswith(b) and manifest.version_of(name.removeprefix(b)) is not None for b in _UNPUBLISHED)


def _is_dir(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _sizes(directory: Path) -> Iterator[tuple[int, float]]:
    """Size and time of every file below a directory; what goes away meanwhile is left out."""
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                status = Path(folder, name).lstat()
            except FileNotFoundError:
                continue
            yield status.st_size, status.st_mtime
