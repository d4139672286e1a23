"""The data plane over real sockets: the right bytes, or an error that says why, whoever is at the other end."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.cluster import until
from tests.payload import bytes_of

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError, CkptdError, CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.daemon import ranges
from ckptd.daemon.ranges import MAGIC, PIECES_MAX, Holder, Range, RangeReader, RangeServer
from ckptd.daemon.segments import Stretch

JOB, SECRET = "job", b"s" * 32
HOST = "127.0.0.1"
V = Version(3, 7)
SIZE = 2 * PIECE + 12_345
DATA = bytes_of(V, 0, SIZE)
IMAGE = Image(0, SIZE, digest_of(sums_of(DATA), SIZE))
PARITY = Parity(V, 1, 2, 0)


class Held:
    """What the server of these tests holds: one image and one parity; `damaged` is what the check of it finds."""

    def __init__(self) -> None:
        self.data = bytearray(DATA)
        self.stretch = Stretch(memoryview(self.data), sums_of(DATA))
        self.damaged: list[int] | None = []

    def image(self, version: Version, rank: int, digest: str) -> Stretch | None:
        return self.stretch if (version, rank, digest) == (V, 0, IMAGE.digest) else None

    def parity(self, parity: Parity) -> Stretch | None:
        return self.stretch if parity == PARITY else None

    def check(self, stretch: Stretch, first: int, count: int) -> list[int] | None:
        return self.damaged


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def server(held: Held) -> Iterator[RangeServer]:
    made = RangeServer(HOST, Holder(held.image, held.parity, held.check), job=JOB, secret=SECRET)
    yield made
    made.close()


@pytest.fixture
def reader() -> Iterator[RangeReader]:
    made = RangeReader(job=JOB, secret=SECRET)
    yield made
    made.close()


def read(reader: RangeReader, port: int, first: int = 0, count: int = 3, what: Image | Parity = IMAGE) -> bytes:
    into = bytearray(count * PIECE)
    length = reader.read((HOST, port), Range(V, what, first, count), memoryview(into))
    return bytes(into[:length])


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 3), (1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("what", [IMAGE, PARITY])
def test_any_range_arrives(
    server: RangeServer, reader: RangeReader, first: int, count: int, what: Image | Parity
) -> None:
    """Every range of pieces of an image and of a parity arrives to the byte, the short last piece too."""
    assert read(reader, server.port, first, count, what) == DATA[first * PIECE : (first + count) * PIECE]


def test_a_connection_is_used_again(server: RangeServer, reader: RangeReader) -> None:
    """One reader that asks again and again keeps one connection."""
    for _ in range(5):
        read(reader, server.port)
    assert len(server._connections) == 1


def test_many_readers(server: RangeServer) -> None:
    """Many threads of many readers get the right bytes at the same time."""
    readers = [RangeReader(job=JOB, secret=SECRET) for _ in range(3)]

    def work(index: int) -> bool:
        return all(
            read(readers[index % 3], server.port, first, 1) == DATA[first * PIECE : (first + 1) * PIECE]
            for first in range(3)
        )

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(work, range(60)))
    for made in readers:
        made.close()


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (Range(Version(3, 8), IMAGE, 0, 1), 1),
        (Range(V, Image(1, SIZE, IMAGE.digest), 0, 1), 1),
        (Range(V, Image(0, SIZE, "00" * 16), 0, 1), 1),
        (Range(V, Parity(V, 1, 2, 1), 0, 1), 1),
        (Range(V, IMAGE, 3, 1), 1),
        (Range(V, IMAGE, 0, 4), 4),
        (Range(V, IMAGE, 2**32 - 1, 1), 1),
        (Range(V, IMAGE, 0, 0), 1),
        (Range(V, IMAGE, 0, PIECES_MAX + 1), PIECES_MAX + 1),
    ],
)
def test_what_is_not_held_is_said(server: RangeServer, reader: RangeReader, wanted: Range, size: int) -> None:
    """Another version, rank, digest or parity, and pieces beyond the end or the limit, are refused by name."""
    with pytest.raises(PeerError, match=re.escape(f"does not hold {wanted}")):
        reader.read((HOST, server.port), wanted, memoryview(bytearray(size * PIECE)))
    assert read(reader, server.port) == DATA  # and the server goes on


def test_damage_at_the_holder_is_named(server: RangeServer, reader: RangeReader, held: Held) -> None:
    """A piece that fails its check where it is held is refused with its number; bytes given up are not held."""
    held.damaged = [1]
    with pytest.raises(CorruptionError, match=r"piece 1 of pieces 0\.\.2 of rank 0, step 7 .* where it is held"):
        read(reader, server.port)
    held.damaged = None
    with pytest.raises(PeerError, match="does not hold"):
        read(reader, server.port)


def test_bytes_that_change_after_the_check_are_caught(server: RangeServer, reader: RangeReader, held: Held) -> None:
    """A slot that is filled again while it is read fails the reader's check: a reader needs no lock."""
    held.data[PIECE] ^= 1
    with pytest.raises(CorruptionError, match="piece 1 of"):
        read(reader, server.port)


@pytest.mark.parametrize(
    ("job", "secret", "message"),
    [("other", SECRET, "serves another job than 'other'"), (JOB, b"x" * 32, "knows another secret")],
)
def test_strangers_get_nothing(server: RangeServer, job: str, secret: bytes, message: str) -> None:
    """A reader of another job or with another secret is told so, and is not asked to try again."""
    stranger = RangeReader(job=job, secret=secret)
    with pytest.raises(AccessError, match=message):
        read(stranger, server.port)
    stranger.close()


def test_a_server_must_prove_itself(reader: RangeReader) -> None:
    """Who says yes without knowing the secret is not believed."""

    def impostor(connection: socket.socket) -> None:
        connection.sendall(MAGIC + auth.nonce())
        connection.recv(1000)
        connection.sendall(struct.pack("<BI", 1, 0) + bytes(auth.PROOF_BYTES))

    with listening(impostor) as port, pytest.raises(AccessError, match="could not prove that it knows"):
        read(reader, port)


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that deals with each connection by `answer` and closes it."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(20.0)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(20.0)
                        answer(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def welcomed(then: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """A server that knows the secret, and what it does with the first request."""

    def answer(connection: socket.socket) -> None:
        challenge = auth.nonce()
        connection.sendall(MAGIC + challenge)
        hello = b""
        while len(hello) < len(MAGIC) + 1 + len(JOB) + 64:
            hello += connection.recv(1000)
        theirs = hello[len(MAGIC) + 1 + len(JOB) :][:32]
        connection.sendall(struct.pack("<BI", 1, 0) + auth.proof(SECRET, "range server", JOB, theirs, challenge))
        connection.recv(1000)
        then(connection)

    return answer


def head(count: int, *pieces: tuple[int, int]) -> bytes:
    return struct.pack("<BI", 1, count) + b"".join(struct.pack("<IQ", *piece) for piece in pieces)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"", "closed in the middle"),
        (b"\x01", "closed in the middle"),
        (b"\x77" * 5, "does not hold"),
        (head(1), "closed in the middle"),
        (head(2, (PIECE, 0), (PIECE, 0)), "does not hold"),
        (head(1, (PIECE + 1, 0)), "announced"),
        (head(1, (2**32 - 1, 0)), "announced"),
        (head(1, (100, 0)) + bytes(99), "closed in the middle"),
    ],
)
def test_a_server_that_speaks_nonsense(reader: RangeReader, reply: bytes, message: str) -> None:
    """A truncated or impossible answer is a PeerError, after one more try, and never more bytes than asked for."""
    answer = welcomed(lambda connection: connection.sendall(reply))
    with listening(answer) as port, pytest.raises(PeerError, match=message):
        read(reader, port, 0, 1)


def test_another_kind_of_server(reader: RangeReader) -> None:
    """A port where something else listens is recognised by its first words."""
    words = b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40)
    message = "is not a ckptd data port of this version"
    with listening(lambda connection: connection.sendall(words)) as port, pytest.raises(PeerError, match=message):
        read(reader, port)


def test_a_server_that_is_gone(server: RangeServer, reader: RangeReader) -> None:
    """After the end of the server an idle connection and a new one both fail with its address."""
    read(reader, server.port)
    server.close()
    with pytest.raises(PeerError, match=f"{HOST}:{server.port}"):
        read(reader, server.port)


def test_a_server_that_was_restarted(held: Held, reader: RangeReader) -> None:
    """A connection that died with the server before is replaced unasked."""
    holder = Holder(held.image, held.parity, held.check)
    first = RangeServer(HOST, holder, job=JOB, secret=SECRET)
    read(reader, first.port)
    first.close()
    second = RangeServer(HOST, holder, job=JOB, secret=SECRET)
    reader._idle[HOST, second.port] = reader._idle.pop((HOST, first.port))
    assert read(reader, second.port) == DATA
    second.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"x", b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(1000), MAGIC, MAGIC + b"\xff" * 400]
)
def test_garbage_does_not_hurt_the_server(server: RangeServer, reader: RangeReader, garbage: bytes) -> None:
    """Whoever speaks nonsense, or hangs up in the middle, is dropped, and the others are served."""
    connecting = socket.create_connection((HOST, server.port), timeout=20.0)
    with connecting as stranger, contextlib.suppress(OSError):  # it may have hung up by now
        stranger.sendall(garbage)
        stranger.shutdown(socket.SHUT_WR)
        while stranger.recv(1000):
            pass
    assert read(reader, server.port) == DATA


def test_too_many_connections(server: RangeServer) -> None:
    """Beyond the limit a connection is closed at once, and there is room again when one ends."""
    server._slots = threading.BoundedSemaphore(1)

    def greeting() -> bytes:
        with socket.create_connection((HOST, server.port), timeout=20.0) as stranger:
            return stranger.recv(len(MAGIC))

    with socket.create_connection((HOST, server.port), timeout=20.0) as first:
        assert first.recv(len(MAGIC)) == MAGIC
        assert greeting() == b""
    assert until(greeting, "room for another") == MAGIC


class FlippingProxy:
    """Between reader and server: flips one bit of what comes from the server, in each of the first `times` connections."""

    def __init__(self, port: int, times: int) -> None:
        self._port, self._times = port, times
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._sockets = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection((HOST, self._port))
                self._sockets += [client, server]
                flip = self.connections <= self._times
                for source, target, spoil in ((client, server, False), (server, client, flip)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, target, spoil)))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket, spoil: bool) -> None:
        seen, where = 0, PIECE + 1000  # far behind the words of welcome: in the second piece's bytes
        with contextlib.suppress(OSError):
            while data := bytearray(source.recv(1 << 16)):
                if spoil and seen <= where < seen + len(data):
                    data[where - seen] ^= 1
                seen += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


def test_a_flipped_bit_on_the_wire(server: RangeServer) -> None:
    """It is found, the range is read once more, and if it happens again the error names the piece."""
    for times, fails in ((1, False), (2, True)):
        proxy, reader = FlippingProxy(server.port, times), RangeReader(job=JOB, secret=SECRET)
        try:
            if fails:
                with pytest.raises(CorruptionError, match=rf"{proxy.port}: piece 1 of pieces 0\.\.2 of rank 0"):
                    read(reader, proxy.port)
            else:
                assert read(reader, proxy.port) == DATA
            assert proxy.connections == 2
        finally:
            reader.close()
            proxy.close()


def test_a_silent_server_is_given_up(reader: RangeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who accepts and says nothing costs a bounded time."""
    monkeypatch.setattr(ranges, "_TIMEOUT_S", 0.05)
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PeerError, match="timed out"):
            read(reader, port)


def test_errors_are_all_ours(reader: RangeReader) -> None:
    """A host that can't be reached or does not exist is a PeerError too."""
    for host in ("127.0.0.1", "no such host"):
        with pytest.raises(CkptdError):
            reader.read((host, 1), Range(V, IMAGE, 0, 1), memoryview(bytearray(PIECE)))
