"""How far long work has come, in bytes, for whoever watches: `ckptd status` shows it, the command line draws a bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Add = Callable[[int], None]


@dataclass(slots=True)
class _Work:
    done: int
    total: int
    moved_s: float


class Progress:
    """The pieces of work that run now, by name. May be used from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._work: dict[str, _Work] = {}
        self._clock = clock

    @contextmanager
    def of(self, name: str, total: int) -> Iterator[Add]:
        """Announce work of `total` bytes while the block runs; call what is yielded with the bytes that are done."""
        work = _Work(0, total, self._clock())
        with self._lock:
            self._work[name] = work

        def add(done: int) -> None:
            with self._lock:
                work.done, work.moved_s = min(work.done + done, total), self._clock()

        try:
            yield add
        finally:
            with self._lock:
                if self._work.get(name) is work:
                    del self._work[name]

    def now(self) -> dict[str, dict[str, int]]:
        """What runs at this moment, as JSON values."""
        with self._lock:
            return {name: {"done": work.done, "total": work.total} for name, work in self._work.items()}

    def idle_s(self, name: str) -> float:
        """For how long the work of this name has not moved; 0 where none runs."""
        with self._lock:
            work = self._work.get(name)
            return self._clock() - work.moved_s if work else 0.0
