"""A storage root that is a directory, looked at from outside. Links are never followed below a job's directory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ckptd.ckpt import disk, manifest
from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import StorageError
from ckptd.ckpt.model import JOB_NAME, Version
from ckptd.ckpt.place import Place
from ckptd.ckpt.shelf import Leftover, Published, judged

_UNPUBLISHED = (".writing-", ".removing-")
_IS_BROKEN = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a manifest that is not there; anything else may be over in a moment."""


class FileShelf:
    """A directory: a `Shelf`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def where(self) -> str:
        return str(self._root)

    def place(self, job: str) -> Place:
        return Directory(self._root, job)

    def jobs(self) -> list[str]:
        return [path.name for path in _entries(self._root) if JOB_NAME.fullmatch(path.name) and _has_steps(path)]

    def knows(self, job: str) -> bool:
        return (self._root / job).exists()

    def published(self, job: str) -> list[Published]:
        found = []
        for path in _entries(self._root / job):
            version = manifest.version_of(path.name)
            if version is not None:
                found.append(_published(path, job, version))
        return sorted(found, key=lambda step: step.version, reverse=True)

    def leftovers(self, job: str) -> list[Leftover]:
        found = []
        for path in _entries(self._root / job):
            if _is_unpublished(path.name) and _is_dir(path):
                files = list(_files(path))
                touched = [path.lstat().st_mtime, *(status.st_mtime for _, status in files)]
                found.append(Leftover(str(path), sum(status.st_size for _, status in files), max(touched)))
            elif manifest.version_of(path.name) is not None and _is_dir(path):
                for file in path.glob(f"*{disk.UNFINISHED}"):
                    status = file.lstat()
                    found.append(Leftover(str(file), status.st_size, status.st_mtime))
        return sorted(found, key=lambda item: item.where)

    def discard(self, leftover: Leftover) -> None:
        """A directory by its name first."""
        path = Path(leftover.where)
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
        return Published(version, 0, 0, path.lstat().st_mtime, f"{path} is no directory", path.is_symlink())
    files = list(_files(path))
    nbytes = sum(status.st_size for _, status in files)
    here = {file.name: status for file, status in files if file.parent == path and stat.S_ISREG(status.st_mode)}
    described = here.get(manifest.MANIFEST)
    at = described.st_mtime if described else path.lstat().st_mtime
    try:
        content = disk.read_small(path / manifest.MANIFEST, manifest.MANIFEST_MAX)
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno not in _IS_BROKEN:
            raise
        return Published(version, 0, nbytes, at, str(error))
    return judged(job, version, content, {name: status.st_size for name, status in here.items()}, nbytes, at)


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


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file below a directory; what goes away meanwhile is left out."""
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                yield Path(folder, name), Path(folder, name).lstat()
            except FileNotFoundError:
                continue
