"""Wire messages to values and back. Whatever comes in is checked here, before it becomes a value of the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from google.protobuf.message import DecodeError

from ckptd.ckpt.domain import check_domain
from ckptd.ckpt.errors import CorruptionError, PeerError, UsageError
from ckptd.ckpt.inventory import ORIGINS, Captures, Held, Ledger, Parity, Part, Report
from ckptd.ckpt.model import GroupMap, Image, Payload, Table, Version
from ckptd.ckpt.sighting import Sighting
from ckptd.ckpt.tables import (
    PID_MAX,
    RANKS_MAX,
    STEP_MAX,
    check_digest,
    check_image,
    check_map,
    check_table,
    nodes_in,
    number,
)
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.barred import barred_in, barred_out
from ckptd.ckpt.wire.sightings import sighting_in, sighting_out
from ckptd.ckpt.wire.translate_rounds import (
    agent_in,
    agent_out,
    isolation_in,
    isolation_out,
    round_in,
    round_out,
    wish_in,
    wish_out,
)

Letter: TypeAlias = Report | Ledger | Sighting


def version_out(version: Version | None) -> pb.Version | None:
    return pb.Version(epoch=version.epoch, step=version.step) if version is not None else None


def version_in(message: pb.Version) -> Version:
    return Version(number("epoch", message.epoch, STEP_MAX), number("step", message.step, STEP_MAX))


def _image_out(image: Image) -> pb.Image:
    return pb.Image(rank=image.rank, size=image.size, digest=image.digest)


def _image_in(message: pb.Image) -> Image:
    return check_image(message.rank, message.size, message.digest)


def _table_out(table: Table) -> pb.Table:
    payloads = [pb.Payload(node=p.node, images=[_image_out(image) for image in p.images]) for p in table.payloads]
    return pb.Table(version=version_out(table.version), world=table.world, payloads=payloads, map=_map_out(table.map))


def _map_out(map_: GroupMap) -> pb.GroupMap:
    return pb.GroupMap(
        number=map_.number,
        parity=map_.parity,
        groups=[pb.Nodes(nodes=nodes) for nodes in map_.groups],
        domains=[pb.Domain(node=node, name=name) for node, name in map_.domains],
    )


def _map_in(message: pb.GroupMap) -> GroupMap:
    groups = tuple(tuple(group.nodes) for group in message.groups)
    domains = tuple((domain.node, domain.name) for domain in message.domains)
    return check_map(GroupMap(number("map", message.number, STEP_MAX), message.parity, groups, domains))


def _table_in(message: pb.Table) -> Table:
    return _table_of(message.SerializeToString(deterministic=True))


@lru_cache(maxsize=256)
def _table_of(data: bytes) -> Table:
    """Every letter repeats the same few tables: each is read and checked once, and stays one object with one name."""
    message = pb.Table.FromString(data)
    payloads = tuple(Payload(p.node, tuple(_image_in(image) for image in p.images)) for p in message.payloads)
    world = number("world", message.world, RANKS_MAX)
    return check_table(Table(version_in(message.version), world, payloads, _map_in(message.map)))


def _captures_out(captures: Captures) -> pb.Captures:
    unfinished = [pb.Version(epoch=version.epoch, step=version.step) for version in captures.unfinished]
    return pb.Captures(
        rank=captures.rank,
        free=captures.free,
        begun=version_out(captures.begun),
        unfinished=unfinished,
        epoch=captures.epoch,
    )


def _captures_in(message: pb.Captures) -> Captures:
    rank, free = number("rank", message.rank, RANKS_MAX), number("free slots", message.free, RANKS_MAX)
    unfinished = tuple(version_in(item) for item in message.unfinished)
    return Captures(rank, free, _maybe(message, "begun"), unfinished, number("epoch", message.epoch, STEP_MAX))


def _report_out(report: Report) -> pb.Report:
    message = pb.Report(
        node=report.node,
        boot=report.boot,
        seq=report.seq,
        data_port=report.data_port,
        epoch=report.epoch,
        ranks=[pb.Attached(rank=rank, pid=pid) for rank, pid in report.ranks],
        captures=[_captures_out(captures) for captures in report.captures],
        held=[
            pb.Held(version=version_out(h.version), world=h.world, image=_image_out(h.image), origin=h.origin)
            for h in report.held
        ],
        parities=[
            pb.Parity(version=version_out(p.version), table=p.table, group=p.group, stripe=p.stripe, row=p.row)
            for p in report.parities
        ],
        tables=[_table_out(table) for table in report.tables],
        sealed=version_out(report.sealed),
        persisted=version_out(report.persisted),
        questions=report.questions,
        wanted=version_out(report.wanted),
        domain=report.domain,
        scanned=report.scanned,
        agent=agent_out(report.agent),
        wish=wish_out(report.wish),
        isolations=[isolation_out(isolation) for isolation in report.isolations],
        barred=barred_out(report.barred),
    )
    if report.part is not None:
        images = [_image_out(image) for image in report.part.images]
        message.part.CopyFrom(pb.Part(version=version_out(report.part.version), images=images))
    return message


def _held_in(message: pb.Held) -> Held:
    origin = next((known for known in ORIGINS if known == message.origin), None)
    if origin is None:
        raise CorruptionError(f"origin: found {message.origin!r}, expected one of {', '.join(ORIGINS)}")
    world, image = number("world", message.world, RANKS_MAX), _image_in(message.image)
    if image.rank >= world:
        raise CorruptionError(f"rank {image.rank} in a world of {world}")
    return Held(version_in(message.version), world, image, origin)


def _report_in(message: pb.Report) -> Report:
    part = None
    if message.HasField("part"):
        part = Part(version_in(message.part.version), tuple(_image_in(image) for image in message.part.images))
    return Report(
        node=number("node", message.node, RANKS_MAX),
        boot=_boot_in(message.boot),
        seq=number("seq", message.seq, STEP_MAX),
        data_port=number("data port", message.data_port, 65536),
        epoch=number("epoch", message.epoch, STEP_MAX),
        ranks=tuple((number("rank", item.rank, RANKS_MAX), number("pid", item.pid, PID_MAX)) for item in message.ranks),
        captures=tuple(_captures_in(item) for item in message.captures),
        held=tuple(_held_in(item) for item in message.held),
        parities=tuple(_parity_in(parity) for parity in message.parities),
        tables=tuple(_table_in(table) for table in message.tables),
        part=part,
        sealed=_maybe(message, "sealed"),
        persisted=_maybe(message, "persisted"),
        questions=number("questions", message.questions, STEP_MAX),
        wanted=_maybe(message, "wanted"),
        domain=check_domain(message.domain, "domain") if message.domain else "",
        scanned=message.scanned,
        agent=agent_in(message.agent) if message.HasField("agent") else None,
        wish=wish_in(message.wish) if message.HasField("wish") else None,
        isolations=tuple(isolation_in(item) for item in message.isolations),
        barred=barred_in(message.barred),
    )


def _parity_in(message: pb.Parity) -> Parity:
    name = check_digest(message.table)
    return Parity(version_in(message.version), name, message.group, message.stripe, message.row)


def _ledger_out(ledger: Ledger) -> pb.Ledger:
    return pb.Ledger(
        collector=ledger.collector,
        boot=ledger.boot,
        seq=ledger.seq,
        epoch=ledger.epoch,
        sealed=version_out(ledger.sealed),
        persisted=version_out(ledger.persisted),
        persist=version_out(ledger.persist),
        protect=version_out(ledger.protect),
        tables=[_table_out(table) for table in ledger.tables],
        reports=[_report_out(report) for report in ledger.reports],
        lost=ledger.lost,
        nodes=ledger.nodes,
        map=_map_out(ledger.map),
        shielded=version_out(ledger.shielded),
        round=round_out(ledger.round),
        isolations=[isolation_out(isolation) for isolation in ledger.isolations],
        barred=barred_out(ledger.barred),
    )


def _maybe(message: pb.Report | pb.Ledger | pb.Captures, name: Any) -> Version | None:
    return version_in(getattr(message, name)) if message.HasField(name) else None


def _ledger_in(message: pb.Ledger) -> Ledger:
    return Ledger(
        collector=number("collector", message.collector, RANKS_MAX),
        boot=_boot_in(message.boot),
        seq=number("seq", message.seq, STEP_MAX),
        epoch=number("epoch", message.epoch, STEP_MAX),
        sealed=_maybe(message, "sealed"),
        persisted=_maybe(message, "persisted"),
        persist=_maybe(message, "persist"),
        protect=_maybe(message, "protect"),
        tables=tuple(_table_in(table) for table in message.tables),
        reports=tuple(_report_in(report) for report in message.reports),
        lost=tuple(number("lost node", node, RANKS_MAX) for node in message.lost),
        nodes=number("nodes", message.nodes, RANKS_MAX),
        map=_map_in(message.map),
        shielded=_maybe(message, "shielded"),
        round=round_in(message.round) if message.HasField("round") else None,
        isolations=tuple(isolation_in(item) for item in message.isolations),
        barred=barred_in(message.barred),
    )


def _boot_in(boot: str) -> str:
    if not 1 <= len(boot) <= 64:
        raise CorruptionError(f"boot: found {len(boot)} characters, expected 1 to 64")
    return boot


def letter_out(letter: Letter) -> bytes:
    """The bytes of a letter between daemons."""
    if isinstance(letter, Sighting):
        return pb.Letter(sighting=sighting_out(letter)).SerializeToString()
    if isinstance(letter, Report):
        return pb.Letter(report=_report_out(letter)).SerializeToString()
    return pb.Letter(ledger=_ledger_out(letter)).SerializeToString()


def letter_in(data: bytes, nodes: int) -> Letter:
    """The letter that `data` holds. Raises PeerError for anything that no daemon of this job would send."""
    try:
        message = pb.Letter.FromString(data)
        if message.WhichOneof("body") == "report":
            report = _report_in(message.report)
            _check_nodes(nodes, [report], (), [item.node for item in report.isolations])
            return report
        if message.WhichOneof("body") == "sighting":
            seen = sighting_in(message.sighting)
            if seen.node >= nodes:
                raise CorruptionError(f"node {seen.node} in a job of {nodes} nodes")
            return seen
        ledger = _ledger_in(message.ledger)
        members = [member.node for member in ledger.round.members] if ledger.round else []
        known = (*ledger.isolations, *(item for report in ledger.reports for item in report.isolations))
        others = [ledger.collector, *ledger.lost, *ledger.map.nodes, *members, *(item.node for item in known)]
        _check_nodes(nodes, ledger.reports, ledger.tables, others)
        if ledger.nodes != nodes:
            raise CorruptionError(f"a ledger of {ledger.nodes} nodes in a job of {nodes}")
        return ledger
    except (DecodeError, CorruptionError, UsageError) as error:
        raise PeerError(f"a letter that can't be read: {error}") from error


def _check_nodes(
    nodes: int, reports: Sequence[Report], tables: Sequence[Table] = (), others: Sequence[int] = ()
) -> None:
    """Whoever is named must be of this job: nodes are indices into its list of addresses."""
    senders = [report.node for report in reports]
    all_tables = [*tables, *(table for report in reports for table in report.tables)]
    named = [*senders, *others, *(node for table in all_tables for node in nodes_in(table))]
    if named and max(named) >= nodes:
        raise CorruptionError(f"node {max(named)} in a job of {nodes} nodes")
    if len(set(senders)) < len(senders):
        raise CorruptionError("two reports of one node")
