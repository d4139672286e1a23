"""What stands in a node's memory in the simulated world, and the real code over it: symbols, parities, decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ckptd.ckpt.groups import Group
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Table, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.daemon.events import FoundSlot, SlotId
from ckptd.daemon.node import Node


@dataclass(eq=False)
class Host:
    """A node of the cluster: its segment directory, and its daemon while one runs."""

    index: int
    files: dict[SlotId, bytearray] = field(default_factory=dict)
    records: dict[SlotId, FoundSlot] = field(default_factory=dict)
    parities: dict[Parity, tuple[Table, bytes]] = field(default_factory=dict)
    remembered: tuple[int, Version | None] = (0, None)
    node: Node | None = None
    boots: int = 0
    damaged: list[FoundSlot] = field(default_factory=list)
    """What readers found not to match its record; the daemon is told."""

    def image(self, version: Version, image: Image) -> bytes | None:
        """The verified bytes of an image that has its record here."""
        for found in self.records.values():
            if found.version == version and found.image == image:
                return bytes(self.files[found.slot]) if self.is_sound(found) else None
        return None

    def is_sound(self, found: FoundSlot) -> bool:
        """Whether the bytes still match the record."""
        sound = digest(bytes(self.files[found.slot])) == found.image.digest
        if not sound:
            self.damaged.append(found)
        return sound

    def has(self, table: Table) -> bool:
        """Whether every image of this node's payload has its record here."""
        here = {(found.version, found.image) for found in self.records.values() if found not in self.damaged}
        return all((table.version, image) in here for image in table.payload(self.index).images)

    def has_parity(self, parity: Parity, table: Table) -> bool:
        return parity in self.parities and self.parities[parity][0] == table


Reach = Callable[[int], Host | None]
"""The host of a node, or None when the reader can't reach it."""


def digest(data: bytes) -> str:
    return digest_of(sums_of(data), len(data))


def segment(reach: Reach, group: Group, table: Table, stripe: int, symbol: int) -> bytes | None:
    """The bytes of one symbol of a stripe, or None when they can't be read."""
    layout, size = group.layout, group.units(table) * PIECE
    if symbol >= layout.k:
        row = symbol - layout.k
        host = reach(group.nodes[layout.parity_positions(stripe)[row]])
        parity = Parity(table.version, group.index, stripe, row)
        return host.parities[parity][1] if host and host.has_parity(parity, table) else None
    position = layout.data_positions(stripe)[symbol]
    index = layout.segment_of(position, stripe)
    assert index is not None
    images = table.payload(group.nodes[position]).images
    host = reach(group.nodes[position])
    parts = [host.image(table.version, image) if host else None for image in images]
    if any(part is None for part in parts):
        return None
    payload = b"".join(
        (part or b"").ljust(image.pieces * PIECE, b"\0") for part, image in zip(parts, images, strict=True)
    )
    return payload[index * size : (index + 1) * size].ljust(size, b"\0")


def encode(reach: Reach, group: Group, table: Table, parity: Parity) -> bytes | None:
    """One parity of a stripe, or None when a data symbol can't be read."""
    data = [segment(reach, group, table, parity.stripe, symbol) for symbol in range(group.layout.k)]
    sources = [part for part in data if part is not None]
    if len(sources) < len(data):
        return None
    out = bytearray(group.units(table) * PIECE)
    group.code.encode(sources, [parity.row], [out])
    return bytes(out)


def decode(
    reach: Reach, group: Group, table: Table, node: int, symbols: Callable[[int], Iterable[int]]
) -> bytes | None:
    """The lost payload of a node from any k of the `symbols(stripe)` of each stripe, or None when too few can be read."""
    layout, position = group.layout, group.nodes.index(node)
    payload = bytearray()
    if not layout.m:
        return None
    for index in range(layout.k):
        stripe = layout.stripe_of(position, index)
        lost = layout.symbol_of(position, stripe)
        have: dict[int, bytes] = {}
        for symbol in symbols(stripe):
            part = segment(reach, group, table, stripe, symbol) if symbol != lost and len(have) < layout.k else None
            if part is not None:
                have[symbol] = part
        if len(have) < layout.k:
            return None
        out = bytearray(group.units(table) * PIECE)
        group.code.decode(have, [lost], [out])
        payload += out
    return bytes(payload)


def cut_out(payload: bytes, table: Table, node: int, rank: int) -> bytes | None:
    """The verified image of a rank out of a decoded payload."""
    start = table.payload(node).start_of(rank) * PIECE
    image = table.holder(rank)[1]
    data = payload[start : start + image.size]
    return data if digest(data) == image.digest else None


def unrecoverable(hosts: Sequence[Host], groups: Sequence[Group], table: Table) -> str | None:
    """None when every image of the table stands on a host or can be decoded from what does, else what can't."""
    for group in groups:
        layout = group.layout
        for node in group.nodes:
            if hosts[node].has(table):
                continue
            for index in range(layout.k):
                stripe = layout.stripe_of(group.nodes.index(node), index)
                have = sum(hosts[group.nodes[position]].has(table) for position in layout.data_positions(stripe))
                for row, position in enumerate(layout.parity_positions(stripe)):
                    parity = Parity(table.version, group.index, stripe, row)
                    have += hosts[group.nodes[position]].has_parity(parity, table)
                if have < layout.k:
                    return (
                        f"{table.version}: node {node} has lost its payload, stripe {stripe} has {have} of {layout.k}"
                    )
    return None
