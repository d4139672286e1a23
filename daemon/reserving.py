"""Makes the slots that trainers reserve, beside their training: pages for half a gigabyte take a sixth of a second."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from ckptd.ckpt.errors import CkptdError
from ckptd.daemon.segments import Segments

log = logging.getLogger(__name__)
_POLL_S = 0.002


class Reserving:
    """One thread for each rank whose slots are being made. May be used from several threads."""

    def __init__(self, segments: Segments, count: int) -> None:
        """`count` slots for each rank."""
        self._segments, self._count = segments, count
        self._lock = threading.Lock()
        self._making: dict[int, _Making] = {}
        self._closed = False

    def reserve(self, rank: int, size: int, wait_s: float) -> list[Path]:
        """Begin to make a rank's slots for images of `size` bytes, those that are missing; wait up to `wait_s` for them.

        Returns the files if all of them stand by then, else none. Raises what their making raised by then, which is
        MemoryBudgetError; later it is logged, and whoever asks for a slot learns of it.
        """
        with self._lock:
            if self._closed:
                return []
            making = self._making[rank] = _Making(self._segments, rank, size, self._count, self._making.get(rank))
            making.start()
        if wait_s:
            making.join(wait_s)
            if making.problem is not None:
                raise making.problem
        return making.files

    def settle(self, rank: int, size: int, limit_s: float) -> None:
        """Return as soon as the rank need not wait for a slot's file: a spare one stands, or none is being made."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with self._lock:
                making = self._making.get(rank)
            if making is None or not making.is_alive() or self._segments.has_spare(rank, size):
                return
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Make no more, and wait for the files that have been begun: none is left behind in a directory that was cleared."""
        with self._lock:
            self._closed, making = True, list(self._making.values())
        for each in making:
            each.stopped = True
        for each in making:
            each.join()


class _Making(threading.Thread):
    """The files of one rank."""

    def __init__(self, segments: Segments, rank: int, size: int, count: int, before: _Making | None) -> None:
        super().__init__(name=f"reserve-{rank}", daemon=True)
        self._segments, self._wanted, self._before = segments, (rank, size, count), before
        self.files: list[Path] = []
        self.problem: CkptdError | OSError | None = None
        self.stopped = False

    def run(self) -> None:
        if self._before is not None:  # of a layout that is not wanted any more
            self._before.stopped = True
            self._before.join()
            self._before = None
        try:
            self.files = self._segments.reserve(*self._wanted, going_on=lambda: not self.stopped)
        except (CkptdError, OSError) as error:
            self.problem = error
            log.warning("rank %d: its slots could not all be made: %s", self._wanted[0], error)
