"""Notices that the node's agent is gone, and ends the trainers that it leaves behind: they would train on for ever.

Through pidfds, so that no process is mistaken for another that has its number by now.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable

from ckptd.daemon.launch_events import AgentEnded

WORKERS_MAX = 1024


class AgentWatch:
    """The agent of this node and its trainers. Used from the node's thread only."""

    def __init__(self) -> None:
        self._name = ""
        self._agent: int | None = None
        self._workers: dict[int, int] = {}

    def add(self, name: str, pid: int, workers: Iterable[int]) -> None:
        """Watch the agent of this name, and know its trainers by their process ids."""
        if name != self._name:
            self.close()
            self._name, self._agent = name, _open(pid)
        wanted = {worker for worker in list(workers)[:WORKERS_MAX] if worker > 0}
        for gone in set(self._workers) - wanted:
            os.close(self._workers.pop(gone))
        for new in wanted - set(self._workers):
            descriptor = _open(new)
            if descriptor is not None:
                self._workers[new] = descriptor

    def gone(self) -> list[AgentEnded]:
        """The agent, if its process has ended since the last call; its trainers are killed by then."""
        if self._agent is None:
            return []
        poller = select.poll()
        poller.register(self._agent, select.POLLIN)
        if not poller.poll(0):
            return []
        for descriptor in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        name = self._name
        self.close()
        return [AgentEnded(name, "gone", "its process has ended")]

    def close(self) -> None:
        """Watch nobody any more."""
        for descriptor in [*self._workers.values(), *([] if self._agent is None else [self._agent])]:
            os.close(descriptor)
        self._name, self._agent, self._workers = "", None, {}


def _open(pid: int) -> int | None:
    """A descriptor of the process; None when it is gone already."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
