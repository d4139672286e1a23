"""How fast the data plane may go: a cap on bytes and a cap on CPU time, each a token bucket."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from ckptd.ckpt.model import PIECE
from ckptd.daemon.ranges import PIECES_MAX

_GRAIN_S = 0.125
_BURST_S = 0.25


class TokenBucket:
    """Amounts at a mean rate. What is taken beyond the level is owed, so everyone waits for those who came before.

    Pure: the time is an argument, in seconds from any origin; it does not go back.
    """

    def __init__(self, rate: float, burst: float) -> None:
        """`rate` amounts a second (> 0); `burst` is what may be saved up while nobody takes anything."""
        self._rate, self._burst = rate, burst
        self._level, self._at = burst, float("-inf")

    def take(self, amount: float, now: float) -> float:
        """Take the amount; return how many seconds to wait until it was there."""
        self._level = min(self._burst, self._level + max(0.0, now - self._at) * self._rate) - amount
        self._at = now
        return max(0.0, -self._level / self._rate)


class Throttle:
    """The caps of one node, over all its connections. Methods may be called from many threads."""

    def __init__(self, *, bandwidth_bytes_s: int = 0, cpu_share: float = 0.0) -> None:
        """Bytes a second that the node sends and reads together, and cores that its threads may take; 0 is no cap."""
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._bytes = TokenBucket(bandwidth_bytes_s, bandwidth_bytes_s * _BURST_S) if bandwidth_bytes_s else None
        self._cpu = TokenBucket(cpu_share, cpu_share * _BURST_S) if cpu_share else None
        wanted = int(bandwidth_bytes_s * _GRAIN_S) // PIECE if bandwidth_bytes_s else PIECES_MAX
        self.grain: int = max(1, min(PIECES_MAX, wanted))
        """Pieces to move between two calls of `bytes`: an eighth of a second's worth, so that the cap is kept smoothly."""

    def bytes(self, count: int) -> float:
        """Wait until `count` bytes may be moved; return the seconds waited."""
        return self._wait(self._bytes, count)

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Count the CPU time that this thread takes inside; afterwards wait until it was the node's to take."""
        if self._cpu is None:
            yield
            return
        started = time.thread_time()
        try:
            yield
        finally:
            self._wait(self._cpu, time.thread_time() - started)

    def close(self) -> None:
        """Let everyone go who waits, and nobody wait any more."""
        self._closed.set()

    def _wait(self, bucket: TokenBucket | None, amount: float) -> float:
        if bucket is None:
            return 0.0
        with self._lock:
            seconds = bucket.take(amount, time.monotonic())
        if seconds > 0.0:
            self._closed.wait(seconds)
        return seconds
