"""SIGTERM with a grace time: it is remembered until the training comes to a step, and only then has its effect."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from types import FrameType
from typing import Literal

from ckptd.ckpt.errors import UsageError

GRACE_MAX_S = 3600.0
ECHO_S = 1.0
"""Another signal that comes so soon is the same word: schedulers tell a process and its group, and torchrun passes it on."""


class Sigterm:
    """Listens for the first SIGTERM. A later one, or the end of the grace time, lets the old handler have its way."""

    def __init__(self, grace_s: float) -> None:
        """Replace the handler. Raises UsageError outside of the main thread, where Python allows no handlers."""
        if isinstance(grace_s, bool) or not isinstance(grace_s, int | float) or not 0.0 < grace_s <= GRACE_MAX_S:
            raise UsageError(
                f"found sigterm_grace_s={grace_s!r}, expected seconds, more than 0 and {GRACE_MAX_S:.0f} at most"
            )
        if threading.current_thread() is not threading.main_thread():
            raise UsageError("sigterm_grace_s needs the main thread: make the Checkpointer there, or leave it out")
        self._grace_s = float(grace_s)
        self._came: float | None = None
        self._pid = os.getpid()
        self._is_overdue = False
        # Not Events: a handler may interrupt itself, and would wait for their locks for ever. `put` is reentrant.
        self._words: queue.SimpleQueue[Literal["told", "over"]] = queue.SimpleQueue()
        # Started now, not by the handler: that may have interrupted this very thread in the middle of starting one.
        threading.Thread(target=self._watch, name="ckptd-sigterm", daemon=True).start()
        self._before = signal.signal(signal.SIGTERM, self._on)

    @property
    def came(self) -> bool:
        """Whether this process was told to end."""
        return self._came is not None

    @property
    def left_s(self) -> float:
        """What is left of the grace time, of all of it before the signal."""
        spent_s = 0.0 if self._came is None else time.monotonic() - self._came
        return max(0.0, self._grace_s - spent_s)

    def finish(self) -> None:
        """Put the old handler back, and do now what it would have done when the signal came, if it has."""
        came, self._came = self.came, None
        self.close()
        if came:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Put the old handler back, unless somebody else has taken its place."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == self._on:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)

        if os.getpid() == self._pid:
            self._words.put("over")

    def _on(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        first, self._came = self._came is None, self._came or now
        if os.getpid() != self._pid or self._is_overdue or now - self._came > ECHO_S:
            self.finish()  # somebody insists, or a forked process inherited this handler and has no steps
        elif first:
            self._words.put("told")

    def _watch(self) -> None:
        """A training that comes to no step must not outstay its time because of us."""
        if self._words.get() == "over":
            return
        until = time.monotonic() + self._grace_s
        try:
            while self._words.get(timeout=max(0.0, until - time.monotonic())) != "over":
                pass
        except queue.Empty:
            self._is_overdue = True
            os.kill(self._pid, signal.SIGTERM)
