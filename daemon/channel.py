"""One connection of the data plane as a channel of bytes: a port, so that the bytes may be sealed without anybody noticing.

The handshake (`daemon/ranges.py`) speaks over a plain channel. What follows it goes through the channel that the agreed
`Wrapping` makes of the plain one: the plain one itself, or one that encrypts and calls the plain one for its frames.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.pieces import Buffer

_SENDFILE_MAX = 1 << 30


class Channel(Protocol):
    """An ordered stream of bytes to one other process. One thread sends and one thread receives at a time.

    Every method but `close` raises PeerError, with the other side's name in it, when the other side is gone, closes in
    the middle, or lets no byte through for the stall time. The channel is of no use after that.
    """

    def send(self, *buffers: Buffer) -> None:
        """Send all bytes of the buffers, in order. They belong to the caller again when it returns."""

    def send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Send `count` bytes of a file from `offset` on, without a copy where it can. The descriptor stays the caller's."""

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` with exactly len(view) bytes."""

    def close(self) -> None:
        """End the connection; a thread that waits in `send` or `receive_into` gets PeerError. May be called twice."""


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides of a connection know when the handshake is done, and nobody else: enough to derive keys from."""

    role: Literal["reader", "server"]
    where: str
    """The other side, for errors."""
    job: str
    secret: bytes = field(repr=False)
    """The job's secret. Both sides have proven that they know it."""
    challenge: bytes
    """The server's nonce, 32 bytes, fresh for this connection."""
    answer: bytes
    """The reader's nonce, 32 bytes, fresh for this connection."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """How the bytes after the handshake travel. Both sides must have the same one; its name is part of the proofs."""

    code: int
    """What stands for it in the handshake, 0 to 255."""
    name: str
    wrap: Callable[[Channel, Session], Channel] = field(repr=False)
    """Makes the channel out of the plain one, which belongs to the new one from then on (`close` closes it)."""


PLAIN = Wrapping(0, "plain", lambda channel, _: channel)
"""As they are. Every piece is checked on arrival, but whoever is on the path can read it."""


class PlainChannel:
    """A TCP connection, which belongs to the channel from now on."""

    def __init__(self, connection: socket.socket, where: str, stall_s: float) -> None:
        self._connection, self._where = connection, where
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel keeps the time: a timeout of Python's own costs a poll before every call, and breaks sendfile.
        connection.settimeout(None)
        self.stall_s = stall_s

    @property
    def stall_s(self) -> float:
        """How long a call waits while no byte gets through, in seconds."""
        return self._stall_s

    @stall_s.setter
    def stall_s(self, seconds: float) -> None:
        self._stall_s = seconds
        micros = max(1, int(seconds * 1e6))
        limit = struct.pack("ll", *divmod(micros, 1_000_000))
        with self._blamed():
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def send(self, *buffers: Buffer) -> None:
        with self._blamed():
            for buffer in buffers:
                self._connection.sendall(buffer)

    def send_file(self, descriptor: int, offset: int, count: int) -> None:
        with self._blamed():
            while count:
                sent = os.sendfile(self._connection.fileno(), descriptor, offset, min(count, _SENDFILE_MAX))
                if sent == 0:
                    raise PeerError(f"{self._where}: the file that was being sent ended {count} bytes early")
                offset, count = offset + sent, count - sent

    def receive_into(self, view: memoryview) -> None:
        with self._blamed():
            while view:
                received = self._connection.recv_into(view, 0, socket.MSG_WAITALL)
                if received == 0:
                    raise PeerError(f"{self._where}: the connection was closed in the middle of a message")
                view = view[received:]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise PeerError(f"{self._where} timed out: no byte got through for {self._stall_s:g} s") from error
            raise PeerError(f"{self._where}: {error.strerror or error}") from error
