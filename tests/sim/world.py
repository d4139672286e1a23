"""A cluster of production nodes in one thread, under a seed and a virtual clock. Every effect is performed in memory.

Bytes, checksums and the erasure code are the real ones. A job takes random times between its steps; letters are delayed,
lost and repeated; a daemon may die or freeze between any two effects and any two steps of a job. Every node has a clock
of its own. What was captured and sealed is written down apart from what the nodes believe (`Truth`) and checked after
every event.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.sim.hands import Hands
from tests.sim.memory import Host, Reach, cut_out, decode
from tests.sim.network import Net
from tests.sim.storage import Storage
from tests.sim.truth import Truth

from ckptd.ckpt.config import Config, Timing
from ckptd.ckpt.groups import group_of
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import Table, Version
from ckptd.ckpt.recovery import Stored, holders, is_complete, survey, surviving, tables_of
from ckptd.daemon import events as ev
from ckptd.daemon.node import Node
from ckptd.daemon.places import Places

TICK_S = 0.2
TIMING = Timing(report_every_s=0.25, lost_after_s=1.0, leave_after_s=2.5, settle_s=3.0)
Steps = Generator[None, None, ev.Event | None]
"""A job of a daemon: between its steps time passes, and the daemon may die."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the trace."""

    when: float
    node: int
    event: str
    fields: dict[str, object]


class World:
    """The hosts, the network, storage and the clock."""

    def __init__(
        self,
        nodes: int = 4,
        *,
        seed: int = 0,
        work_s: tuple[float, float] = (0.001, 0.02),
        domains: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.domains = domains
        self.rng, self.now, self.net, self.work_s = Random(seed), 0.0, Net(), work_s
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._tickets = itertools.count(), itertools.count(1)
        self.answers: dict[int, Callable[[Any], None]] = {}
        self._settings: dict[str, Any] = {"timing": TIMING, "storage": Path("/storage"), **settings}
        self._addresses = tuple(f"host:{index + 1}" for index in range(nodes))
        self.config = cache(self._config)
        self.hosts = [Host(index) for index in range(nodes)]
        self.ghosts: list[Host] = []
        self.lost_at: dict[int, float] = {}
        self.cuts: set[tuple[int, int]] = set()
        self.storage = Storage()
        self.truth = Truth(self)
        self.trace: list[Entry] = []
        self.fuse: tuple[int, int] | None = None
        """(node, effects left): the daemon dies between two of its effects."""
        self.burnt: Callable[[], None] = lambda: None
        """What happens when the fuse has burnt."""
        self.events = 0
        self.hands = Hands(self)

    def _config(self, node: int) -> Config:
        run, segments = Path("/run/ckptd"), Path("/dev/shm/ckptd")
        return Config(
            node=node, nodes=self._addresses, secret=b"s" * 16, run_dir=run, segment_dir=segments,
            domain=self.domains[node] if self.domains else "", **self._settings,
        ).validate()  # fmt: skip

    @property
    def sealed(self) -> Version | None:
        """The newest version that any node has ever known to be sealed."""
        return self.truth.sealed

    @property
    def manifests(self) -> dict[Version, Table]:
        """What storage offers."""
        return {version: name.table for version, name in self.storage.names.items()}

    def note(self, node: int, event: str, **fields: object) -> None:
        """Add a line to the trace (node -1: the world itself)."""
        self.trace.append(Entry(self.now, node, event, fields))

    def noted(self, event: str) -> list[tuple[float, dict[str, object]]]:
        return [(entry.when, entry.fields) for entry in self.trace if entry.event == event]

    # ---- time -------------------------------------------------------------------------------------

    def at(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), act))

    def _when_thawed(self, host: Host, act: Callable[[], None]) -> None:
        """Put off what a frozen daemon should do; later all is done in its order."""
        host.backlog.append(act)
        if len(host.backlog) == 1:
            self.at(host.frozen_until - self.now, lambda: self._thaw(host))

    def _thaw(self, host: Host) -> None:
        if self.now < host.frozen_until:
            self.at(host.frozen_until - self.now, lambda: self._thaw(host))
            return
        backlog, host.backlog = host.backlog, []
        for act in backlog:
            act()

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
            host.node, host.places = Node(self.config(index), f"{index}.{host.boots}"), Places()
            self.note(index, "daemon starts", boot=host.node.boot)
            self.work(host, self.hands.scan(host))
            self._tick(host, host.node)

    def _tick(self, host: Host, node: Node) -> None:
        if host.node is not node:
            return
        if self.now >= host.frozen_until:
            self.tell(host, ev.Tick())
            for found in host.damaged:
                self.tell(host, ev.Damaged(found.slot, found.version, (0,)))
            host.damaged[:] = [found for found in host.damaged if host.records.get(found.slot) is found]
            for parity in [parity for parity, kept in host.parities.items() if kept.flipped]:
                self.tell(host, ev.ParityDamaged(parity))  # the scrubber finds what no reader has
        self.at(TICK_S, lambda: self._tick(host, node))

    def crash(self, index: int) -> None:
        """The daemon dies; what stands in its host's memory stays."""
        if self.hosts[index].node is not None:
            self.note(index, "daemon dies")
        self.hosts[index].node = None

    def freeze(self, index: int, seconds: float) -> None:
        """The daemon is stopped and goes on later: what comes meanwhile is handled then."""
        host = self.hosts[index]
        host.frozen_until = max(host.frozen_until, self.now + seconds)

    def lose(self, index: int) -> None:
        """The node dies with everything in its memory; the next machine in its place has another clock."""
        self.note(index, "node lost")
        self.lost_at[index] = self.now
        boots, self.hosts[index].node = self.hosts[index].boots, None
        self.hosts[index] = Host(index, boots=boots, clock=(self.rng.uniform(0.0, 1e5), self.hosts[index].clock[1]))
        self.storage.lose(index, self.rng)
        self.truth.changed = True

    def displace(self, index: int, seconds: float) -> None:
        """The node is given up although its machine still runs, for so long: its daemon can send, but nothing reaches it."""
        old = self.hosts[index].node
        ghost = replace(self.hosts[index])  # what it was just doing ends here
        self.lose(index)
        self.ghosts.append(ghost)
        if old is not None:
            self._tick(ghost, old)
        self.at(seconds, self.exorcise)

    def exorcise(self) -> None:
        """The machines that were given up end."""
        for ghost in self.ghosts:
            ghost.node = None
        self.ghosts.clear()

    def daemon(self, index: int) -> Node:
        node = self.hosts[index].node
        assert node is not None, f"node {index} has no daemon"
        return node

    def clock_s(self, node: int) -> float:
        """What time it is there, by a wall clock that is kept right to 0.2 s."""
        return 1.8e9 + self.now + self.hosts[node].clock[0] % 0.2

    def tell(self, host: Host, event: ev.Event) -> None:
        """Let the host's daemon handle an event and perform what it asks for; then check everything."""
        node = host.node
        if node is None:
            return
        if self.now < host.frozen_until:
            self._when_thawed(host, lambda: self.tell(host, event) if host.node is node else None)
            return
        self.events += 1
        offset, rate = host.clock
        effects = node.handle(event, offset + rate * self.now)
        node.check_invariants()
        for effect in effects:
            if self.fuse is not None and self.fuse[0] == host.index:
                self.fuse = (host.index, self.fuse[1] - 1) if self.fuse[1] else None
                if self.fuse is None:
                    self.crash(host.index)
                    self.burnt()
            if host.node is not node:
                break
            self.hands.perform(host, effect)
        if host not in self.ghosts:
            self.truth.look(host, node)

    def ask(self, host: Host, question: Callable[[int], ev.Event], then: Callable[[Any], None]) -> None:
        ticket = next(self._tickets)
        self.answers[ticket] = then
        self.tell(host, question(ticket))

    def work(self, host: Host, steps: Steps) -> None:
        """Run a job of the host's daemon, with a while between its steps, and hand in its event, unless the daemon dies."""
        node = host.node

        def go_on() -> None:
            if host.node is not node:
                return
            if self.now < host.frozen_until:
                self._when_thawed(host, go_on)
                return
            try:
                next(steps)
            except StopIteration as end:
                event = end.value
                if event is not None:
                    self.at(self.within(self.work_s), lambda: self.tell(host, event) if host.node is node else None)
            else:
                self.at(self.within(self.work_s), go_on)

        self.at(self.within(self.work_s), go_on)

    def reach(self, reader: Host) -> Callable[[int], Host | None]:
        """Whom this host can read from now."""

        def reach(node: int) -> Host | None:
            other = self.hosts[node]
            serves = other.node is not None and self.now >= other.frozen_until
            cut = {(reader.index, node), (node, reader.index)} & self.cuts
            return other if other is reader or (serves and not cut) else None

        return reach

    # ---- restoring ----------------------------------------------------------------------------------

    @property
    def stored(self) -> tuple[Stored, ...]:
        return tuple(Stored(version, table.world) for version, table in sorted(self.manifests.items()))

    def fetch(self, host: Host, ledger: Ledger, table: Table, rank: int) -> bytes | None:
        """One rank's verified image on this host: its own, a peer's, decoded; as the ledger tells where things are."""
        _, image = table.holder(rank)
        reach = self.reach(host)
        for report, _ in holders(ledger, table.version, image):
            source = reach(report.node)
            data = source.image(table.version, image) if source else None
            if data is not None:
                return data
        for known in tables_of(ledger).get(table.version, ()):
            data = self._decode(reach, ledger, known, rank) if is_complete(known) else None
            if data is not None:
                return data
        return None

    def _decode(self, reach: Reach, ledger: Ledger, table: Table, rank: int) -> bytes | None:
        node = table.holder(rank)[0].node
        group = group_of(table.map, node)
        if group is None:
            return None
        whole = decode(reach, self.tell, (group, table), node, lambda stripe: surviving(ledger, table, group, stripe))
        return cut_out(whole, table, node, rank) if whole is not None else None

    def gather(self, host: Host, version: Version, rank: int) -> bytes | None:
        """What a trainer that restores is given: from memory, else from storage."""
        ledger = host.node.ledger if host.node else None
        table = survey(ledger).get(version) if ledger else None
        data = self.fetch(host, ledger, table, rank) if ledger and table and is_complete(table) else None
        return data if data is not None else self.storage.read(version, rank)

    def whole(self, index: int) -> bool:
        """Whether a host has all that it should have of the newest sealed version, under the newest map."""
        guards = self.truth.guards(self.truth.sealed) if self.truth.sealed else []
        return not guards or self.truth.whole(index, guards[0])
