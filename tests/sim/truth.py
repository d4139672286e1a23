"""What really happened in a simulated run, kept apart from what the nodes believe, and the promises checked against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.memory import Host, unrecoverable

from ckptd.ckpt.groups import parities_of
from ckptd.ckpt.inventory import Held, Parity
from ckptd.ckpt.model import Image, Payload, Table, Version
from ckptd.daemon.node import Node

if TYPE_CHECKING:
    from tests.sim.world import World

UNNOTICED_S = 3.0
"""For so long a collector may believe in what a lost node has reported; a seal that it announces meanwhile counts on it."""

Marks = tuple[int, Version | None, Version | None]


class Truth:
    """`look(host)` after every event raises AssertionError where a promise is broken."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.captured: dict[Version, dict[int, tuple[int, Held]]] = {}
        self.made: set[Parity] = set()
        self.tables: dict[Version, list[Table]] = {}
        """Those under which parities were made, or a version was sealed."""
        self.sealed: Version | None = None
        self.persisted: Version | None = None
        self.promises_p1 = True
        self.expected: Callable[[int, Version], str] | None = None
        """The digest of what a rank captures at a version."""
        self.changed = False
        """Whether a slot, a parity or a file was given up or lost since the last look."""
        self._marks: dict[Node, Marks] = {}
        self._tables: dict[Version, Table] = {}

    # ---- what is told ---------------------------------------------------------------------------------

    def capture(self, node: int, held: Held, version: Version) -> None:
        """A node has recorded an image that a trainer captured there. P2: not torn, nor mixed with another's."""
        if self.expected is not None:
            whole = held.image.digest == self.expected(held.image.rank, version)
            assert whole, f"P2: node {node} recorded other bytes than rank {held.image.rank} has at {version}"
        self.captured.setdefault(version, {})[held.image.rank] = (node, held)
        self._tables.pop(version, None)

    def table(self, version: Version) -> Table:
        """Who really captured what."""
        known = self._tables.get(version)
        if known is None:
            ranks = self.captured[version]
            payloads: dict[int, list[Image]] = {}
            for rank in sorted(ranks):
                payloads.setdefault(ranks[rank][0], []).append(ranks[rank][1].image)
            world = max(held.world for _, held in ranks.values())
            known = Table(version, world, tuple(Payload(node, tuple(payloads[node])) for node in sorted(payloads)))
            self._tables[version] = known
        return known

    def know(self, table: Table) -> None:
        """A version is, or was, protected under this table."""
        known = self.tables.setdefault(table.version, [])
        if table not in known:
            known.append(table)
            known.sort(key=lambda one: one.map, reverse=True)

    def guards(self, version: Version) -> list[Table]:
        """The tables under which a version was fully protected once, the newest map's first."""
        return [table for table in self.tables.get(version, []) if self._is_made(table)]

    def _is_made(self, table: Table) -> bool:
        really = {image for _, held in self.captured.get(table.version, {}).values() for image in [held.image]}
        named = [image for payload in table.payloads for image in payload.images]
        owed = (parity for node in table.map.nodes for parity in parities_of(table, node))
        complete = sorted(image.rank for image in named) == list(range(table.world)) and set(named) == really
        return bool(table.map.groups) and complete and all(parity in self.made for parity in owed)

    def whole(self, index: int, table: Table) -> bool:
        """Whether a host has all that it should have under a table."""
        host = self.world.hosts[index]
        return host.has(table) and all(host.has_parity(parity, table) for parity in parities_of(table, index))

    # ---- what must hold -------------------------------------------------------------------------------

    def look(self, host: Host, node: Node) -> None:
        """Check everything after an event of this node."""
        self._monotonic(node)
        if node.sealed is not None and (self.sealed is None or node.sealed > self.sealed):
            table = node.ledger.table(node.sealed) if node.ledger else None
            if table is not None:
                self.know(table)
            self._check_seal(node.sealed)
            self.sealed, self.changed = node.sealed, True
            self.world.note(host.index, "SEALED", version=str(node.sealed))
        if node.persisted is not None and (self.persisted is None or node.persisted > self.persisted):
            self.persisted, self.changed = node.persisted, True
            self.world.note(host.index, "PERSISTED", version=str(node.persisted))
        self._budget(host)
        if self.changed:
            self.changed = False
            self.check()

    def check(self) -> None:
        """P1: the newest sealed version can be had from memory (no more was lost than the code bears). P3: from storage."""
        if self.sealed and self.promises_p1:
            problem = unrecoverable(self.world.hosts, self.tables[self.sealed])
            assert problem is None, f"P1: {problem}"
        if self.persisted:
            problem = self.world.storage.unloadable(self.persisted)
            assert problem is None, f"P3: {problem}"

    def _check_seal(self, version: Version) -> None:
        assert version in self.captured, f"P1: {version} was sealed and nobody captured it"
        table = self.table(version)
        assert sorted(self.captured[version]) == list(range(table.world)), f"P1: {version} was sealed without all ranks"
        guards = self.guards(version)
        assert guards, f"P1: {version} was sealed without all parities"
        for host in self.world.hosts:
            gone_s = self.world.now - self.world.lost_at.get(host.index, self.world.now)
            nothing = all(self._holds_nothing(host, table) for table in guards)
            missed = self.promises_p1 and gone_s > UNNOTICED_S and nothing
            assert not missed, f"P1: {version} was sealed {gone_s:.1f} s after node {host.index} was lost with its part"

    def _holds_nothing(self, host: Host, table: Table) -> bool:
        """Whether a node has no part in a version, and not because it was damaged."""
        owed = parities_of(table, host.index)
        has_images = any(payload.node == host.index for payload in table.payloads)
        if host.damaged or not (has_images or owed):
            return False
        held = {found.version for found in host.records.values()} | {parity.version for parity in host.parities}
        return table.version not in held

    def _monotonic(self, node: Node) -> None:
        """Epoch, sealed and persisted never go back within one run of a daemon."""
        now: Marks = (node.epoch, node.sealed, node.persisted)
        before = self._marks.get(node)
        if before is not None and before != now:
            assert now[0] >= before[0], f"the epoch went back from {before[0]} to {now[0]}"
            for name, old, new in (("sealed", before[1], now[1]), ("persisted", before[2], now[2])):
                assert old is None or (new is not None and new >= old), f"{name} went back from {old} to {new}"
        self._marks[node] = now

    def _budget(self, host: Host) -> None:
        """Slots of a rank as configured, and parities of few versions: what fails to be sealed makes way."""
        per_rank: dict[int, int] = {}
        for slot in host.files:
            per_rank[slot.rank] = per_rank.get(slot.rank, 0) + 1
        assert max(per_rank.values(), default=0) <= self.world.config(host.index).slots, f"too many slots: {per_rank}"
        versions = {parity.version for parity in host.parities}
        assert len(versions) <= self.world.config(host.index).slots + 2, (
            f"node {host.index} keeps parities of {sorted(versions)}"
        )
