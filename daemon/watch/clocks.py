"""What the other nodes' clocks show, from letters that travel anyway.

A letter and its answer carry four stamps. If both took equally long, the node's clock is ahead by the mean of the two
differences, and whatever the truth is, it is not further away than half of the time that was spent on the way (as NTP
reckons, RFC 5905). So the exchange with the shortest way is the best one, and it loses its worth as clocks drift. All
age alike: which one is best does not change with time, so one is all that is kept of a node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckptd.daemon.watch.observations import Exchange

DRIFT = 100e-6
"""Seconds per second by which two unsteered quartz clocks may part."""


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a clock is ahead of ours, in seconds, and by how much that may be wrong."""

    ahead_s: float
    error_s: float


class Clocks:
    """The offsets of all nodes' clocks. Pure: `now` is our clock."""

    def __init__(self) -> None:
        self._best: dict[int, tuple[float, Offset]] = {}

    def hear(self, node: int, exchange: Exchange) -> bool:
        """Take an exchange; False, and forgotten, when its stamps cannot be true."""
        way = (exchange.back - exchange.sent) - (exchange.answered - exchange.heard)
        ahead = ((exchange.heard - exchange.sent) + (exchange.answered - exchange.back)) / 2
        if not (math.isfinite(way) and math.isfinite(ahead)) or way < 0 or exchange.answered < exchange.heard:
            return False  # (what is not finite in one stamp is not in their sum)
        known = self._best.get(node)
        if known is None or way / 2 <= _error(known, exchange.back):
            self._best[node] = (exchange.back, Offset(ahead, way / 2))
        return True

    def offset(self, node: int, now: float) -> Offset | None:
        """The best that is known now; None for a node that was never heard."""
        known = self._best.get(node)
        return None if known is None else Offset(known[1].ahead_s, _error(known, now))

    def ours(self, node: int, theirs: float, now: float) -> tuple[float, float] | None:
        """A stamp of the node's clock on ours, and by how much that may be wrong. None: its clock is not known."""
        known = self._best.get(node)
        return None if known is None else (theirs - known[1].ahead_s, _error(known, now))


def _error(known: tuple[float, Offset], now: float) -> float:
    at, best = known
    return best.error_s + DRIFT * max(0.0, now - at)
