"""Memory for bytes on their way: windows of a few MiB of each symbol, which are used again and again."""

from __future__ import annotations

from collections.abc import Iterable
from queue import Empty, LifoQueue

from ckptd.ckpt.model import PIECE

WINDOW = 32
"""Pieces of each symbol that are read and coded at a time: 8 MiB. Two windows of k symbols are in memory, no more.

Measured (benchmarks.protect, 4+2 and 6+2, CPU of sealing beside the floor): 4 MiB 1.37 and 1.44, 8 MiB 1.15 and 1.24,
16 MiB 1.06 and 1.15, at 34 and 51, 66 and 99, 130 and 195 MiB a daemon. A rebuild takes as long with each of them.
"""


class Buffers:
    """Window-sized buffers that are used again: the first touch of memory costs several times the copy.

    Methods may be called from many threads.
    """

    def __init__(self) -> None:
        self._free: LifoQueue[bytearray] = LifoQueue()

    def take(self, count: int) -> list[bytearray]:
        """So many buffers, with anything at all in them. They belong to the caller until `give`."""
        return [self._one() for _ in range(count)]

    def give(self, buffers: Iterable[bytearray]) -> None:
        """Nobody writes to these any more."""
        for buffer in buffers:
            self._free.put(buffer)

    def _one(self) -> bytearray:
        try:
            return self._free.get_nowait()
        except Empty:
            return bytearray(WINDOW * PIECE)
