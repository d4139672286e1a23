"""One connection of the data plane as a channel of bytes: a port, so that the bytes may be sealed without anybody noticing.

The handshake (`daemon/handshake.py`) speaks over a plain channel. What follows it goes through the channel that the agreed
`Wrapping` makes of the plain one: the plain one itself, or one that encrypts and calls the plain one for its frames.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.pieces import Buffer

_WAKE = 1024 * 1024
"""While many bytes are awaited, the receiver is woken for so many and not for every segment: a quarter of the CPU's time."""
_SHORT = 64 * 1024
_SENT_AGAIN, _INFO_BYTES = (100, 216), 220
"""Where Linux's `struct tcp_info` has tcpi_total_retrans and tcpi_dsack_dups, and so many bytes of it. What an older
kernel does not tell counts as 0."""


class Channel(Protocol):
    """An ordered stream of bytes to one other process. One thread sends and one thread receives at a time.

    Every method but `close` raises PeerError, with the other side's name in it, when the other side is gone, closes in
    the middle, or lets no byte through for the time that was agreed on. The channel is of no use after that.
    """

    def send(self, *buffers: Buffer) -> None:
        """Send all bytes of the buffers, in order. They belong to the caller again when it returns."""

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` with exactly len(view) bytes."""

    def close(self) -> None:
        """End the connection; a thread that waits in `send` or `receive_into` gets PeerError. May be called twice."""


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides of a connection know when the handshake is done, and nobody else: enough to derive keys from."""

    role: Literal["reader", "server"]
    """This side's."""
    where: str
    """The other side, for errors."""
    node: int
    """The other side's number."""
    job: str
    secret: bytes = field(repr=False)
    """The job's secret. Both sides have proven that they know it."""
    challenge: bytes
    """The server's nonce, 32 bytes, fresh for this connection."""
    answer: bytes
    """The reader's nonce, 32 bytes, fresh for this connection."""


@dataclass(frozen=True, slots=True)
class Wrapping:
    """How the bytes after the handshake travel. Both sides must have the same one; its code is part of the proofs."""

    code: int
    """What stands for it in the handshake, 0 to 255."""
    name: str
    """What errors call it."""
    wrap: Callable[[Channel, Session], Channel] = field(repr=False)
    """Makes the channel out of the plain one, which belongs to the new one from then on (`close` closes it)."""


PLAIN = Wrapping(0, "plain", lambda channel, _: channel)
"""As they are. Every piece is checked on arrival, but whoever is on the path can read it."""


class PlainChannel:
    """A TCP connection, which belongs to the channel from now on.

    A message of up to 64 KiB must arrive within `receive_s`, so that nobody holds the other side by a byte now and then; of
    a longer one, and of what is sent, some byte must get through within `receive_s` and `send_s`.
    """

    def __init__(self, connection: socket.socket, where: str, *, send_s: float, receive_s: float) -> None:
        self.where = where
        """The other side, for errors."""
        self._connection, self._lowest, self._lost = connection, 1, 0
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel keeps the time: a timeout of Python's own costs a poll before every call.
        connection.settimeout(None)
        self.patience(send_s=send_s, receive_s=receive_s)

    def patience(self, *, send_s: float, receive_s: float) -> None:
        """Wait so long from now on."""
        self._receive_s = receive_s
        with self._blamed():
            for option, seconds in ((socket.SO_SNDTIMEO, send_s), (socket.SO_RCVTIMEO, receive_s)):
                whole, micros = divmod(max(1, int(seconds * 1e6)), 1_000_000)
                self._connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, micros))

    def send(self, *buffers: Buffer) -> None:
        with self._blamed():
            for buffer in buffers[:-1]:
                self._connection.sendall(buffer, socket.MSG_MORE)
            self._connection.sendall(buffers[-1])

    def receive_into(self, view: memoryview) -> None:
        deadline = time.monotonic() + self._receive_s if len(view) <= _SHORT else None
        with self._blamed():
            while view:
                # Twice as much must be awaited as to be woken for, else the kernel could wait for more than will come.
                self._wake_for(_WAKE if len(view) >= 2 * _WAKE else 1)
                received = self._connection.recv_into(view)
                if received == 0:
                    raise PeerError(f"{self.where}: the connection was closed in the middle of a message")
                view = view[received:]
                if view and deadline is not None and time.monotonic() >= deadline:
                    raise BlockingIOError(errno.EAGAIN, "")

    def newly_lost(self) -> int:
        """Segments of this side's that the kernel has found lost since this was last asked: those that it has sent again,
        without those of which the other side has said since that they had come already. Raises PeerError.

        Ask before something is sent and not after: the other side's word comes with its next acknowledgement.
        """
        with self._blamed():
            info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        again, needlessly = (struct.unpack_from("=I", info.ljust(_INFO_BYTES, b"\0"), at)[0] for at in _SENT_AGAIN)
        known, self._lost = self._lost, max(self._lost, again - needlessly)
        return self._lost - known

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _wake_for(self, count: int) -> None:
        if count != self._lowest:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._lowest = count

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                raise PeerError(f"{self.where} timed out: nothing got through any more") from error
            raise PeerError(f"{self.where}: {error.strerror or error}") from error


def receive(channel: Channel, size: int) -> bytes:
    """The next `size` bytes, for short messages."""
    buffer = bytearray(size)
    channel.receive_into(memoryview(buffer))
    return bytes(buffer)
