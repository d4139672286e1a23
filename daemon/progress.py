"""How far long work has come, in bytes, for whoever watches: `ckptd status` shows it, the command line draws a bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Add = Callable[[int], None]


class Progress:
    """The pieces of work that run now, by name. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: dict[str, tuple[int, int]] = {}

    @contextmanager
    def of(self, name: str, total: int) -> Iterator[Add]:
        """Announce work of `total` bytes while the block runs; call what is yielded with the bytes that are done."""
        with self._lock:
            self._work[name] = (0, total)

        def add(done: int) -> None:
            with self._lock:
                so_far, of = self._work.get(name, (0, total))
                self._work[name] = (min(so_far + done, of), of)

        try:
            yield add
        finally:
            with self._lock:
                self._work.pop(name, None)

    def now(self) -> dict[str, dict[str, int]]:
        """What runs at this moment, as JSON values."""
        with self._lock:
            return {name: {"done": done, "total": total} for name, (done, total) in self._work.items()}
