"""A cluster of production nodes in one thread, under a seed and a virtual clock. Every effect is performed in memory.

Bytes, checksums and the erasure code are the real ones. A job takes a random time before it reads and another before its
event comes; letters are delayed, lost and repeated; a daemon may die between any two effects. What was captured and
sealed is written down apart from what the nodes believe, so that `check` can compare.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.sim.hands import Hands
from tests.sim.memory import Host, cut_out, decode, unrecoverable

from ckptd.ckpt.config import Config, Timing
from ckptd.ckpt.inventory import Held, Ledger, Parity
from ckptd.ckpt.model import Image, Payload, Table, Version
from ckptd.ckpt.recovery import Stored, group_of, holders, is_complete, survey, surviving
from ckptd.daemon import events as ev
from ckptd.daemon.node import Node

TICK_S = 0.2
TIMING = Timing(report_every_s=0.25, lost_after_s=1.0, settle_s=3.0)


@dataclass
class Net:
    """How letters travel."""

    delay_s: tuple[float, float] = (0.001, 0.01)
    loss: float = 0.0
    repeat: float = 0.0
    late: float = 0.0
    """How many letters come seconds late."""


class World:
    """The hosts, the network, storage and the clock."""

    def __init__(
        self, nodes: int = 4, *, seed: int = 0, work_s: tuple[float, float] = (0.001, 0.02), **settings: Any
    ) -> None:
        self.rng, self.now, self.net, self.work_s = Random(seed), 0.0, Net(), work_s
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._tickets = itertools.count(), itertools.count(1)
        self.answers: dict[int, Callable[[Any], None]] = {}
        self._settings: dict[str, Any] = {"timing": TIMING, "storage": Path("/storage"), **settings}
        self._addresses = tuple(f"host:{index + 1}" for index in range(nodes))
        self.hosts = [Host(index) for index in range(nodes)]
        self.groups = self.config(0).groups
        self.cuts: set[tuple[int, int]] = set()
        self.parts: dict[tuple[Version, int], bytes] = {}
        self.manifests: dict[Version, Table] = {}
        self.storage_works = True
        self.captured: dict[Version, dict[int, tuple[int, Held]]] = {}
        self.made: set[Parity] = set()
        self.sealed: Version | None = None
        self.notes: list[tuple[float, int, str, dict[str, object]]] = []
        self.fuse: tuple[int, int] | None = None
        """(node, effects left): the daemon dies between two of its effects."""
        self.dirty = False
        self.promises_p1 = True
        self.events = 0
        self.hands = Hands(self)

    def config(self, node: int) -> Config:
        run, segments = Path("/run/ckptd"), Path("/dev/shm/ckptd")
        return Config(
            node=node, nodes=self._addresses, secret=b"s" * 16, run_dir=run, segment_dir=segments, **self._settings
        ).validate()

    # ---- time -------------------------------------------------------------------------------------

    def at(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), act))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass until the condition holds (return True) or the seconds are over."""
        end = self.now + seconds
        while not until():
            if not self._queue or self._queue[0][0] > end:
                self.now = end
                return until()
            self.now, _, act = heapq.heappop(self._queue)
            act()
        return True

    def within(self, bounds: tuple[float, float]) -> float:
        return self.rng.uniform(*bounds)

    # ---- daemons ------------------------------------------------------------------------------------

    def boot(self, *nodes: int) -> None:
        """Start the daemons of these nodes (all, if none is named) on what their hosts hold."""
        for index in nodes or range(len(self.hosts)):
            host = self.hosts[index]
            host.boots += 1
            host.node = Node(self.config(index), f"{index}.{host.boots}")
            self.work(host, self.scan)
            self._tick(host, host.node)

    def scan(self, host: Host) -> ev.Event:
        for found in list(host.records.values()):
            if not host.is_sound(found):
                del host.records[found.slot]
                self.dirty = True
        parities = tuple(ev.FoundParity(parity, table) for parity, (table, _) in host.parities.items())
        return ev.Scanned(tuple(host.records.values()), parities, *host.remembered)

    def _tick(self, host: Host, node: Node) -> None:
        if host.node is node:
            self.tell(host, ev.Tick())
            for found in host.damaged:
                self.tell(host, ev.Damaged(found.slot, found.version))
            host.damaged[:] = [found for found in host.damaged if host.records.get(found.slot) is found]
            self.at(TICK_S, lambda: self._tick(host, node))

    def crash(self, index: int) -> None:
        """The daemon dies; what stands in its host's memory stays."""
        self.hosts[index].node = None

    def lose(self, index: int) -> None:
        """The node dies with everything in its memory."""
        boots = self.hosts[index].boots
        self.hosts[index].__init__(index, boots=boots)  # type: ignore[misc]
        self.dirty = True

    def daemon(self, index: int) -> Node:
        node = self.hosts[index].node
        assert node is not None, f"node {index} has no daemon"
        return node

    def tell(self, host: Host, event: ev.Event) -> None:
        """Let the host's daemon handle an event and perform what it asks for; then check everything."""
        node = host.node
        if node is None:
            return
        self.events += 1
        effects = node.handle(event, self.now)
        node.check_invariants()
        for effect in effects:
            if self.fuse is not None and self.fuse[0] == host.index:
                self.fuse = (host.index, self.fuse[1] - 1) if self.fuse[1] else None
                if self.fuse is None:
                    self.crash(host.index)
            if host.node is not node:
                break
            self.hands.perform(host, effect)
        if node.sealed is not None and (self.sealed is None or node.sealed > self.sealed):
            self._check_seal(node.sealed)
            self.sealed, self.dirty = node.sealed, True
        if self.dirty:
            self.dirty = False
            self.check()

    def ask(self, host: Host, question: Callable[[int], ev.Event], then: Callable[[Any], None]) -> None:
        ticket = next(self._tickets)
        self.answers[ticket] = then
        self.tell(host, question(ticket))

    def work(self, host: Host, job: Callable[[Host], ev.Event | None]) -> None:
        """Run a job of the host's daemon after a while, and hand in its event after another, unless the daemon dies."""
        node = host.node

        def start() -> None:
            event = job(host) if host.node is node else None
            if event is not None:
                self.at(self.within(self.work_s), lambda: self.tell(host, event) if host.node is node else None)

        self.at(self.within(self.work_s), start)

    def reach(self, reader: Host) -> Callable[[int], Host | None]:
        def reach(node: int) -> Host | None:
            serves = self.hosts[node].node is not None and not {(reader.index, node), (node, reader.index)} & self.cuts
            return self.hosts[node] if serves or node == reader.index else None

        return reach

    # ---- restoring ----------------------------------------------------------------------------------

    @property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(Stored(version, table.world) for version, table in sorted(self.manifests.items()))

    def fetch(self, host: Host, ledger: Ledger, table: Table, rank: int) -> bytes | None:
        """One rank's verified image on this host: its own, a peer's, decoded; as the ledger tells where things are."""
        payload, image = table.holder(rank)
        reach = self.reach(host)
        for report, _ in holders(ledger, table.version, image):
            source = reach(report.node)
            data = source.image(table.version, image) if source else None
            if data is not None:
                return data
        group = group_of(self.groups, payload.node)
        assert group is not None
        whole = decode(reach, group, table, payload.node, lambda stripe: surviving(ledger, table, group, stripe))
        return cut_out(whole, table, payload.node, rank) if whole is not None else None

    def gather(self, host: Host, version: Version, rank: int) -> bytes | None:
        """What a trainer that restores is given: from memory, else from storage."""
        ledger = host.node.ledger if host.node else None
        table = survey(ledger).get(version) if ledger else None
        data = self.fetch(host, ledger, table, rank) if ledger and table and is_complete(table) else None
        return data if data is not None or version not in self.manifests else self.parts[version, rank]

    # ---- what is true -------------------------------------------------------------------------------

    def truth(self, version: Version) -> Table:
        """Who really captured what."""
        ranks = self.captured[version]
        payloads: dict[int, list[Image]] = {}
        for rank in sorted(ranks):
            payloads.setdefault(ranks[rank][0], []).append(ranks[rank][1].image)
        world = max(held.world for _, held in ranks.values())
        return Table(version, world, tuple(Payload(node, tuple(payloads[node])) for node in sorted(payloads)))

    def owed(self, table: Table, node: int) -> list[Parity]:
        """The parities that a node must keep of a version."""
        group = group_of(self.groups, node)
        assert group is not None
        owned = group.owned(node) if group.units(table) else ()
        return [Parity(table.version, group.index, stripe, row) for stripe, row in owned]

    def whole(self, index: int) -> bool:
        """Whether a host has all that it should have of the newest sealed version."""
        if self.sealed is None:
            return True
        host, table = self.hosts[index], self.truth(self.sealed)
        return host.has(table) and all(host.has_parity(parity, table) for parity in self.owed(table, index))

    def _check_seal(self, version: Version) -> None:
        table = self.truth(version)
        assert sorted(self.captured[version]) == list(range(table.world)), f"{version} was sealed without all ranks"
        owed = {parity for host in self.hosts for parity in self.owed(table, host.index)}
        assert owed <= self.made, f"{version} was sealed without all parities"

    def check(self) -> None:
        """P1: the newest sealed version can be had from memory. (No more is ever lost here than the code allows.)"""
        if self.sealed and self.promises_p1:
            problem = unrecoverable(self.hosts, self.groups, self.truth(self.sealed))
            assert problem is None, problem

    def noted(self, event: str) -> list[tuple[float, dict[str, object]]]:
        return [(when, fields) for when, _, name, fields in self.notes if name == event]
