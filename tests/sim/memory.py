"""What stands in a node's memory in the simulated world, and the real code over it: symbols, parities, decoding.

One byte here stands for `SCALE` bytes of an image, so that payloads of several pieces are small and quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ckptd.ckpt.groups import Group, group_of
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Table, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.daemon.events import FoundSlot, ParityDamaged, SlotId
from ckptd.daemon.node import Node
from ckptd.daemon.places import Places

UNIT = 64
"""Bytes that stand for one piece."""
SCALE = PIECE // UNIT


@dataclass(eq=False, slots=True)
class Segment:
    """A parity that stands in memory: the bytes, and the sum that its record says."""

    table: Table
    data: bytearray
    digest: str
    flipped: bool = False
    """Whether a fault has changed it. Only the checks look at this, never what is checked."""


@dataclass(eq=False)
class Host:
    """A node of the cluster: its segment directory, its clock, and its daemon while one runs."""

    index: int
    files: dict[SlotId, bytearray] = field(default_factory=dict)
    records: dict[SlotId, FoundSlot] = field(default_factory=dict)
    parities: dict[Parity, Segment] = field(default_factory=dict)
    remembered: tuple[int, Version | None] = (0, None)
    node: Node | None = None
    boots: int = 0
    damaged: list[FoundSlot] = field(default_factory=list)
    """Images whose bytes were changed by a fault or found not to match; the daemon is told soon."""
    full: bool = False
    """Whether the tmpfs has no room for anything new."""
    clock: tuple[float, float] = (0.0, 1.0)
    """What the node's own clock shows: an offset, and seconds per second."""
    places: Places = field(default_factory=Places)
    """Who answered this host's daemon at each address."""
    frozen_until: float = 0.0
    backlog: list[Callable[[], None]] = field(default_factory=list)
    """What came while the daemon was frozen, in order."""

    def image(self, version: Version, image: Image) -> bytes | None:
        """The verified bytes of an image that has its record here."""
        for found in self.records.values():
            if found.version == version and found.image == image:
                return bytes(self.files[found.slot]) if self.is_sound(found) else None
        return None

    def is_sound(self, found: FoundSlot) -> bool:
        """Whether the bytes still match the record."""
        sound = digest(bytes(self.files[found.slot])) == found.image.digest
        if not sound and found not in self.damaged:
            self.damaged.append(found)
        return sound

    def parity(self, parity: Parity, table: Table) -> bytes | ParityDamaged | None:
        """The verified bytes of a parity made under this table."""
        segment = self.parities.get(parity)
        if segment is None or segment.table != table:
            return None
        return bytes(segment.data) if digest(bytes(segment.data)) == segment.digest else ParityDamaged(parity)

    def holds(self, version: Version, image: Image) -> bool:
        """Whether an image has its record here, and is not damaged."""
        return any(f.version == version and f.image == image and f not in self.damaged for f in self.records.values())

    def has(self, table: Table) -> bool:
        """Whether every image of this node's payload has its record here."""
        return all(self.holds(table.version, image) for image in table.payload(self.index).images)

    def has_parity(self, parity: Parity, table: Table) -> bool:
        segment = self.parities.get(parity)
        return segment is not None and segment.table == table and not segment.flipped


Reach = Callable[[int], Host | None]
"""The host of a node, or None when the reader can't reach it."""
Telling = Callable[[Host, ParityDamaged], None]


def digest(data: bytes) -> str:
    return digest_of(sums_of(data), len(data) * SCALE)


def segment(reach: Reach, tell: Telling, where: tuple[Group, Table, int], symbol: int) -> bytes | None:
    """The bytes of one symbol of a stripe, or None when they can't be read. `where` is (group, table, stripe)."""
    group, table, stripe = where
    layout, size = group.layout, group.units(table) * UNIT
    if symbol >= layout.k:
        row = symbol - layout.k
        host = reach(group.nodes[layout.parity_positions(stripe)[row]])
        data = host.parity(Parity(table.version, table.name, group.index, stripe, row), table) if host else None
        if isinstance(data, ParityDamaged) and host:
            tell(host, data)
            return None
        return data if isinstance(data, bytes) else None
    position = layout.data_positions(stripe)[symbol]
    index = layout.segment_of(position, stripe)
    assert index is not None
    images = table.payload(group.nodes[position]).images
    host = reach(group.nodes[position])
    parts = [host.image(table.version, image) if host else None for image in images]
    if any(part is None for part in parts):
        return None
    payload = b"".join(
        (part or b"").ljust(image.pieces * UNIT, b"\0") for part, image in zip(parts, images, strict=True)
    )
    return payload[index * size : (index + 1) * size].ljust(size, b"\0")


def decode(
    reach: Reach, tell: Telling, where: tuple[Group, Table], node: int, symbols: Callable[[int], Iterable[int]]
) -> bytes | None:
    """The lost payload of a node from any k of the `symbols(stripe)` of each stripe, or None when too few can be read."""
    group, table = where
    layout, position = group.layout, group.nodes.index(node)
    payload = bytearray()
    if not layout.m:
        return None
    for index in range(layout.k):
        stripe = layout.stripe_of(position, index)
        lost = layout.symbol_of(position, stripe)
        have: dict[int, bytes] = {}
        for symbol in symbols(stripe):
            wanted = symbol != lost and len(have) < layout.k
            part = segment(reach, tell, (group, table, stripe), symbol) if wanted else None
            if part is not None:
                have[symbol] = part
        if len(have) < layout.k:
            return None
        out = bytearray(group.units(table) * UNIT)
        group.code.decode(have, [lost], [out])
        payload += out
    return bytes(payload)


def cut_out(payload: bytes, table: Table, node: int, rank: int) -> bytes | None:
    """The verified image of a rank out of a decoded payload."""
    start = table.payload(node).start_of(rank) * UNIT
    image = table.holder(rank)[1]
    data = payload[start : start + image.size // SCALE]
    return data if digest(data) == image.digest else None


def unrecoverable(hosts: Sequence[Host], tables: Sequence[Table]) -> str | None:
    """None when every image of a version stands on a host or can be decoded under one of its tables, else what can't."""
    for rank in range(tables[0].world):
        image = tables[0].holder(rank)[1]
        if any(host.holds(tables[0].version, image) for host in hosts):
            continue
        reasons = [_undecodable(hosts, table, table.holder(rank)[0].node) for table in tables]
        if None not in reasons:
            return f"{tables[0].version}: rank {rank} is lost; {reasons[0]}"
    return None


def _undecodable(hosts: Sequence[Host], table: Table, node: int) -> str | None:
    group = group_of(table.map, node)
    if group is None:
        return f"node {node} is in no group"
    layout, at = group.layout, group.nodes.index(node)
    whole = [hosts[member].has(table) for member in group.nodes]
    for index in range(layout.k):
        stripe = layout.stripe_of(at, index)
        have = sum(whole[position] for position in layout.data_positions(stripe))
        for row, position in enumerate(layout.parity_positions(stripe)):
            parity = Parity(table.version, table.name, group.index, stripe, row)
            have += hosts[group.nodes[position]].has_parity(parity, table)
        if have < layout.k:
            return f"node {node} has lost its payload, stripe {stripe} has {have} of {layout.k}"
    return None
