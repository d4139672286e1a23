"""Refuses snapshots that would not fit, when their slots are reserved: before anything is taken, not when it runs out."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from ckptd.ckpt.budget import Limit, Need, check_room
from ckptd.ckpt.config import Config
from ckptd.ckpt.groups import group_of
from ckptd.daemon.limits import limits
from ckptd.daemon.records import PARITY_FILE, SLOT_FILE


class Admission:
    """Knows the sizes of the images that this node's ranks asked slots for. May be used from several threads."""

    def __init__(self, config: Config, look: Callable[[Path], Sequence[Limit]] = limits) -> None:
        """`look`: what bounds memory at a directory."""
        self._config, self._look = config, look
        group = group_of(config.whole_map, config.node)
        self._k, self._m = (group.code.k, group.code.m) if group else (1, 0)
        self._lock = threading.Lock()
        self._sizes: dict[int, int] = {}

    def admit(self, rank: int, size: int, ranks: Collection[int], *, beside: int = 0) -> None:
        """Let a rank have slots for images of `size` bytes, or raise MemoryBudgetError. `ranks`: those attached here.

        `beside`: how many files as large the rank is to have beside its slots.

        What the other nodes of the group hold is taken to be as large as what this one does: parity follows the largest.
        """
        with self._lock:
            wanted = {other: held for other, held in self._sizes.items() if other in ranks} | {rank: size}
            need = Need(slots=self._config.slots, payload=sum(wanted.values()), k=self._k, m=self._m)
            slots, parities = _files(self._config.segment_dir)
            counts = dict.fromkeys(wanted, self._config.slots) | {rank: self._config.slots + beside}
            more = _missing(wanted, slots, counts) + max(0, need.parities - sum(parities))
            taken = sum(parities) + sum(size for _, size in slots)
            found = self._look(self._config.segment_dir)
            check_room(need, taken=taken, more=more, limits=found, budget=self._config.memory_bytes)
            self._sizes = wanted


def _files(directory: Path) -> tuple[list[tuple[int, int]], list[int]]:
    """What lies in a segment directory: (rank, bytes) of every slot's file, and the bytes of every parity's."""
    slots, parities = [], []
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # given up at this moment
            if slot := SLOT_FILE.fullmatch(path.name):
                slots.append((int(slot[1]), path.stat().st_size))
            elif PARITY_FILE.fullmatch(path.name):
                parities.append(path.stat().st_size)
    return slots, parities


def _missing(wanted: Mapping[int, int], slots: Sequence[tuple[int, int]], counts: Mapping[int, int]) -> int:
    """The bytes of the files that are still to be made: so many of each rank's size."""
    have = {rank: sum(1 for found in slots if found == (rank, size)) for rank, size in wanted.items()}
    return sum(max(0, counts[rank] - have[rank]) * size for rank, size in wanted.items())
