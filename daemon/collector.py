"""What follows from the nodes' reports: who is lost, what is sealed, what to protect and to persist next.

Every node has one of these; the lowest live node's is the one that is announced. Sealing needs no vote (DESIGN 1.3):
"all ranks captured the version and all its parity is placed" stays true until slots are used again, and that happens
only after a newer version has reached it. So a collector may crash, be replaced, or exist twice without harm. (A version
that can never reach it may be given up too: `ckptd.ckpt.recovery.forsaken`.)
"""

from __future__ import annotations

from dataclasses import replace

from ckptd.ckpt.config import Config
from ckptd.ckpt.inventory import Ledger, Parity, Report
from ckptd.ckpt.model import Image, Table, Version
from ckptd.ckpt.recovery import is_complete, is_settled, survey

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
        self._seen: dict[int, tuple[Report, float]] = {}
        self._seqs: dict[tuple[int, str], int] = {}
        self._leading_since: float | None = None
        self._followed: Ledger | None = None
        """The last ledger of another collector: who was alive then has a moment to report here."""
        self._sealed: Version | None = None
        self._persisted: Version | None = None
        self._persist: Table | None = None
        self._protect: Version | None = None

    def observe(self, report: Report, now: float) -> bool:
        """Take in a report; return whether it says anything new. Late and repeated ones only show that the node lives."""
        known, run = self._seen.get(report.node), (report.node, report.boot)
        if report.seq <= self._seqs.get(run, -1):
            if known and known[0].boot == report.boot:
                self._seen[report.node] = (known[0], now)
            return False
        self._seqs[run] = report.seq
        self._seen[report.node] = (report, now)
        return True

    def follow(self, ledger: Ledger) -> None:
        """Another collector leads: keep what it has announced, so that a successor does not do it all again."""
        self._leading_since, self._followed = None, ledger
        self._sealed = newest(self._sealed, ledger.sealed)
        self._persisted = newest(self._persisted, ledger.persisted)
        self._persist = ledger.table(ledger.persist) if ledger.persist else None
        self._protect = ledger.protect

    def published(self, version: Version) -> None:
        """The manifest of `version` was written."""
        self._persisted = newest(self._persisted, version)

    def ledger(self, now: float) -> Ledger:
        """The facts as of now."""
        if self._leading_since is None:
            # What it heard when it led before may be long out of date. Everybody reports again within a moment.
            me = self._config.node
            self._leading_since, self._seen = now, {node: seen for node, seen in self._seen.items() if node == me}
        lost = self._lost(now)
        reports = tuple(report for node, (report, _) in sorted(self._seen.items()) if node not in lost)
        self._seq += 1
        epoch = max((report.epoch for report in reports), default=0)
        facts = Ledger(self._config.node, self._boot, self._seq, epoch=epoch, reports=reports, lost=lost)
        tables = {version: table for version, table in survey(facts).items() if is_complete(table)}
        self._seal(facts, tables)
        self._choose_persist(facts, tables)
        self._protect = self._next_to_protect(facts, tables)
        return replace(
            facts,
            sealed=self._sealed,
            persisted=self._persisted,
            persist=self._persist.version if self._persist else None,
            protect=self._protect,
            tables=self._announced(tables),
        )

    def check_invariants(self) -> None:
        """Each node's newest report is the newest that was heard of that run of it."""
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

    def _seal(self, facts: Ledger, tables: dict[Version, Table]) -> None:
        known = newest(self._sealed, *(report.sealed for report in facts.reports))
        reached = (
            version
            for version, table in tables.items()
            if (known is None or version > known) and _is_live(facts, table) and self._is_protected(facts, table)
        )
        self._sealed = newest(known, *reached)

    def _is_protected(self, facts: Ledger, table: Table) -> bool:
        placed = {parity for report in facts.reports if table in report.tables for parity in report.parities}
        wanted = {
            Parity(table.version, group.index, stripe, row)
            for group in self._config.groups
            if group.units(table)
            for node in group.nodes
            for stripe, row in group.owned(node)
        }
        return wanted <= placed

    def _next_to_protect(self, facts: Ledger, tables: dict[Version, Table]) -> Version | None:
        """Finish what was begun; else the newest version that is not fully protected. All its bytes must be live."""
        open_ones = [
            version
            for version, table in tables.items()
            if (self._sealed is None or version >= self._sealed)
            and _is_live(facts, table)
            and not self._is_protected(facts, table)
        ]
        return self._protect if self._protect in open_ones else newest(*open_ones)

    # ---- persisting -------------------------------------------------------------------------------

    def ready_to_publish(self, ledger: Ledger) -> Table | None:
        """The table of the version being persisted once every rank's image is on storage."""
        table = self._persist
        return table if table and set(_images(table)) <= _written(ledger, table.version) else None

    def _choose_persist(self, facts: Ledger, tables: dict[Version, Table]) -> None:
        """Finish what was begun, unless it can't be finished; else the newest sealed version, if it is due."""
        self._persisted = newest(self._persisted, *(report.persisted for report in facts.reports))
        begun = self._persist
        if begun and ((self._persisted and self._persisted >= begun.version) or self._is_hopeless(facts, begun)):
            self._persist = None
        sealed = tables.get(self._sealed) if self._sealed else None
        if self._persist is None and sealed and _is_live(facts, sealed) and self._is_due(sealed.version):
            self._persist = sealed

    def _is_hopeless(self, facts: Ledger, table: Table) -> bool:
        """Whether everybody has spoken, and an image of it is neither on storage nor in a slot."""
        have = _served(facts, table.version) | _written(facts, table.version)
        return is_settled(facts, self._config.groups) and not set(_images(table)) <= have

    def _is_due(self, sealed: Version) -> bool:
        """Whether a multiple of the interval has been passed since the last persisted version."""
        every, last = self._config.persist_every, self._persisted
        if not every or (last is not None and sealed <= last):
            return False
        # A life that went back behind what is persisted has nothing of its own on storage yet.
        since = last.step if last is not None and last.step < sealed.step else 0
        return sealed.step // every > since // every


def _images(table: Table) -> tuple[Image, ...]:
    return tuple(image for payload in table.payloads for image in payload.images)


def _served(facts: Ledger, version: Version) -> set[Image]:
    return {held.image for report in facts.reports for held in report.held if held.version == version}


def _written(facts: Ledger, version: Version) -> set[Image]:
    parts = (report.part for report in facts.reports)
    return {image for part in parts if part and part.version == version for image in part.images}


def _is_live(facts: Ledger, table: Table) -> bool:
    """Whether live nodes serve every image of it."""
    return set(_images(table)) <= _served(facts, table.version)
