"""The frames of the data plane that both sides share, and the limits they keep. Byte by byte: docs/formats.md."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

import xxhash

from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import Image, Version
from ckptd.daemon.channel import PLAIN, Channel, Wrapping, receive
from ckptd.daemon.segments import Stretch
from ckptd.daemon.transport import Holder, Range

PIECES_MAX = 64
"""Pieces of one request at most: 16 MiB. A reader asks again for more."""
SUMS_MAX = 65_536
"""Pieces whose sums are listed in one answer at most: those of 16 GiB, in 512 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Who this node is on the data plane."""

    job: str
    node: int
    secret: bytes = field(repr=False)
    wrapping: Wrapping = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side grants the other. Seconds and numbers."""

    handshake_s: float = 10.0
    """For the connection and for each message of the handshake."""
    stall_s: float = 20.0
    """How long no byte may get through while a range is under way."""
    idle_s: float = 600.0
    """How long a server keeps a connection that asks for nothing."""
    connections: int = 256
    """That a server has at a time, one thread each; what comes beyond is closed."""
    connections_per_address: int = 128
    in_flight: int = 2
    """Requests that a reader has under way on one connection. A server takes the next one when it has answered; what a
    flood sends beyond waits in the kernel's buffer of that connection, which is bounded."""
    attempts: int = 2
    """Connections in a row that may bring nothing before a reader gives up, and re-reads of a piece that fails its check."""


class Verb(IntEnum):
    READ = 1
    """Send the sums of the pieces, as they were taken at capture, and the bytes as they are."""
    CHECK = 2
    """Say which of the pieces do not match their sums; the holder's daemon counts them as lost then."""
    SUMS = 3
    """List the sums of the pieces of an image, as they were taken at capture, without the bytes."""


class Status(IntEnum):
    OK = 1
    OTHER_JOB = 2
    OTHER_SECRET = 3
    NOT_HELD = 4
    OTHER_WRAPPING = 5


REQUEST = struct.Struct("<BBQQIIIII16s")
REPLY = struct.Struct("<BIIQ")
_SAID = struct.Struct("<BII")
_SUM = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Reply:
    """What precedes the answer to a request."""

    status: int
    count: int
    """Of READ: the pieces that follow; of CHECK: the damaged ones; of SUMS: the sums that follow (u64)."""
    length: int
    """Of READ: their bytes, which follow after `count` sums (u64). Else 0; of CHECK `count` piece numbers (u32) follow."""

    def pack(self, request: bytes) -> bytes:
        """The frame that answers this request and no other."""
        said = _SAID.pack(self.status, self.count, self.length)
        return said + _SUM.pack(xxhash.xxh3_64_intdigest(request + said))

    @staticmethod
    def unpack(frame: bytes, request: bytes) -> Reply | None:
        """None when it answers another request, or either was changed on the way: then its numbers mean nothing."""
        reply = Reply(*_SAID.unpack_from(frame))
        return reply if reply.pack(request) == frame else None


def pack_request(verb: Verb, wanted: Range) -> bytes:
    """The frame of a request."""
    v, what = wanted.version, wanted.what
    if isinstance(what, Image):
        kind, names, digest = 0, (what.rank, 0, 0), bytes.fromhex(what.digest)
    else:
        kind, names, digest = 1, (what.group, what.stripe, what.row), bytes.fromhex(what.table)
    return REQUEST.pack(verb, kind, v.epoch, v.step, *names, wanted.first, wanted.count, digest)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a server finds it: every field is whatever somebody sent."""

    verb: int
    kind: int
    version: Version
    names: tuple[int, int, int]
    first: int
    count: int
    digest: str

    @staticmethod
    def unpack(frame: bytes) -> Asked:
        verb, kind, epoch, step, a, b, c, first, count, digest = REQUEST.unpack(frame)
        return Asked(verb, kind, Version(epoch, step), (a, b, c), first, count, digest.hex())

    def is_known(self) -> bool:
        """Whether it is in the protocol at all."""
        return (self.verb in (Verb.READ, Verb.CHECK) and self.kind in (0, 1)) or (self.verb, self.kind) == (
            Verb.SUMS,
            0,
        )

    def find(self, holder: Holder) -> Stretch | None:
        """What it asks for, or None when that is not held or has no such pieces."""
        if self.kind == 0:
            stretch = holder.image(self.version, self.names[0], self.digest)
            if stretch is None and self.verb == Verb.SUMS and (listed := holder.listed(self.digest)) is not None:
                stretch = Stretch(memoryview(b""), listed.tolist())
        else:
            stretch = holder.parity(Parity(self.version, self.digest, *self.names))
        most = SUMS_MAX if self.verb == Verb.SUMS else PIECES_MAX
        if stretch is None or not 0 < self.count <= most or self.first + self.count > len(stretch.sums):
            return None
        return stretch


def pack_numbers(kind: Literal["I", "Q"], numbers: Sequence[int]) -> bytes:
    """The numbers that follow a reply to CHECK (u32) or SUMS (u64), with a sum of them behind."""
    listed = struct.pack(f"<{len(numbers)}{kind}", *numbers)
    return listed + _SUM.pack(xxhash.xxh3_64_intdigest(listed))


def receive_numbers(channel: Channel, kind: Literal["I", "Q"], count: int) -> tuple[int, ...] | None:
    """What `pack_numbers` made, or None when it was changed on the way. Raises PeerError."""
    listed = receive(channel, struct.calcsize(f"<{count}{kind}"))
    (found,) = _SUM.unpack(receive(channel, _SUM.size))
    return struct.unpack(f"<{count}{kind}", listed) if found == xxhash.xxh3_64_intdigest(listed) else None
