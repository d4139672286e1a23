"""What became of the snapshots, and what to do about failures: training never dies of one unless it was asked to."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import Literal

from ckptd.ckpt.errors import UsageError

logger = logging.getLogger("ckptd")
OnError = Literal["warn", "raise"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the Checkpointer was made."""

    captured: int = 0
    """Snapshots whose images the daemon has recorded."""
    skipped: int = 0
    """Snapshots that were left out because no slot was free."""
    waited: int = 0
    """Snapshots that had to wait for a slot, with when_full="wait"."""
    waited_s: float = 0.0
    """Seconds that they waited; the training does so at the next update, unless its step is longer."""
    aborted: int = 0
    """Snapshots that were discarded because the state changed behind the optimizer's back."""
    failed: int = 0
    """Snapshots that were lost to an error, and other failed calls."""
    last_error: str | None = None
    blocked_s: float = 0.0
    """Seconds that the trainer spent in `step` and in the fence before an update."""


class Journal:
    """Counts, warns once per cause, and keeps the first failure for whoever asked to have it raised."""

    def __init__(self, on_error: OnError) -> None:
        if on_error not in ("warn", "raise"):
            raise UsageError(f"found on_error={on_error!r}, expected 'warn' or 'raise'")
        self._raises = on_error == "raise"
        self._lock = threading.Lock()  # the worker counts too
        self._stats = Stats()
        self._warned: set[str] = set()
        self._pending: Exception | None = None

    def anew(self) -> Journal:
        """Another one of the same policy, with a lock of its own and nothing counted."""
        return Journal("raise" if self._raises else "warn")

    @property
    def stats(self) -> Stats:
        return self._stats

    def captured(self) -> None:
        """One more snapshot is recorded."""
        with self._lock:
            self._stats = replace(self._stats, captured=self._stats.captured + 1)

    def skipped(self, what: str) -> None:
        """One snapshot was left out: no failure, so nothing is raised."""
        with self._lock:
            self._stats = replace(self._stats, skipped=self._stats.skipped + 1)
        self._warn("skipped", what)

    def waited(self, seconds: float) -> None:
        """A snapshot got its slot late."""
        with self._lock:
            stats = self._stats
            self._stats = replace(stats, waited=stats.waited + 1, waited_s=stats.waited_s + seconds)
        self._warn("waited", f"ckptd: a snapshot waited {seconds:.3f} s for a slot; the daemon cannot keep up")

    def aborted(self, error: Exception) -> None:
        """One snapshot was discarded."""
        with self._lock:
            self._stats = replace(self._stats, aborted=self._stats.aborted + 1, last_error=str(error))
            self._pending = self._pending or error
        self._warn(str(error), str(error))  # few, as what was found changing is copied at once afterwards

    def failed(self, error: Exception) -> None:
        """One snapshot, or another call, failed."""
        text = f"{type(error).__name__}: {error}"
        with self._lock:
            self._stats = replace(self._stats, failed=self._stats.failed + 1, last_error=text)
            self._pending = self._pending or error
        self._warn(type(error).__name__, text)

    def blocked(self, seconds: float) -> None:
        """The trainer waited."""
        with self._lock:
            self._stats = replace(self._stats, blocked_s=self._stats.blocked_s + seconds)

    def raise_pending(self) -> None:
        """Raise the first failure since the last call, with on_error="raise"."""
        with self._lock:
            error, self._pending = self._pending, None
        if error is not None and self._raises:
            raise error

    def _warn(self, cause: str, text: str) -> None:
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning("%s (training goes on; further cases are only counted in Checkpointer.stats)", text)
