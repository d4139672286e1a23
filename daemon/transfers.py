"""What this node's transfers were like, for each peer: bytes, time, count and the recent rate, in bounded memory.

What a node reads from each other is a row of the network's delay matrix, measured by the work itself.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

PEERS_MAX = 4096
"""Peers that are kept apart; a node beyond is not recorded."""
_FADE = 0.8
"""How much of the recent rate is kept at each transfer: it speaks of the last dozen or so."""


@dataclass(slots=True)
class Flow:
    """Transfers to or from one peer since the daemon started."""

    bytes: int = 0
    seconds: float = 0.0
    """While a transfer was under way, waiting for this node's own caps left out."""
    count: int = 0
    failed: int = 0
    recent_bytes: float = 0.0
    recent_seconds: float = 0.0
    first_s: float = 0.0
    """Recent mean time from a request on an idle connection to the first word of its answer; 0 while nothing was read."""

    def add(self, count: int, seconds: float, first_s: float) -> None:
        self.bytes, self.seconds, self.count = self.bytes + count, self.seconds + seconds, self.count + 1
        self.recent_bytes = self.recent_bytes * _FADE + count
        self.recent_seconds = self.recent_seconds * _FADE + seconds
        self.first_s = self.first_s * _FADE + first_s * (1 - _FADE) if self.first_s else first_s

    def to_json(self) -> dict[str, Any]:
        rate = self.recent_bytes / self.recent_seconds if self.recent_seconds else 0.0
        return {
            "bytes": self.bytes, "seconds": round(self.seconds, 6), "count": self.count, "failed": self.failed,
            "recent_bytes_s": round(rate), "first_s": round(self.first_s, 6),
        }  # fmt: skip


@dataclass(slots=True)
class _Peer:
    read: Flow = field(default_factory=Flow)
    sent: Flow = field(default_factory=Flow)


class Transfers:
    """The record of one node. Methods may be called from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[int, _Peer] = {}

    def read(self, node: int, count: int, seconds: float, first_s: float) -> None:
        """`count` bytes were read from the node; the answer began `first_s` after it was asked for."""
        with self._lock:
            self._peer(node).read.add(count, seconds, first_s)

    def sent(self, node: int, count: int, seconds: float) -> None:
        """`count` bytes were sent to the node."""
        with self._lock:
            self._peer(node).sent.add(count, seconds, 0.0)

    def failed(self, node: int) -> None:
        """A read from the node was given up."""
        with self._lock:
            self._peer(node).read.failed += 1

    def reads(self) -> dict[int, tuple[int, float, int]]:
        """By peer: bytes that were read from it, the seconds that took, and the reads that were given up."""
        with self._lock:
            return {node: (p.read.bytes, p.read.seconds, p.read.failed) for node, p in self._peers.items()}

    def to_json(self) -> list[dict[str, Any]]:
        """One object a peer, by its number: what was read from it and what was sent to it."""
        with self._lock:
            rows = sorted(self._peers.items())
            return [{"node": node, "read": p.read.to_json(), "sent": p.sent.to_json()} for node, p in rows]

    def _peer(self, node: int) -> _Peer:
        if node in self._peers:
            return self._peers[node]
        if len(self._peers) >= PEERS_MAX:
            return _Peer()
        return self._peers.setdefault(node, _Peer())
