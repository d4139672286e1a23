"""The files of the segment directory as mere bytes: made within the budget, mapped once, used again when they hold none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from ckptd.ckpt import shm
from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.daemon.records import PARITY_FILE, SLOT_FILE

Make = Callable[[Path, int], None]


class Files:
    """May be used from several threads."""

    def __init__(self, directory: Path, memory_bytes: int) -> None:
        """`memory_bytes`: the most that all files may take; 0 is no limit but the tmpfs's own."""
        self._directory = directory
        self._budget = memory_bytes
        self._lock = threading.RLock()
        self._spare: list[tuple[str, int]] = []
        """(name, size) of those that hold nothing. A slot's file is only given to the same rank again."""
        self._views: dict[str, memoryview] = {}
        """Mappings, which are used again and again: a new one costs a fault for each page."""

    def make(self, name: str, size: int, make: Make = shm.make_file) -> str:
        """A new file, by `make`. Raises MemoryBudgetError."""
        if self._budget:
            used = sum(self.usage().values())
            if used + size > self._budget:
                raise MemoryBudgetError(
                    f"slots and parities take {used} bytes and {size} more are needed, the budget is {self._budget}; "
                    "raise memory_bytes or use fewer slots"
                )
        make(self._directory / name, size)
        return name

    def mapped(self, name: str, size: int, *, write: bool) -> memoryview:
        """The mapping of a file, which is made once. Those of files that are gone since go."""
        with self._lock:
            self._views = {name: view for name, view in self._views.items() if (self._directory / name).exists()}
            if name not in self._views:
                self._views[name] = memoryview(shm.map_file(self._directory / name, size, write=write))
            return self._views[name]

    def usage(self) -> dict[str, int]:
        """Bytes of slots and of parities, whether they hold something now or not."""
        sizes = {"payload": 0, "parity": 0}
        for path in self._directory.iterdir():
            kind = "payload" if SLOT_FILE.fullmatch(path.name) else "parity" if PARITY_FILE.fullmatch(path.name) else ""
            with contextlib.suppress(FileNotFoundError):  # given up at this moment
                if kind:
                    sizes[kind] += path.stat().st_size
        return sizes

    # ---- what holds nothing ---------------------------------------------------------------------------

    def spares(self, prefix: str, size: int) -> list[str]:
        """The spare files of such a name and size."""
        with self._lock:
            return [name for name, found in self._spare if found == size and name.startswith(prefix)]

    def give(self, name: str, size: int) -> None:
        """It holds nothing any more, or nothing yet."""
        with self._lock:
            self._spare.append((name, size))

    def take(self, prefix: str, size: int) -> str | None:
        """A spare file of such a name and size, which is no longer one; None when there is none."""
        with self._lock:
            for name in self.spares(prefix, size):
                self._spare.remove((name, size))
                if (self._directory / name).exists():
                    return name
        return None

    def trim(self, prefix: str, sizes: Collection[int]) -> None:
        """Remove the spare files of such a name that have none of the sizes: nobody will ask for them any more."""
        with self._lock:
            for name, size in [item for item in self._spare if item[0].startswith(prefix) and item[1] not in sizes]:
                self._spare.remove((name, size))
                (self._directory / name).unlink(missing_ok=True)
