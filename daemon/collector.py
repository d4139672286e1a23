"""What follows from the nodes' reports: who is lost, what is sealed, what to protect and to persist next.

Every node has one of these; the lowest live node's is the one that is announced. Sealing needs no vote (DESIGN 1.3):
"all ranks captured the version and all its parity is placed" stays true until slots are used again, and that happens
only after a newer version has reached it. So a collector may crash, be replaced, or exist twice without harm. (A version
that can never reach it may be given up too: `ckptd.ckpt.recovery.forsaken`.)
"""

from __future__ import annotations

from dataclasses import replace

from ckptd.ckpt.config import Config
from ckptd.ckpt.groups import map_of
from ckptd.ckpt.inventory import Ledger, Report
from ckptd.ckpt.model import GroupMap, Image, Table, Version
from ckptd.ckpt.policy import Auto, Seconds, Steps, persist_interval_s
from ckptd.ckpt.recovery import (
    is_complete,
    is_in_place,
    is_protected,
    is_settled,
    moved,
    sources_for,
    tables_of,
)
from ckptd.daemon.rounds import Rounds

TABLES_MAX = 4


def newest(*versions: Version | None) -> Version | None:
    """The newest of several versions, ignoring None."""
    return max((version for version in versions if version is not None), default=None)


class Collector:
    """Gathers reports and says what follows from them. Pure: the time is an argument."""

    def __init__(self, config: Config, boot: str) -> None:
        self._config = config
        self._boot = boot
        self._seq = 0
        self._made: Ledger | None = None
        """The last ledger: while nothing changes it is announced again as it is."""
        self._seen: dict[int, tuple[Report, float]] = {}
        self._seqs: dict[tuple[int, str], int] = {}
        self._leading_since: float | None = None
        self._followed: Ledger | None = None
        """The last ledger of another collector: who was alive then has a moment to report here."""
        self._gone_since: dict[int, float] = {}
        self._map = GroupMap()
        self._sealed: Version | None = None
        self._persisted: Version | None = None
        self._persist: Table | None = None
        self._persistence = config.persistence
        self._persist_began: float | None = None
        """When the last version to be persisted was chosen, here or by the collector before."""
        self._persist_took_s = 0.0
        """From then until it was persisted."""
        self._protect: Version | None = None
        self._tables: dict[Version, Table] = {}
        """What was announced: tables of versions that were moved to another map stay as they are while that map lasts."""
        self.rounds = Rounds(boot, config.timing.lost_after_s)

    def observe(self, report: Report, now: float) -> bool:
        """Take in a report; return whether it says anything new. Late and repeated ones only show that the node lives."""
        known, last = self._seen.get(report.node), self._seqs.get((report.node, report.boot), -1)
        if report.seq > last or (known is None and report.seq == last):  # what was heard before it led is forgotten
            self._seqs[report.node, report.boot] = report.seq
            self._seen[report.node] = (report, now)
            return True
        if known and known[0].boot == report.boot:
            self._seen[report.node] = (known[0], now)
        return False

    def follow(self, ledger: Ledger, now: float) -> None:
        """Another collector leads: keep what it has announced, so that a successor does not do it all again."""
        if ledger.persist and (self._persist is None or ledger.persist != self._persist.version):
            self._persist_began = now
        elif self._persist and ledger.persisted and ledger.persisted == self._persist.version:
            self._persist_ended(now)
        self._leading_since, self._followed = None, ledger
        self._gone_since.clear()
        self._map = max(self._map, ledger.map)
        self._sealed = newest(self._sealed, ledger.sealed)
        self._persisted = newest(self._persisted, ledger.persisted)
        self._persist = ledger.table(ledger.persist) if ledger.persist else None
        self._protect = ledger.protect
        self._tables = {table.version: table for table in reversed(ledger.tables)}
        self.rounds.follow(ledger)

    @property
    def before(self) -> Ledger | None:
        """The last ledger of another collector, while this one leads; None where there was none."""
        return self._followed if self._leading_since is not None else None

    @property
    def gone_since(self) -> dict[int, float]:
        """By node that counts as lost: since when it does here."""
        return dict(self._gone_since)

    def published(self, version: Version) -> None:
        """The manifest of `version` was written."""
        self._persisted = newest(self._persisted, version)

    def ledger(self, now: float) -> Ledger:
        """The facts as of now."""
        if self._leading_since is None:
            # What it heard when it led before may be long out of date. Everybody reports again within a moment.
            me = self._config.node
            self._leading_since, self._seen = now, {node: seen for node, seen in self._seen.items() if node == me}
        facts = self.rounds.advance(self._facts(now), now)
        known = {version: tables for version, tables in tables_of(facts).items() if is_complete(tables[0])}
        self._seal(facts, known)
        tables = {version: self._table_for(facts, of) for version, of in known.items()}
        self._choose_persist(facts, tables, now)
        self._protect = self._next_to_protect(facts, tables)
        self._tables = {table.version: table for table in self._announced(tables)}
        ledger = replace(
            facts,
            sealed=self._sealed,
            shielded=self._sealed if self._is_shielded(facts, tables) else None,
            persisted=self._persisted,
            persist=self._persist.version if self._persist else None,
            protect=self._protect,
            tables=tuple(self._tables.values()),
        )
        if self._made is None or replace(ledger, seq=self._made.seq) != self._made:
            self._seq += 1
            self._made = ledger
        return self._made

    def _facts(self, now: float) -> Ledger:
        """The reports of the live nodes, who is lost, and the map that goes with that."""
        lost = self._lost(now)
        for node in range(len(self._config.nodes)):
            if node in lost:
                self._gone_since.setdefault(node, now)
            else:
                self._gone_since.pop(node, None)
        reports = tuple(report for node, (report, _) in sorted(self._seen.items()) if node not in lost)
        facts = Ledger(
            self._config.node,
            self._boot,
            self._seq + 1,
            nodes=len(self._config.nodes),
            epoch=max((report.epoch for report in reports), default=0),
            reports=reports,
            lost=lost,
            tables=tuple(self._tables.values()),
        )
        self._map = self._newest_map(facts, now)
        return replace(facts, map=self._map)

    def _newest_map(self, facts: Ledger, now: float) -> GroupMap:
        """The map of the nodes that have not left, in their domains: the one that is known, unless something has changed.

        Not before every node has said where it stands, or counts as lost: else each start would begin with several maps.
        """
        known = max([self._map, *(table.map for report in facts.reports for table in report.tables)])
        if not (known.groups or is_settled(facts)):
            return known
        members = [node for node in range(facts.nodes) if not self._has_left(node, known, now)]
        domains = dict(known.domains) | {report.node: report.domain for report in facts.reports}
        wanted = map_of(known.number, members, domains, parity=self._config.parity, size=self._config.group_size)
        return known if wanted == known else replace(wanted, number=known.number + 1)

    def _has_left(self, node: int, known: GroupMap, now: float) -> bool:
        """Whether a node has been lost for long, or was out already and has not come back."""
        since = self._gone_since.get(node)
        was_out = bool(known.groups) and node not in known.nodes
        out = since is not None and (was_out or now - since >= self._config.timing.leave_after_s)
        return out or (was_out and node not in self._seen)

    def check_invariants(self) -> None:
        """Each node's newest report is the newest that was heard of that run of it."""
        self.rounds.check_invariants()
        for node, (report, _) in self._seen.items():
            assert report.node == node, f"a report of node {report.node} stands for node {node}"
            newest_seq = self._seqs[node, report.boot]
            assert report.seq == newest_seq, f"node {node}: report {report.seq} stands, {newest_seq} was heard"

    def _lost(self, now: float) -> tuple[int, ...]:
        """Nodes that have fallen silent, or were never heard although they had time to start."""
        timing, before, since = self._config.timing, self._followed, self._leading_since
        lost = []
        for node in range(len(self._config.nodes)):
            if node in self._seen:
                silent_since, limit = self._seen[node][1], timing.lost_after_s
            elif before and (node == before.collector or node in before.lost):
                silent_since, limit = now, 0.0  # this one leads because that one has fallen silent
            else:
                silent_since = now if since is None else since
                limit = timing.lost_after_s if before and before.report(node) else timing.settle_s
            if now - silent_since >= limit:
                lost.append(node)
        return tuple(lost)

    def _announced(self, tables: dict[Version, Table]) -> tuple[Table, ...]:
        """The tables that somebody has work with, and the newest of the others; newest first."""
        if self._persist is not None:
            tables = tables | {self._persist.version: self._persist}
        persist = self._persist.version if self._persist else None
        needed = [version for version in (self._protect, persist, self._sealed) if version in tables]
        others = [v for v in sorted(tables, reverse=True) if self._sealed is None or v > self._sealed]
        return tuple(tables[v] for v in sorted({*needed, *others[:TABLES_MAX]}, reverse=True))

    # ---- sealing and protecting -------------------------------------------------------------------

    def _seal(self, facts: Ledger, known: dict[Version, tuple[Table, ...]]) -> None:
        sealed = newest(self._sealed, *(report.sealed for report in facts.reports))
        reached = (
            version
            for version, tables in known.items()
            if (sealed is None or version > sealed)
            # Under an older map it may bear fewer losses than it should: one of a node alone has no parity.
            and any(table.map == facts.map and _is_safe(facts, table) for table in tables)
        )
        self._sealed = newest(sealed, *reached)

    def _is_shielded(self, facts: Ledger, tables: dict[Version, Table]) -> bool:
        """Whether the newest sealed version is protected under the newest map."""
        table = tables.get(self._sealed) if self._sealed else None
        return table is not None and table.map == facts.map and _is_safe(facts, table)

    def _table_for(self, facts: Ledger, tables: tuple[Table, ...]) -> Table:
        """The table of a version under the newest map, as far as somebody can bring the images of who has left."""
        newest_one = tables[0]
        if newest_one.map == facts.map or not facts.map.groups or isinstance(sources_for(facts, tables), str):
            return newest_one
        return moved(newest_one, facts)

    def _next_to_protect(self, facts: Ledger, tables: dict[Version, Table]) -> Version | None:
        """Finish what was begun; else the newest version that is not fully protected. All its bytes must be in place."""
        open_ones = [
            version
            for version, table in tables.items()
            if (self._sealed is None or version >= self._sealed)
            and table.map == facts.map
            and is_in_place(facts, table)
            and not is_protected(facts, table)
        ]
        return self._protect if self._protect in open_ones else newest(*open_ones)

    # ---- persisting -------------------------------------------------------------------------------

    def ready_to_publish(self, ledger: Ledger) -> Table | None:
        """The table of the version being persisted once every rank's image is on storage."""
        table = self._persist
        return table if table and set(_images(table)) <= _written(ledger, table.version) else None

    def _choose_persist(self, facts: Ledger, tables: dict[Version, Table], now: float) -> None:
        """Finish what was begun, unless it can't be finished; else the newest sealed version, if it is due."""
        self._persisted = newest(self._persisted, *(report.persisted for report in facts.reports))
        begun = self._persist
        if begun:  # who has left writes nothing any more
            begun = self._persist = tables.get(begun.version, begun)
        if begun and self._persisted and self._persisted >= begun.version:
            self._persist = None
            self._persist_ended(now)
        elif begun and self._is_hopeless(facts, begun):
            self._persist = None
        sealed = tables.get(self._sealed) if self._sealed else None
        if self._persist is None and sealed and is_in_place(facts, sealed) and self._is_due(sealed.version, facts, now):
            self._persist, self._persist_began = sealed, now

    def _persist_ended(self, now: float) -> None:
        if self._persist_began is not None:
            self._persist_took_s = now - self._persist_began

    def _is_hopeless(self, facts: Ledger, table: Table) -> bool:
        """Whether everybody has spoken, and an image of it is not on storage, nor with who should write it.

        What is sealed comes back there by itself, if anybody can serve it.
        """
        missing = set(_images(table)) - _written(facts, table.version)
        served = {(r.node, held.image) for r in facts.reports for held in r.held if held.version == table.version}
        where = {image: payload.node for payload in table.payloads for image in payload.images}
        if table.version == self._sealed:
            lacking = missing - {image for _, image in served}
        else:
            lacking = {image for image in missing if (where[image], image) not in served}
        return bool(lacking) and is_settled(facts)

    def _is_due(self, sealed: Version, facts: Ledger, now: float) -> bool:
        """Whether somebody waits for it, or the interval has passed since the last one."""
        last = self._persisted
        if last is not None and sealed <= last:
            return False
        wanted = newest(*(report.wanted for report in facts.reports))
        if wanted is not None and wanted <= sealed and (last is None or last < wanted):
            return True
        match self._persistence:
            case None:
                return False
            case Steps(count):
                # A life that went back behind what is persisted has nothing of its own on storage yet.
                since = last.step if last is not None and last.step < sealed.step else 0
                return sealed.step // count > since // count
            case Seconds(seconds):
                interval_s = seconds
            case Auto():
                interval_s = persist_interval_s(self._config.failures, self._persist_took_s)
        # The first one at once: it also shows whether storage works, and how long it takes.
        return self._persist_began is None or now - self._persist_began >= interval_s


def _images(table: Table) -> tuple[Image, ...]:
    return tuple(image for payload in table.payloads for image in payload.images)


def _written(facts: Ledger, version: Version) -> set[Image]:
    parts = (report.part for report in facts.reports)
    return {image for part in parts if part and part.version == version for image in part.images}


def _is_safe(facts: Ledger, table: Table) -> bool:
    """Whether every image of it is in its place and every parity of it is placed: that is what sealed means."""
    return bool(table.map.groups) and is_in_place(facts, table) and is_protected(facts, table)
