"""What the other nodes' clocks show, from letters that travel anyway.

A letter and its answer carry four stamps. If both took equally long, the node's clock is ahead by the mean of the two
differences, and whatever the truth is, it is not further away than half of the round trip that was not spent at the node (as NTP
reckons, RFC 5905). So the exchange with the shortest way is the best one; older ones lose their worth as clocks drift.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from ckptd.daemon.watch.observations import Exchange

DRIFT = 100e-6
"""Seconds per second by which two unsteered quartz clocks may part."""
KEPT = 64


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a clock is ahead of ours, in seconds, and by how much that may be wrong."""

    ahead_s: float
    error_s: float


class Clocks:
    """The offsets of all nodes' clocks. Pure: `now` is our clock."""

    def __init__(self) -> None:
        self._heard: dict[int, deque[tuple[float, Offset]]] = {}

    def hear(self, node: int, exchange: Exchange) -> bool:
        """Take an exchange; False, and forgotten, when its stamps cannot be true."""
        way = (exchange.back - exchange.sent) - (exchange.answered - exchange.heard)
        stamps = (exchange.sent, exchange.heard, exchange.answered, exchange.back)
        if not all(map(math.isfinite, stamps)) or way < 0 or exchange.answered < exchange.heard:
            return False
        ahead = ((exchange.heard - exchange.sent) + (exchange.answered - exchange.back)) / 2
        self._heard.setdefault(node, deque(maxlen=KEPT)).append((exchange.back, Offset(ahead, way / 2)))
        return True

    def offset(self, node: int, now: float) -> Offset | None:
        """The best that is known now; None for a node that was never heard."""
        kept = self._heard.get(node)
        if not kept:
            return None
        aged = (Offset(known.ahead_s, known.error_s + DRIFT * max(0.0, now - at)) for at, known in kept)
        return min(aged, key=lambda offset: offset.error_s)

    def ours(self, node: int, theirs: float, now: float) -> tuple[float, float] | None:
        """A stamp of the node's clock on ours, and by how much that may be wrong. None: its clock is not known."""
        offset = self.offset(node, now)
        return None if offset is None else (theirs - offset.ahead_s, offset.error_s)
