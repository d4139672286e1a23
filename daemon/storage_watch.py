"""The alarm of a storage that is stuck: it takes nothing any more, and does not fail either.

Training does not wait for storage, and what is on its way there stays in its slot; so nobody would notice.
"""

from __future__ import annotations

import logging
import threading

from ckptd.daemon.jobs import PERSIST, PUBLISH, Jobs
from ckptd.daemon.record import EventRecord

log = logging.getLogger(__name__)

_LOOK_S = 1.0


class StorageWatch:
    """A thread that says so in the log and the event record, once each time, and when storage moves again.

    `close` must be called.
    """

    def __init__(self, jobs: Jobs, record: EventRecord, where: str, stuck_after_s: float) -> None:
        """`where`: the storage in a user's words; '' where there is none. `stuck_after_s`: 0 is never."""
        self._jobs, self._record, self._where, self._after_s = jobs, record, where, stuck_after_s
        self._told = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage watch", daemon=True)
        if where and stuck_after_s:
            self._thread.start()

    def status(self) -> dict[str, object]:
        """For `ckptd status`: where storage is, for how many seconds it has been stuck (0: not), what went wrong last."""
        return {"where": self._where, "stuck_s": self._stuck_s(), "problem": self._jobs.storage_problem}

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _stuck_s(self) -> float:
        idle_s = max(self._jobs.progress.idle_s(name) for name in (PERSIST, PUBLISH))
        return idle_s if self._after_s and idle_s >= self._after_s else 0.0

    def _run(self) -> None:
        while not self._closing.wait(min(_LOOK_S, self._after_s / 4)):
            self.look()

    def look(self) -> None:
        """Say what has changed since the last look."""
        stuck_s = self._stuck_s()
        if bool(stuck_s) == self._told:
            return
        self._told = bool(stuck_s)
        if not stuck_s:
            self._record.write("storage_moves", {"storage": self._where})
            return
        log.warning(
            "storage %s has taken nothing for %.0f s; training and snapshots in memory go on, but no step is persisted: "
            "check the storage and the way to it",
            self._where, stuck_s,
        )  # fmt: skip
        self._record.write("storage_stuck", {"storage": self._where, "seconds": stuck_s, **self._sent()})

    def _sent(self) -> dict[str, object]:
        work = self._jobs.progress.now().get(PERSIST)
        return {"done": work["done"], "total": work["total"]} if work else {}
