"""Notices that a trainer process is gone, through pidfds: no polling of /proc, no mistaking a reused process id."""

from __future__ import annotations

import os
import select

from ckptd.daemon.events import RankGone


class TrainerWatch:
    """The trainers of this node by rank. Used from the node's thread only."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, int]] = {}

    def add(self, rank: int, pid: int) -> None:
        """Watch a trainer; a newer process of the same rank replaces the older one."""
        old = self._watched.get(rank)
        if old and old[0] == pid:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return  # of another pid namespace, or gone already: its socket calls will end on their own
        self._forget(rank)
        self._watched[rank] = (pid, descriptor)

    def gone(self) -> list[RankGone]:
        """The trainers that ended since the last call."""
        if not self._watched:
            return []
        poller = select.poll()
        ranks = {}
        for rank, (_, descriptor) in self._watched.items():
            poller.register(descriptor, select.POLLIN)
            ranks[descriptor] = rank
        ended = [RankGone(ranks[fd], self._watched[ranks[fd]][0]) for fd, _ in poller.poll(0)]
        for event in ended:
            self._forget(event.rank)
        return ended

    def close(self) -> None:
        for rank in list(self._watched):
            self._forget(rank)

    def _forget(self, rank: int) -> None:
        old = self._watched.pop(rank, None)
        if old:
            os.close(old[1])
