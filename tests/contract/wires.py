"""What the contract of `Transport` runs on: the real one over TCP, plain and sealed, and one in memory for tests of what
stands above it.

Both read what a `Held` holds, over a path with the `Faults` that the test asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from tests.payload import bytes_of

from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import Buffer, digest_of, piece_sum, sums_of
from ckptd.daemon.channel import PLAIN, Channel, Session, Wrapping
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Limits, Member
from ckptd.daemon.sealed import SEALED
from ckptd.daemon.segments import Stretch
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transport import DamagedThere, Endpoint, Holder, Listed, NotHeld, Range, Transport

JOB, SECRET, HOST = "job", b"s" * 32, "127.0.0.1"
V = Version(3, 7)
PIECES = 8
SIZE = (PIECES - 1) * PIECE + 12_345
DATA = bytes_of(V, 0, SIZE)
SUMS = sums_of(DATA)
IMAGE = Image(0, SIZE, digest_of(SUMS, SIZE))
PARITY = Parity(V, "5a" * 16, 1, 2, 0)
GRAIN = 3
"""Pieces of one request, so that a read of `PIECES` takes several."""
READER, SERVER = (Member(job=JOB, node=node, secret=SECRET) for node in (0, 1))


class Held:
    """What one node holds: the same bytes as an image and as a parity."""

    def __init__(self) -> None:
        self.data = bytearray(DATA)
        self.stretch = Stretch(memoryview(self.data), list(SUMS))
        self.given_up = False
        self.protects = False
        """Keeps a parity of the image, and not the image itself."""
        self.reported: list[int] = []
        """Damaged pieces that the holder has learnt of."""

    def holder(self) -> Holder:
        return Holder(self.image, self.parity, self.check, self.listed)

    def image(self, version: Version, rank: int, digest: str) -> Stretch | None:
        return self.stretch if (version, rank, digest) == (V, 0, IMAGE.digest) and not self.protects else None

    def listed(self, digest: str) -> Listed | None:
        return np.array(SUMS, np.uint64) if digest == IMAGE.digest and self.protects else None

    def parity(self, parity: Parity) -> Stretch | None:
        return self.stretch if parity == PARITY else None

    def check(self, stretch: Stretch, first: int, count: int) -> list[int] | None:
        view = stretch.view
        bad = [
            i for i in range(first, first + count) if piece_sum(view[i * PIECE : (i + 1) * PIECE]) != stretch.sums[i]
        ]
        if bad and self.given_up:
            return None
        self.reported += bad
        return bad

    def damage(self, piece: int) -> None:
        self.data[piece * PIECE + 77] ^= 1


@dataclass(slots=True)
class Faults:
    """What happens on the path to the reader."""

    flips: int = 0
    """In each of the next so many messages with pieces a bit flips, in the middle."""
    cuts: int = 0
    """So many connections break, each when `cut_after` bytes of pieces have come through it."""
    cut_after: int = 0
    moved: int = 0
    """Bytes of pieces that have come through."""

    def passes(self, view: memoryview, so_far: int) -> int:
        """The faults of one message: how many of its bytes come through, of which one may be spoilt."""
        through = len(view)
        if self.cuts and so_far + through > self.cut_after:
            through = self.cut_after - so_far
            self.cuts -= 1
        elif self.flips:
            self.flips -= 1
            view[len(view) // 2] ^= 1
        self.moved += through
        return through


class FaultyChannel:
    """A channel with faults in the messages that carry pieces."""

    def __init__(self, inner: Channel, where: str, faults: Faults) -> None:
        self._inner, self._where, self._faults, self._so_far = inner, where, faults, 0

    def send(self, *buffers: Buffer) -> None:
        self._inner.send(*buffers)

    def receive_into(self, view: memoryview) -> None:
        if len(view) < 4096:
            self._inner.receive_into(view)
            return
        arrived = memoryview(bytearray(len(view)))
        self._inner.receive_into(arrived)
        through = self._faults.passes(arrived, self._so_far)
        self._so_far += through
        view[:through] = arrived[:through]
        if through < len(view):
            self._inner.close()
            raise PeerError(f"{self._where}: the connection was closed in the middle of a message")

    def close(self) -> None:
        self._inner.close()


class MemoryTransport:
    """Reads from a `Held` in this process, and keeps the contract of `Transport`."""

    def __init__(self, node: int, held: Held, faults: Faults) -> None:
        self._node, self._held, self._faults, self._closed = node, held, faults, False

    def read(self, holder: Endpoint, wanted: Range, into: memoryview) -> int:
        missing, damaged, fruitless, length = list(wanted.parts(1)), [], 0, 0
        tries = dict.fromkeys(range(wanted.first, wanted.first + wanted.count), 0)
        so_far = 0
        while missing:
            part = missing[0]
            if self._closed or holder.node != self._node:
                raise PeerError(f"{holder} cannot be reached: no such node here")
            stretch, piece = self._find(holder, part), part.first
            source = stretch.view[piece * PIECE : (piece + 1) * PIECE]
            start = (piece - wanted.first) * PIECE
            arrived = memoryview(bytearray(source))
            through = self._faults.passes(arrived, so_far)
            so_far += through
            if through < len(arrived):
                fruitless = 1 if so_far >= PIECE else fruitless + 1
                so_far = 0
                if fruitless > 1:
                    raise PeerError(f"{holder}: the connection was closed in the middle of a message")
                continue
            into[start : start + len(source)] = arrived
            length = max(length, start + len(source))
            if piece_sum(arrived) != stretch.sums[piece]:
                found = self._held.check(stretch, piece, 1)
                if found is None:
                    raise NotHeld(f"{holder} does not hold {part}, or not any more")
                tries[piece] += 1
                if tries[piece] > 2:
                    raise CorruptionError(f"{holder}: piece {piece} of {wanted} fails its checksum again and again")
                if not found:
                    continue
                damaged += found
            missing.pop(0)
        if damaged:
            raise DamagedThere(holder, wanted, tuple(damaged))
        return length

    def sums(self, holder: Endpoint, version: Version, image: Image) -> list[int]:
        if self._closed or holder.node != self._node:
            raise PeerError(f"{holder} cannot be reached: no such node here")
        listed = self._held.listed(image.digest)
        if listed is not None:
            return list(listed.tolist())
        stretch = self._find(holder, Range(version, image, 0, image.pieces))
        if digest_of(stretch.sums, image.size) != image.digest:
            raise CorruptionError(f"{holder} lists other sums than those of rank {image.rank} of {version}")
        return list(stretch.sums)

    def close(self) -> None:
        self._closed = True

    def _find(self, holder: Endpoint, part: Range) -> Stretch:
        what = part.what
        if isinstance(what, Image):
            stretch = self._held.image(part.version, what.rank, what.digest)
        else:
            stretch = self._held.parity(what)
        if stretch is None or part.first >= len(stretch.sums):
            raise NotHeld(f"{holder} does not hold {part}, or not any more")
        return stretch


@dataclass(frozen=True, slots=True)
class Wire:
    """A transport, what is at its other end, and what happens in between."""

    transport: Transport
    holder: Endpoint
    held: Held
    faults: Faults

    def read(self, first: int = 0, count: int = PIECES, what: Image | Parity = IMAGE) -> bytes:
        into = bytearray(count * PIECE)
        return bytes(into[: self.transport.read(self.holder, Range(V, what, first, count), memoryview(into))])


@contextmanager
def over_tcp(wrapping: Wrapping) -> Iterator[Wire]:
    """The real transport and a real server; the faults lie above the wrapping of the reader's connections."""
    held, faults, throttle = Held(), Faults(), Throttle()
    throttle.grain = GRAIN

    def wrap(channel: Channel, session: Session) -> Channel:
        return FaultyChannel(wrapping.wrap(channel, session), session.where, faults)

    server = RangeServer(HOST, held.holder(), replace(SERVER, wrapping=wrapping))
    reader = Member(job=JOB, node=0, secret=SECRET, wrapping=Wrapping(wrapping.code, "faulty", wrap))
    transport = RangeReader(reader, limits=Limits(stall_s=5.0), throttle=throttle)
    try:
        yield Wire(transport, Endpoint(1, HOST, server.port), held, faults)
    finally:
        transport.close()
        server.close()


@contextmanager
def in_memory() -> Iterator[Wire]:
    """The transport in memory."""
    held, faults = Held(), Faults()
    yield Wire(MemoryTransport(1, held, faults), Endpoint(1, HOST, 1), held, faults)


WIRES: dict[str, Callable[[], AbstractContextManager[Wire]]] = {
    "tcp": partial(over_tcp, PLAIN),
    "sealed": partial(over_tcp, SEALED),
    "memory": in_memory,
}
