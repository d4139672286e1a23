"""Which snapshot can be restored, and from where: a pure function over what the nodes report (DESIGN section 6).

The ladder, cheapest rung first: own slots, a peer's slots, parity, storage. The newest version wins whose every rank
can be served; the plan says why, and why a newer one was passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ckptd.ckpt.barred import Barred
from ckptd.ckpt.groups import Group, group_of, groups_in, parities_of
from ckptd.ckpt.inventory import Held, Ledger, Parity, Report
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version

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


def tables_of(ledger: Ledger) -> dict[Version, tuple[Table, ...]]:
    """Every version that the nodes' reports name, with its tables, that of the newest map first.

    Where no table is known, as complete a one as can be made of what is held. A table that a parity was made under is taken
    as it is: it also names images whose node is lost.
    """
    known = dict.fromkeys([*ledger.tables, *(table for report in ledger.reports for table in report.tables)])
    tables: dict[Version, list[Table]] = {}
    for table in known:
        tables.setdefault(table.version, []).append(table)
    images: dict[Version, dict[int, tuple[int, Held]]] = {}
    for report in ledger.reports:
        for held in report.held:
            images.setdefault(held.version, {}).setdefault(held.image.rank, (report.node, held))
    for version, by_rank in images.items():
        if version not in tables:
            tables[version] = [_table(version, by_rank, ledger.map)]
    return {version: tuple(sorted(of, key=lambda table: table.map, reverse=True)) for version, of in tables.items()}


def survey(ledger: Ledger) -> dict[Version, Table]:
    """The newest table of every version."""
    return {version: tables[0] for version, tables in tables_of(ledger).items()}


def _table(version: Version, by_rank: dict[int, tuple[int, Held]], map_: GroupMap) -> Table:
    world = max(held.world for _, held in by_rank.values())
    return _arranged(version, world, {rank: (node, held.image) for rank, (node, held) in by_rank.items()}, map_)


def _arranged(version: Version, world: int, images: dict[int, tuple[int, Image]], map_: GroupMap) -> Table:
    payloads: dict[int, list[Image]] = {}
    for rank in sorted(images):
        node, image = images[rank]
        payloads.setdefault(node, []).append(image)
    return Table(version, world, tuple(Payload(node, tuple(payloads[node])) for node in sorted(payloads)), map_)


def is_complete(table: Table) -> bool:
    """Whether the table's images cover ranks 0..world-1 exactly."""
    ranks = [image.rank for payload in table.payloads for image in payload.images]
    return sorted(ranks) == list(range(table.world))


def moved(table: Table, ledger: Ledger) -> Table:
    """The table under the ledger's map. An image whose node has left goes to a live node that has it, else to the one that
    has the fewest bytes."""
    images: dict[int, tuple[int, Image]] = {}
    homeless = []
    taken = dict.fromkeys((report.node for report in ledger.reports if report.node in ledger.map.nodes), 0)
    for payload in table.payloads:
        for image in payload.images:
            having = [report.node for report, _ in holders(ledger, table.version, image) if report.node in taken]
            if payload.node in ledger.map.nodes or not taken:
                node = payload.node
            elif having:
                node = having[0]
            else:
                homeless.append(image)
                continue
            images[image.rank] = node, image
            if node in taken:  # one that is silent, and has not left, can bring nothing
                taken[node] += image.size
    for image in sorted(homeless, key=lambda image: (-image.size, image.rank)):
        node = min(taken, key=lambda node: (taken[node], node))
        images[image.rank] = node, image
        taken[node] += image.size
    return _arranged(table.version, table.world, images, ledger.map)


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
        if report and Parity(table.version, table.name, group.index, stripe, row) in report.parities:
            symbols.append(group.layout.k + row)
    return symbols


def is_in_place(ledger: Ledger, table: Table) -> bool:
    """Whether every image is served by the very node that the table names: what its parities protect is all there."""
    served = {(report.node, held.image) for report in ledger.reports for held in report.held if _of(held, table)}
    return all((payload.node, image) in served for payload in table.payloads for image in payload.images)


def is_protected(ledger: Ledger, table: Table) -> bool:
    """Whether all parities of the table are placed."""
    placed = {parity for report in ledger.reports for parity in report.parities if parity.table == table.name}
    return all(parity in placed for node in table.map.nodes for parity in parities_of(table, node))


def _of(held: Held, table: Table) -> bool:
    return held.version == table.version


def _undecodable(ledger: Ledger, table: Table, node: int) -> str | None:
    """None when the node's payload can be decoded under this table, else the reason why not."""
    group = group_of(table.map, node)
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


def sources_for(ledger: Ledger, tables: Sequence[Table]) -> tuple[Source, ...] | str:
    """Where each rank's image of a version comes from, from memory alone; or the reason why it can't.

    `tables` are those of the version, the newest map's first: each may serve to decode what is lost.
    """
    newest = tables[0]
    if not is_complete(newest):
        have = sum(len(payload.images) for payload in newest.payloads)
        return f"only {have} of {newest.world} ranks captured it"
    reasons: dict[tuple[int, int], str | None] = {}
    sources = []
    for rank in range(newest.world):
        live = holders(ledger, newest.version, newest.holder(rank)[1])
        if live:
            report, held = live[0]
            sources.append(Source(rank, _rung_of(report, held), report.node))
            continue
        for index, table in enumerate(tables):
            node = table.holder(rank)[0].node if is_complete(table) else -1
            if (index, node) not in reasons:
                reasons[index, node] = _undecodable(ledger, table, node)
            if reasons[index, node] is None:
                sources.append(Source(rank, "parity", node))
                break
        else:
            return next(reason for reason in reasons.values() if reason is not None)
    return tuple(sources)


def _rung_of(report: Report, held: Held) -> Rung:
    """A rebuilt image counts as what it was rebuilt from; a captured one is the rank's own unless the rank moved."""
    if held.origin == "captured":
        attached = {rank for rank, _ in report.ranks}
        return "peer" if attached and held.image.rank not in attached else "own"
    return held.origin


def plan(ledger: Ledger, stored: Sequence[Stored], barred: Barred | None = None) -> Plan:
    """Choose the newest version that can be restored and is not `barred`, with its reason.

    Where all that can be restored is barred, the oldest step of it is taken: a job is never left without a way on, and the
    farther back, the less it has of what the bars are for.
    """
    known, bars = tables_of(ledger), barred or Barred()
    on_storage = {item.version: item for item in stored}
    passed: list[str] = []
    kept: list[tuple[Version, Plan]] = []
    for version in sorted(set(known) | set(on_storage), reverse=True):
        found, problem = _restorable(ledger, known.get(version, ()), on_storage.get(version))
        why = bars.why(version) if found else ""
        if found and not why:
            return replace(found, reason=_why(found.reason, [*passed, *problem]))
        passed += [*problem, *([f"{version}: {why}"] if why else [])]
        kept += [(version, found)] if found else []
    if kept:
        _, last = min(kept, key=lambda item: (item[0].step, -item[0].epoch))
        return replace(last, reason=_why(f"{last.reason}, the oldest step, as all are barred", passed))
    return Plan(None, 0, "none", (), _why("a fresh start: no snapshot can be restored from memory or storage", passed))


def _restorable(ledger: Ledger, tables: Sequence[Table], stored: Stored | None) -> tuple[Plan | None, list[str]]:
    """How a version can be restored, by its tables and its manifest; and why not from memory, if not."""
    problem = []
    if tables:
        version = tables[0].version
        sources = sources_for(ledger, tables)
        if not isinstance(sources, str):
            rung = max((source.rung for source in sources), key=RUNGS.index)
            return Plan(version, tables[0].world, rung, sources, f"from memory ({rung})"), []
        problem = [f"{version}: {sources}"]
    if stored:
        sources = tuple(Source(rank, "storage", -1) for rank in range(stored.world))
        return Plan(stored.version, stored.world, "storage", sources, "from storage"), problem
    return None, problem


def _why(chosen: str, passed: list[str]) -> str:
    return f"{chosen}; passed over {'; '.join(passed[:3])}" if passed else chosen


def forsaken(ledger: Ledger) -> set[Version]:
    """The versions that are held and not sealed, and never will be: their images may be given up for newer ones.

    A rank has gone on without capturing one, or its life has ended before all ranks had: then nobody can ever complete
    it. Or it was complete and too much of it is lost. What can be restored is never forsaken: it will be sealed, or it
    was already and those who knew are gone. Only when every node is there can this be told: one that is silent may
    hold what seems to be missing, and may have sealed it. Without this rule a few snapshots that one rank skipped would
    fill the slots of the others for ever.

    A node that has left does not count as silent. It may have been cut off, and may know of a seal; but a version is
    sealed only when every owner has placed its parities, so an owner that has not is proof that it is not: as long as it
    still has its images, for one that has lost its memory since may have had the parities too.
    """
    if set(ledger.lost) - ledger.left or not is_settled(ledger):
        return set()
    known = tables_of(ledger)
    held = {held.version for report in ledger.reports for held in report.held}
    unsealed = [version for version in held if ledger.sealed is None or version > ledger.sealed]
    return {version for version in unsealed if _never_sealed(ledger, known[version])}


def _never_sealed(ledger: Ledger, tables: Sequence[Table]) -> bool:
    newest, lives = tables[0], ledger.lives()
    if is_complete(newest):
        lost = isinstance(sources_for(ledger, tables), str)
        # Not even when its life has ended: the next one may have been decided by who could not hear of the seal.
        return lost and not (ledger.left and any(_may_be_sealed(ledger, table) for table in tables))
    ended = bool(lives) and newest.version.epoch not in lives
    captured = {image.rank for payload in newest.payloads for image in payload.images}
    missing = [c for report in ledger.reports for c in report.captures if c.rank not in captured]
    return ended or any(captures.has_passed(newest.version) for captures in missing)


def _may_be_sealed(ledger: Ledger, table: Table) -> bool:
    """Whether no owner that can be heard is proof that it is not: one that has its images and not its parities."""
    for report in ledger.reports:
        images, held = table.payload(report.node).images, {held.image for held in report.held if _of(held, table)}
        remembers = bool(images) and held.issuperset(images)
        if remembers and not set(parities_of(table, report.node)) <= set(report.parities):
            return False
    return True


def making_way(ledger: Ledger, wanted: Version) -> set[Version]:
    """The forsaken versions once every rank has `wanted` or room for it, else none.

    All ranks then go on with the same version. Where each made room by itself, one would capture what the other skips,
    and the other way round, without end.
    """
    gone = forsaken(ledger)
    for report in ledger.reports:
        for captures in report.captures:
            held = [held.version for held in report.held if held.image.rank == captures.rank]
            old = [version for version in held if version in gone or (ledger.sealed and version < ledger.sealed)]
            if not (captures.free or old or wanted in captures.unfinished or wanted in held):
                return set()
    return gone


def is_settled(ledger: Ledger) -> bool:
    """Whether every node has said what it holds, or counts as lost."""
    return len(ledger.reports) + len(ledger.lost) >= ledger.nodes and all(report.scanned for report in ledger.reports)


def losses_tolerated(ledger: Ledger, tables: Sequence[Table]) -> int:
    """How many more nodes of any one group may be lost before a version needs storage (-1: it already does).

    `tables` are those of the version: the best one counts.
    """
    return max((_spare(ledger, table) for table in tables), default=-1)


def _spare(ledger: Ledger, table: Table) -> int:
    if not is_complete(table):
        return -1
    spare = []
    for group in groups_in(table.map):
        if any(table.payload(node).images for node in group.nodes):
            stripes = range(group.layout.n) if group.layout.m else range(1)
            spare.append(min(len(surviving(ledger, table, group, s)) - group.layout.k for s in stripes))
    return min(spare, default=0)
