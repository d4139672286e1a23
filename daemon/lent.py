"""Files that trainers stage a snapshot in before it has a slot. One becomes the slot's, with what stands in it.

Whoever was lent a file holds a shared lock (flock) on it while anything may write to it, or still reads what was staged. The
kernel drops the lock with the last descriptor: so a trainer that fails or dies gives its file back without a word, and
one that hangs keeps it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.daemon.files import Files
from ckptd.daemon.records import slot_file

LENT_MAX = 2
"""Files that a rank can have at a time: one of a save that still runs, and one for the next."""


class Lent:
    """May be used from several threads."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory, self._files = directory, files
        self._lock = threading.Lock()
        self._out: dict[str, tuple[int, int]] = {}
        """Rank and size of each, by name."""

    def lend(self, rank: int, size: int, keep: int = 0) -> Path:
        """A file of `size` bytes for the rank: a spare one, if `keep` others are left for its slots, or a new one.

        More spare ones than `keep` are removed then.

        Raises MemoryBudgetError, also when the rank has LENT_MAX of them.
        """
        self.take_back(rank, size)
        with self._lock:
            out = [name for name, (holder, _) in self._out.items() if holder == rank]
        if len(out) >= LENT_MAX:
            raise MemoryBudgetError(
                f"rank {rank} still holds {len(out)} files to stage in, and may hold no more; let go of old saves"
            )
        prefix = f"rank-{rank:05d}."
        name = self._files.take(prefix, size) if len(self._files.spares(prefix, size)) > keep else None
        name = name or self._files.make(slot_file(rank), size)
        for _ in self._files.spares(prefix, size)[keep:]:  # made while a save that had failed still held another one
            surplus = self._files.take(prefix, size)
            if surplus is not None:
                (self._directory / surplus).unlink(missing_ok=True)
        with self._lock:
            self._out[name] = rank, size
        return self._directory / name

    def adopt(self, name: str, rank: int, size: int) -> bool:
        """Whether the file of this name is lent to the rank, and of this size; then it is a slot's from now on."""
        with self._lock:
            if self._out.get(name) != (rank, size) or not (self._directory / name).exists():
                return False
            del self._out[name]
        return True

    def take_back(self, rank: int, size: int) -> None:
        """Make spare what nobody holds any more of the rank's; remove it, if it is not of `size` bytes."""
        with self._lock:
            for name, (holder, found) in list(self._out.items()):
                if holder == rank and self._reclaim(name, rank, size, found):
                    del self._out[name]

    def _reclaim(self, name: str, rank: int, size: int, found: int) -> bool:
        """Take a file back unless somebody has locked it.

        It gets another name under the lock: who was lent it and is late with locking finds it gone, and writes nothing.
        """
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if found != size:
                path.unlink()
            else:
                anew = slot_file(rank)
                path.rename(self._directory / anew)
                self._files.give(anew, size)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True
