"""The data plane's one verb: read a range of pieces of an image or a parity that a node holds.

Plain TCP, straight from the slot's mapping into the destination's. Every piece comes with the sum that was taken when it
was captured, and is checked on arrival; so a flipped bit in memory or on the wire is found here, and a read needs no
lock: a slot that was used again meanwhile fails the check. Frames, byte by byte: docs/formats.md.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError, CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import piece_sum
from ckptd.daemon.segments import Stretch

MAGIC = b"CKPTDR\0\1"
PIECES_MAX = 64
"""Pieces of one request at most: 16 MiB. A reader asks again for more."""
CONNECTIONS_MAX = 256
_TIMEOUT_S = 20.0
_IDLE_S = 600.0
_REQUEST = struct.Struct("<BQQIIIII16s")
_REPLY = struct.Struct("<BI")
_PIECE = struct.Struct("<IQ")
_OK, _WRONG_JOB, _WRONG_SECRET, _NOT_HELD, _DAMAGED = 1, 2, 3, 4, 5
Kind = Literal["image", "parity"]


@dataclass(frozen=True, slots=True)
class Range:
    """Pieces `first` .. `first + count - 1` of an image or of a parity."""

    version: Version
    what: Image | Parity
    first: int
    count: int

    def pack(self) -> bytes:
        v, what = self.version, self.what
        if isinstance(what, Image):
            return _REQUEST.pack(
                0, v.epoch, v.step, what.rank, 0, 0, self.first, self.count, bytes.fromhex(what.digest)
            )
        return _REQUEST.pack(1, v.epoch, v.step, what.group, what.stripe, what.row, self.first, self.count, bytes(16))

    def __str__(self) -> str:
        name = f"rank {self.what.rank}" if isinstance(self.what, Image) else f"parity of stripe {self.what.stripe}"
        return f"pieces {self.first}..{self.first + self.count - 1} of {name}, {self.version}"


@dataclass(frozen=True, slots=True)
class Holder:
    """What can be served: implemented over the segments."""

    image: Callable[[Version, int, str], Stretch | None]
    """The last argument is the digest that the reader expects."""
    parity: Callable[[Parity], Stretch | None]
    check: Callable[[Stretch, int, int], list[int] | None]
    """The damaged ones among pieces (first, count); None when the bytes were given up meanwhile."""


# ---- server -------------------------------------------------------------------------------------


class RangeServer:
    """Serves ranges to daemons that know the job's secret; one thread a connection."""

    def __init__(self, host: str, holder: Holder, *, job: str, secret: bytes) -> None:
        self._holder, self._job, self._secret = holder, job, secret
        try:
            self._listener = socket.create_server((host, 0), backlog=64)
        except OSError as error:
            raise AccessError(
                f"cannot listen on {host}: {error.strerror}; --nodes must name an address of this machine for this node"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._connections: set[socket.socket] = set()
        self._closing = False
        threading.Thread(target=self._accept, name="ranges", daemon=True).start()

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), name="range", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._welcome(connection):
                    connection.settimeout(_IDLE_S)
                    while self._answer(connection):
                        pass
        except (OSError, PeerError, struct.error, UnicodeDecodeError):
            pass  # the reader is gone or speaks something else; it has to connect again, and it knows why
        finally:
            self._connections.discard(connection)
            self._slots.release()

    def _welcome(self, connection: socket.socket) -> bool:
        challenge = auth.nonce()
        connection.sendall(MAGIC + challenge)
        if _receive(connection, len(MAGIC)) != MAGIC:
            return False
        job = _receive(connection, _receive(connection, 1)[0]).decode()
        theirs = _receive(connection, auth.NONCE_BYTES)
        found = _receive(connection, auth.PROOF_BYTES)
        if job != self._job:
            connection.sendall(_REPLY.pack(_WRONG_JOB, 0))
            return False
        if not auth.same(found, auth.proof(self._secret, "range reader", job, challenge, theirs)):
            connection.sendall(_REPLY.pack(_WRONG_SECRET, 0))
            return False
        connection.sendall(_REPLY.pack(_OK, 0) + auth.proof(self._secret, "range server", job, theirs, challenge))
        return True

    def _answer(self, connection: socket.socket) -> bool:
        try:
            request = _receive(connection, _REQUEST.size)
        except PeerError:
            return False
        kind, epoch, step, a, b, c, first, count, digest = _REQUEST.unpack(request)
        version = Version(epoch, step)
        if kind == 0:
            stretch = self._holder.image(version, a, digest.hex())
        else:
            stretch = self._holder.parity(Parity(version, a, b, c))
        if stretch is None or not 0 < count <= PIECES_MAX or first + count > len(stretch.sums):
            connection.sendall(_REPLY.pack(_NOT_HELD, 0))
            return True
        damaged = self._holder.check(stretch, first, count)
        if damaged is None or damaged:
            connection.sendall(_REPLY.pack(_DAMAGED, damaged[0]) if damaged else _REPLY.pack(_NOT_HELD, 0))
            return True
        size = len(stretch.view)
        heads = [
            _PIECE.pack(min(PIECE, size - piece * PIECE), stretch.sums[piece]) for piece in range(first, first + count)
        ]
        connection.sendall(_REPLY.pack(_OK, count) + b"".join(heads))
        connection.sendall(stretch.view[first * PIECE : min(size, (first + count) * PIECE)])
        return True


# ---- reader -------------------------------------------------------------------------------------


class RangeReader:
    """Reads ranges from other nodes; keeps idle connections and opens as many as there are readers at a time."""

    def __init__(self, *, job: str, secret: bytes) -> None:
        self._job, self._secret = job, secret
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, int], list[socket.socket]] = {}

    def read(self, address: tuple[str, int], wanted: Range, into: memoryview) -> int:
        """Read a range into `into` and return its length in bytes (the last piece of an image may be short).

        Raises PeerError (gone, or does not hold it), AccessError, CorruptionError (a piece fails its check twice).
        """
        try:
            return self._read_once(address, wanted, into)
        except _DamagedThere:
            raise
        except (PeerError, CorruptionError):
            # An idle connection may be to a daemon that has died since, and a bit may flip on the wire: once more, afresh.
            self._forget(address)
            return self._read_once(address, wanted, into)

    def close(self) -> None:
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _forget(self, address: tuple[str, int]) -> None:
        with self._lock:
            for connection in self._idle.pop(address, []):
                connection.close()

    def _read_once(self, address: tuple[str, int], wanted: Range, into: memoryview) -> int:
        where = f"{address[0]}:{address[1]}"
        try:
            connection = self._checkout(address)
            try:
                length = self._transfer(connection, wanted, into, where)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            raise PeerError(f"{where}: {error.strerror or error} while reading {wanted}") from error
        with self._lock:
            self._idle.setdefault(address, []).append(connection)
        return length

    def _transfer(self, connection: socket.socket, wanted: Range, into: memoryview, where: str) -> int:
        connection.sendall(wanted.pack())
        status, count = _REPLY.unpack(_receive(connection, _REPLY.size))
        if status == _DAMAGED:
            raise _DamagedThere(f"{where}: piece {count} of {wanted} fails its checksum where it is held")
        if status != _OK or count != wanted.count:
            raise PeerError(f"{where} does not hold {wanted}")
        heads = list(_PIECE.iter_unpack(_receive(connection, _PIECE.size * count)))
        length = sum(int(size) for size, _ in heads)
        if any(size != PIECE for size, _ in heads[:-1]) or not 0 <= length <= len(into) or heads[-1][0] > PIECE:
            raise PeerError(f"{where} announced {length} bytes for {wanted}, expected at most {len(into)}")
        _receive_into(connection, into[:length])
        for index, (size, expected) in enumerate(heads):
            if piece_sum(into[index * PIECE : index * PIECE + size]) != expected:
                raise CorruptionError(f"{where}: piece {wanted.first + index} of {wanted} fails its checksum")
        return length

    def _checkout(self, address: tuple[str, int]) -> socket.socket:
        with self._lock:
            idle = self._idle.get(address)
            if idle:
                return idle.pop()
        connection = socket.create_connection(address, timeout=_TIMEOUT_S)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._introduce(connection, f"{address[0]}:{address[1]}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _introduce(self, connection: socket.socket, where: str) -> None:
        hello = _receive(connection, len(MAGIC) + auth.NONCE_BYTES)
        if hello[: len(MAGIC)] != MAGIC:
            raise PeerError(f"{where} is not a ckptd data port of this version")
        theirs, mine, job = hello[len(MAGIC) :], auth.nonce(), self._job.encode()
        found = auth.proof(self._secret, "range reader", self._job, theirs, mine)
        connection.sendall(MAGIC + bytes([len(job)]) + job + mine + found)
        status, _ = _REPLY.unpack(_receive(connection, _REPLY.size))
        if status == _WRONG_JOB:
            raise AccessError(f"{where} serves another job than {self._job!r}; check --nodes and --job")
        if status != _OK:
            raise AccessError(f"{where} knows another secret; give every node the same --secret-file")
        expected = auth.proof(self._secret, "range server", self._job, mine, theirs)
        if not auth.same(_receive(connection, auth.PROOF_BYTES), expected):
            raise AccessError(f"{where} could not prove that it knows the job's secret")


class _DamagedThere(CorruptionError):
    """The holder itself says that the bytes are damaged: asking again would not help."""


def _receive(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    _receive_into(connection, memoryview(buffer))
    return bytes(buffer)


def _receive_into(connection: socket.socket, into: memoryview) -> None:
    while into:
        received = connection.recv_into(into)
        if received == 0:
            raise PeerError("the connection was closed in the middle of a message")
        into = into[received:]
