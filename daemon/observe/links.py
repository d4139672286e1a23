"""What the links to the other nodes are like: from the reads that the work does anyway, and from small probes in between.

A probe is a few questions, each a segment, on a connection of its own: how long the first answer takes, and of how many
segments the kernel found that they were lost. A node makes PROBES_PER_LOOK a second at most, to the nodes that it exchanges
parity with and to those that the judge asks for: with all overhead 7 KB/s, however large the job is.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ckptd.ckpt.config import Config, split_address
from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.inventory import Ledger
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.ranges import Limits, Member
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.transport import Endpoint
from ckptd.daemon.watch.observations import Kind, PairSample

PROBES_PER_LOOK = 8
"""Room for the half of its own links that the judge asks for in turn, and for all partners beside them."""
EVERY_S = 2.0
"""A link is probed so often, at most; what is asked for by the judge at once."""
PROBE_S = 2.0
READ_MIN = 1 << 20
"""Bytes that must have come since the last look for a rate."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The other nodes of the job, as the newest ledger tells."""

    endpoints: Mapping[int, Endpoint]
    partners: tuple[int, ...]
    """Those that this node exchanges parity with."""
    domains: Mapping[int, str]

    @staticmethod
    def of(config: Config, ledger: Ledger | None) -> Neighbours:
        """Nobody before the first ledger."""
        if ledger is None:
            return Neighbours({}, (), {})
        endpoints = {
            report.node: Endpoint(report.node, split_address(config.nodes[report.node])[0], report.data_port)
            for report in ledger.reports
            if report.node != config.node and report.data_port
        }
        group = next((group for group in ledger.map.groups if config.node in group), ())
        partners = tuple(node for node in group if node != config.node)
        return Neighbours(endpoints, partners, dict(ledger.map.domains))


class Links:
    """This node's row of the delay matrix. `look` is called by one thread."""

    def __init__(self, member: Member, transfers: Transfers) -> None:
        self._me, self._transfers = member.node, transfers
        limits = Limits(handshake_s=PROBE_S, stall_s=PROBE_S, attempts=1)
        self._reader = RangeReader(member, limits=limits)
        self._pool = ThreadPoolExecutor(PROBES_PER_LOOK, "probe")
        self._before: dict[int, tuple[int, float, int]] = {}
        self._known: dict[int, Endpoint] = {}
        self._tried: dict[int, float] = {}
        self._busy: set[int] = set()
        self._lock = threading.Lock()
        self._done: list[PairSample] = []

    def look(self, around: Neighbours, asked: Iterable[int], now: float) -> list[PairSample]:
        """What the links have shown since the last look; begins the probes that are due, which the next look will show."""
        self._known.update(around.endpoints)  # a node that was lost is still tried: whether it is reached decides
        samples = self._reads(around)
        for node in self._due(around.partners, list(asked), now):
            self._tried[node] = now
            self._busy.add(node)
            self._pool.submit(self._probe, self._known[node], self._kind(around, node, Kind.PROBE_NEAR, Kind.PROBE_FAR))
        with self._lock:
            done, self._done = self._done, []
        return samples + done

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    def _due(self, partners: Sequence[int], asked: Sequence[int], now: float) -> list[int]:
        """Whom to probe now, whoever was not tried for longest first; those that were asked for before all."""
        wanted = [node for node in asked if node in self._known]
        rest = [node for node in partners if node in self._known and now - self._tried.get(node, -math.inf) >= EVERY_S]
        order = wanted + sorted(rest, key=lambda node: self._tried.get(node, -math.inf))
        free = [node for node in dict.fromkeys(order) if node not in self._busy and node != self._me]
        return free[: max(0, PROBES_PER_LOOK - len(self._busy))]

    def _reads(self, around: Neighbours) -> list[PairSample]:
        samples = []
        for node, (count, seconds, failed) in self._transfers.reads().items():
            before = self._before.get(node, (0, 0.0, 0))
            kind = self._kind(around, node, Kind.READ_NEAR, Kind.READ_FAR)
            if count - before[0] >= READ_MIN:
                samples.append(PairSample(self._me, node, kind, (seconds - before[1]) / (count - before[0]) * MIB))
            elif failed == before[2]:
                continue  # too little yet: it counts when more has come
            if failed > before[2]:
                samples.append(PairSample(self._me, node, kind, math.inf))
            self._before[node] = (count, seconds, failed)
        return samples

    def _kind(self, around: Neighbours, node: int, near: Kind, far: Kind) -> Kind:
        """Where no domains are known all nodes stand alike."""
        return near if around.domains.get(node) == around.domains.get(self._me) else far

    def _probe(self, holder: Endpoint, kind: Kind) -> None:
        began = time.monotonic()
        seen = []
        try:
            trip = self._reader.probe(holder)
            seen.append(PairSample(self._me, holder.node, kind, trip.seconds))
            seen.append(PairSample(holder.node, self._me, Kind.LOST, trip.lost))
        except (CkptdError, OSError):
            # A server that closed an idle connection, or was started anew: the next probe makes another.
            if time.monotonic() - began > PROBE_S / 2 or not self._again(holder):
                seen.append(PairSample(self._me, holder.node, kind, math.inf))
        with self._lock:
            self._busy.discard(holder.node)
            self._done += seen

    def _again(self, holder: Endpoint) -> bool:
        """Whether the holder is reached over a new connection."""
        try:
            self._reader.probe(holder)
        except (CkptdError, OSError):
            return False
        return True
