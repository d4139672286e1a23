"""Which snapshot can be restored, and from where: a pure function over what the nodes report (DESIGN section 6).

The ladder, cheapest rung first: own slots, a peer's slots, parity, storage. The newest version wins whose every rank
can be served; the plan says why, and why a newer one was passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ckptd.ckpt.groups import Group
from ckptd.ckpt.inventory import Held, Ledger, Parity, Report
from ckptd.ckpt.model import Image, Payload, Table, Version

Rung = Literal["own", "peer", "parity", "storage", "none"]
RUNGS: tuple[Rung, ...] = ("none", "own", "peer", "parity", "storage")


@dataclass(frozen=True, slots=True)
class Stored:
    """A persisted version, as its manifest says."""

    version: Version
    world: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where one rank's image comes from: `node` holds it, or held it and is decoded from parity (-1: storage)."""

    rank: int
    rung: Rung
    node: int


@dataclass(frozen=True, slots=True)
class Plan:
    version: Version | None
    world: int
    rung: Rung
    sources: tuple[Source, ...]
    reason: str


def survey(ledger: Ledger) -> dict[Version, Table]:
    """Every version that the nodes' reports name, as complete a table as can be made of it.

    A table that a parity was made under is taken as it is: it also names images whose node is lost.
    """
    tables = {table.version: table for report in ledger.reports for table in report.tables}
    tables |= {table.version: table for table in ledger.tables}
    images: dict[Version, dict[int, tuple[int, Held]]] = {}
    for report in ledger.reports:
        for held in report.held:
            images.setdefault(held.version, {}).setdefault(held.image.rank, (report.node, held))
    for version, by_rank in images.items():
        if version not in tables:
            tables[version] = _table(version, by_rank)
    return tables


def _table(version: Version, by_rank: dict[int, tuple[int, Held]]) -> Table:
    payloads: dict[int, list[Image]] = {}
    for rank in sorted(by_rank):
        node, held = by_rank[rank]
        payloads.setdefault(node, []).append(held.image)
    world = max(held.world for _, held in by_rank.values())
    return Table(version, world, tuple(Payload(node, tuple(payloads[node])) for node in sorted(payloads)))


def is_complete(table: Table) -> bool:
    """Whether the table's images cover ranks 0..world-1 exactly."""
    ranks = [image.rank for payload in table.payloads for image in payload.images]
    return sorted(ranks) == list(range(table.world))


def holders(ledger: Ledger, version: Version, image: Image) -> list[tuple[Report, Held]]:
    """The live nodes that serve exactly this image, those that captured it themselves first."""
    found = [
        (report, held)
        for report in ledger.reports
        for held in report.held
        if held.version == version and held.image == image
    ]
    return sorted(found, key=lambda item: item[1].origin != "captured")


def surviving(ledger: Ledger, table: Table, group: Group, stripe: int) -> list[int]:
    """The symbols of a stripe that live nodes can serve: 0..k-1 data, k..k+m-1 parity rows."""
    symbols = []
    for symbol, position in enumerate(group.layout.data_positions(stripe)):
        payload = table.payload(group.nodes[position])
        report = ledger.report(payload.node)
        served = {held.image for held in report.held if held.version == table.version} if report else set()
        if all(image in served for image in payload.images):
            symbols.append(symbol)
    for row, position in enumerate(group.layout.parity_positions(stripe)):
        report = ledger.report(group.nodes[position])
        if report and Parity(table.version, group.index, stripe, row) in report.parities and table in report.tables:
            symbols.append(group.layout.k + row)
    return symbols


def group_of(groups: Sequence[Group], node: int) -> Group | None:
    return next((group for group in groups if node in group.nodes), None)


def _decodable(ledger: Ledger, table: Table, groups: Sequence[Group], node: int) -> str | None:
    """None when the node's payload can be decoded, else the reason why not."""
    group = group_of(groups, node)
    if group is None or group.layout.m == 0:
        return f"node {node} is lost and has no parity"
    position = group.nodes.index(node)
    for stripe in range(group.layout.n):
        if group.layout.segment_of(position, stripe) is None:
            continue
        have = len(surviving(ledger, table, group, stripe))
        if have < group.layout.k:
            return f"node {node} is lost and only {have} of the {group.layout.k} needed parts of stripe {stripe} live"
    return None


def sources_for(ledger: Ledger, table: Table, groups: Sequence[Group]) -> tuple[Source, ...] | str:
    """Where each rank's image of this version comes from, from memory alone; or the reason why it can't."""
    if not is_complete(table):
        have = sum(len(payload.images) for payload in table.payloads)
        return f"only {have} of {table.world} ranks captured it"
    undecodable: dict[int, str | None] = {}
    sources = []
    for rank in range(table.world):
        payload, image = table.holder(rank)
        live = holders(ledger, table.version, image)
        if live:
            report, held = live[0]
            sources.append(Source(rank, _rung_of(report, held), report.node))
            continue
        if payload.node not in undecodable:
            undecodable[payload.node] = _decodable(ledger, table, groups, payload.node)
        reason = undecodable[payload.node]
        if reason is not None:
            return reason
        sources.append(Source(rank, "parity", payload.node))
    return tuple(sources)


def _rung_of(report: Report, held: Held) -> Rung:
    """A rebuilt image counts as what it was rebuilt from; a captured one is the rank's own unless the rank moved."""
    if held.origin == "captured":
        attached = {rank for rank, _ in report.ranks}
        return "peer" if attached and held.image.rank not in attached else "own"
    return held.origin


def plan(ledger: Ledger, stored: Sequence[Stored], groups: Sequence[Group]) -> Plan:
    """Choose the newest version that can be restored, with its reason."""
    tables = survey(ledger)
    on_storage = {item.version: item for item in stored}
    passed: list[str] = []
    for version in sorted(set(tables) | set(on_storage), reverse=True):
        if version in tables:
            sources = sources_for(ledger, tables[version], groups)
            if not isinstance(sources, str):
                rung = max((source.rung for source in sources), key=RUNGS.index)
                return Plan(version, tables[version].world, rung, sources, _why(f"from memory ({rung})", passed))
            passed.append(f"{version}: {sources}")
        if version in on_storage:
            world = on_storage[version].world
            sources = tuple(Source(rank, "storage", -1) for rank in range(world))
            return Plan(version, world, "storage", sources, _why("from storage", passed))
    return Plan(None, 0, "none", (), _why("a fresh start: no snapshot can be restored from memory or storage", passed))


def _why(chosen: str, passed: list[str]) -> str:
    return f"{chosen}; passed over {'; '.join(passed[:3])}" if passed else chosen


def forsaken(ledger: Ledger, groups: Sequence[Group]) -> set[Version]:
    """The versions that are held and not sealed, and never will be: their images may be given up for newer ones.

    A rank has gone on without capturing one, or its life has ended before all ranks had: then nobody can ever complete
    it. Or it was complete and too much of it is lost. What can be restored is never forsaken: it will be sealed, or it
    was already and those who knew are gone. Only when every node is there can this be told: one that is silent may
    hold what seems to be missing, and may have sealed it. Without this rule a few snapshots that one rank skipped would
    fill the slots of the others for ever.
    """
    if ledger.lost or not is_settled(ledger, groups):
        return set()
    tables = survey(ledger)
    held = {held.version for report in ledger.reports for held in report.held}
    unsealed = [version for version in held if ledger.sealed is None or version > ledger.sealed]
    return {version for version in unsealed if _never_sealed(ledger, tables[version], groups)}


def _never_sealed(ledger: Ledger, table: Table, groups: Sequence[Group]) -> bool:
    if is_complete(table):
        return isinstance(sources_for(ledger, table, groups), str)
    captured = {image.rank for payload in table.payloads for image in payload.images}
    missing = [c for report in ledger.reports for c in report.captures if c.rank not in captured]
    lives = ledger.lives()
    ended = bool(lives) and table.version.epoch not in lives
    return ended or any(captures.has_passed(table.version) for captures in missing)


def making_way(ledger: Ledger, wanted: Version, groups: Sequence[Group]) -> set[Version]:
    """The forsaken versions once every rank has `wanted` or room for it, else none.

    All ranks then go on with the same version. Where each made room by itself, one would capture what the other skips,
    and the other way round, without end.
    """
    gone = forsaken(ledger, groups)
    for report in ledger.reports:
        for captures in report.captures:
            held = [held.version for held in report.held if held.image.rank == captures.rank]
            old = [version for version in held if version in gone or (ledger.sealed and version < ledger.sealed)]
            if not (captures.free or old or wanted in captures.unfinished or wanted in held):
                return set()
    return gone


def is_settled(ledger: Ledger, groups: Sequence[Group]) -> bool:
    """Whether every node has said what it holds, or counts as lost."""
    nodes = sum(len(group.nodes) for group in groups)
    return len(ledger.reports) + len(ledger.lost) >= nodes and all(report.scanned for report in ledger.reports)


def losses_tolerated(ledger: Ledger, table: Table, groups: Sequence[Group]) -> int:
    """How many more nodes of any one group may be lost before this version needs storage (-1: it already does)."""
    if not is_complete(table):
        return -1
    spare = []
    for group in groups:
        if any(table.payload(node).images for node in group.nodes):
            stripes = range(group.layout.n) if group.layout.m else range(1)
            spare.append(min(len(surviving(ledger, table, group, s)) - group.layout.k for s in stripes))
    return min(spare, default=0)
