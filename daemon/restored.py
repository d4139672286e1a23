"""Images that were brought to a node for its trainers to read: files on the tmpfs, removed when they have been read."""

from __future__ import annotations

import shutil
from pathlib import Path

from ckptd.ckpt import shm
from ckptd.ckpt.model import Version


class Restored:
    """A directory for each version. Methods may be called from several threads, for different versions."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def directory_of(self, version: Version) -> Path:
        """Where the images of a version are put; it exists."""
        return shm.private_dir(self._directory / _name(version))

    def make(self, path: Path, size: int) -> memoryview:
        """A new file below `directory_of` and its writable view, not touched yet. Raises MemoryBudgetError."""
        path.unlink(missing_ok=True)
        shm.reserve_file(path, size)
        return memoryview(shm.map_file(path, size, write=True))

    def make_empty(self, path: Path, size: int) -> memoryview:
        """The same for a file that takes no memory yet: `shm.reserve_part` gives it some."""
        path.unlink(missing_ok=True)
        shm.empty_file(path, size)
        return memoryview(shm.map_file(path, size, write=True))

    def release(self, version: Version) -> None:
        """The trainers have read it."""
        shutil.rmtree(self._directory / _name(version), ignore_errors=True)

    def clear(self) -> None:
        """Nobody reads any more."""
        shutil.rmtree(self._directory, ignore_errors=True)


def _name(version: Version) -> str:
    return f"e{version.epoch}-s{version.step}"
