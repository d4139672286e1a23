"""The server against readers that lie, flood, stop in the middle or are strangers: the others are served on."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.cluster import until
from tests.contract.wires import DATA, HOST, IMAGE, PARITY, PIECES, READER, SECRET, SERVER, SUMS, Held, V
from tests.daemon_edges.data_plane import connected, is_closed

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError, PeerError
from ckptd.ckpt.model import PIECE, Version
from ckptd.daemon.channel import PlainChannel, receive
from ckptd.daemon.handshake import MAGIC
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import PIECES_MAX, REPLY, REQUEST, Limits, Reply, Status, Verb, pack_request, receive_numbers
from ckptd.daemon.transport import Endpoint, Range

HELLO_BYTES = len(MAGIC) + 5 + 1 + len(READER.job) + 64


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.fixture
def server(held: Held) -> Iterator[RangeServer]:
    with serving(held) as made:
        yield made


@contextlib.contextmanager
def serving(held: Held, **limits: float) -> Iterator[RangeServer]:
    made = RangeServer(HOST, held.holder(), SERVER, limits=Limits(**limits))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def serves(server: RangeServer) -> bool:
    """Whether an honest reader gets its bytes."""
    into = bytearray(PIECE)
    with contextlib.closing(RangeReader(READER)) as reader:
        reader.read(Endpoint(1, HOST, server.port), Range(V, IMAGE, 1, 1), memoryview(into))
    return into == DATA[PIECE : 2 * PIECE]


def reply(channel: PlainChannel, request: bytes) -> Reply | None:
    return Reply.unpack(receive(channel, REPLY.size), request)


def test_an_honest_exchange(server: RangeServer) -> None:
    """A request is answered by its echo, the sums and the bytes, in the order in which requests came."""
    requests = [pack_request(Verb.READ, Range(V, IMAGE, first, 1)) for first in (2, 0)]
    with connected(server.port) as channel:
        channel.send(*requests)
        for first, request in zip((2, 0), requests, strict=True):
            assert reply(channel, request) == Reply(Status.OK, 1, PIECE)
            assert struct.unpack("<Q", receive(channel, 8)) == (SUMS[first],)
            assert receive(channel, PIECE) == DATA[first * PIECE : (first + 1) * PIECE]


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 0), (0, PIECES_MAX + 1), (0, 2**32 - 1), (PIECES, 1), (PIECES - 1, 2), (2**32 - 1, 1), (2**32 - 1, 2**32 - 1)],
)
def test_ranges_that_cannot_be(server: RangeServer, held: Held, verb: Verb, first: int, count: int) -> None:
    """No pieces, too many, or beyond the end: said to be not held, nothing is read, and the connection goes on."""
    with connected(server.port) as channel:
        request = pack_request(verb, Range(V, IMAGE, first, count))
        channel.send(request)
        assert reply(channel, request) == Reply(Status.NOT_HELD, 0, 0)
        request = pack_request(Verb.READ, Range(V, IMAGE, 0, 1))
        channel.send(request)
        assert reply(channel, request) == Reply(Status.OK, 1, PIECE)


def test_versions_that_cannot_be(server: RangeServer) -> None:
    """The largest numbers that the frame can carry are answered like any other version that is not held."""
    with connected(server.port) as channel:
        request = pack_request(Verb.READ, Range(Version(2**64 - 1, 2**64 - 1), PARITY, 0, 1))
        channel.send(request)
        assert reply(channel, request) == Reply(Status.NOT_HELD, 0, 0)


@pytest.mark.parametrize(("verb", "kind"), [(0, 0), (3, 1), (4, 0), (255, 255), (1, 2)])
def test_verbs_that_do_not_exist(server: RangeServer, caplog: pytest.LogCaptureFixture, verb: int, kind: int) -> None:
    """Who knows the secret and speaks outside the protocol is dropped and named in the log."""
    with caplog.at_level(logging.WARNING), connected(server.port, replace(READER, node=3)) as channel:
        channel.send(REQUEST.pack(verb, kind, 3, 7, 0, 0, 0, 0, 1, bytes(16)))
        assert is_closed(channel)
        until(lambda: f"asked for verb {verb} of kind {kind}" in caplog.text, "a line in the log")
    assert f"node 3 ({HOST}:" in caplog.text
    assert serves(server)


def test_a_check_reports_the_damage(server: RangeServer, held: Held) -> None:
    """CHECK answers with the damaged pieces, and the holder has learnt of them; of bytes given up it says not held."""
    held.damage(4)
    request = pack_request(Verb.CHECK, Range(V, IMAGE, 3, 3))
    with connected(server.port) as channel:
        channel.send(request)
        assert reply(channel, request) == Reply(Status.OK, 1, 0)
        assert receive_numbers(channel, "I", 1) == (4,)
        assert held.reported == [4]
        held.given_up = True
        channel.send(request)
        assert reply(channel, request) == Reply(Status.NOT_HELD, 0, 0)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"x", b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(1000), MAGIC, MAGIC + b"\xff" * 400, b"CKPTDR\0\1" + bytes(99)],
)
def test_garbage_does_not_hurt(server: RangeServer, garbage: bytes) -> None:
    """Whoever speaks nonsense, or hangs up in the middle, is dropped, and the others are served."""
    with connected(server.port, None) as stranger:
        with contextlib.suppress(OSError, PeerError):  # it may have hung up by now
            stranger.send(garbage)
            stranger._connection.shutdown(socket.SHUT_WR)
        assert is_closed(stranger)
    assert serves(server)


def hello(channel: PlainChannel, node: int = 0) -> bytes:
    """An honest reader's first words, made by hand."""
    challenge = receive(channel, len(MAGIC) + 32)[len(MAGIC) :]
    speaker, answer = struct.pack("<BI", 0, node), auth.nonce()
    proof = auth.proof(SECRET, "range reader", READER.job, challenge, answer, speaker)
    return MAGIC + speaker + bytes([len(READER.job)]) + READER.job.encode() + answer + proof


def test_a_replayed_handshake(server: RangeServer) -> None:
    """What a reader once said to prove itself proves nothing on another connection."""
    with connected(server.port, None) as honest:
        words = hello(honest)
        honest.send(words)
        assert receive(honest, 6)[0] == Status.OK
    assert len(words) == HELLO_BYTES
    with connected(server.port, None) as replay:
        receive(replay, len(MAGIC) + 32)
        replay.send(words)
        assert receive(replay, 6)[0] == Status.OTHER_SECRET
        assert is_closed(replay)


def test_a_name_that_was_changed_on_the_way(server: RangeServer) -> None:
    """The proof covers the node's number and the kind of connection: who changes them is a stranger."""
    for position in (len(MAGIC), len(MAGIC) + 1):
        with connected(server.port, None) as channel:
            words = bytearray(hello(channel))
            words[position] ^= 1
            channel.send(words)
            assert receive(channel, 6)[0] == Status.OTHER_SECRET


def test_strangers_are_told(server: RangeServer) -> None:
    """Another job and another secret are told apart, before anything was served."""
    for stranger, message in ((replace(READER, job="x"), "another job"), (replace(READER, secret=b"x" * 32), "secret")):
        with pytest.raises(AccessError, match=message), connected(server.port, stranger):
            pass


def test_a_slow_handshake_is_cut(held: Held) -> None:
    """A stranger who sends a byte now and then, or nothing at all, does not keep a thread."""

    dripped: list[bytes] = []

    def drip(channel: PlainChannel) -> None:
        while True:
            dripped.append(MAGIC[:1])
            channel.send(dripped[-1])
            time.sleep(0.03)  # each byte well within the limit

    with serving(held, handshake_s=0.1) as server:
        with connected(server.port, None) as silent, connected(server.port, None) as dripping:
            with pytest.raises(PeerError):
                drip(dripping)
            assert is_closed(silent)
        assert len(dripped) < 10  # a message has 14 bytes at least
        until(lambda: server.connections == 0, "the threads end")


def test_a_flood_that_is_never_read(held: Held) -> None:
    """Requests without end whose answers nobody takes cost one connection's buffers, and end after the stall time."""
    requests = pack_request(Verb.READ, Range(V, IMAGE, 0, PIECES)) * 1000

    def flood(channel: PlainChannel) -> None:
        while True:
            channel.send(requests)

    with serving(held, stall_s=0.05) as server, connected(server.port) as channel:
        channel.send(requests)
        assert serves(server)
        with pytest.raises(PeerError, match="server"):
            flood(channel)
        until(lambda: server.connections == 0, "the connection is dropped")


def test_a_reader_that_asks_for_nothing(held: Held) -> None:
    """An idle connection is ended after a while."""
    with serving(held, idle_s=0.1) as server, connected(server.port) as idle:
        assert is_closed(idle)


def test_a_reader_that_hangs_up_in_the_middle(server: RangeServer) -> None:
    """A connection that ends while bytes are being sent leaves nothing behind."""
    for _ in range(5):
        with connected(server.port) as channel:
            channel.send(pack_request(Verb.READ, Range(V, IMAGE, 0, PIECES)))
            receive(channel, REPLY.size)
    until(lambda: server.connections == 0, "the threads end")
    assert serves(server)


@pytest.mark.parametrize("limit", ["connections", "connections_per_address"])
def test_too_many_connections(held: Held, limit: str) -> None:
    """Beyond the limit a connection is closed at once, and there is room again when one ends."""
    with serving(held, **{limit: 1}) as server:

        def greeted() -> bool:
            with connected(server.port, None) as stranger, contextlib.suppress(Exception):
                return receive(stranger, len(MAGIC)) == MAGIC
            return False

        with connected(server.port, None) as first:
            assert receive(first, len(MAGIC)) == MAGIC
            assert not greeted()
        assert until(greeted, "room for another")


def test_one_address_does_not_take_all(held: Held) -> None:
    """While one address has all that it may have, another is served."""
    with (
        serving(held, connections_per_address=1) as server,
        connected(server.port),
        socket.create_connection((HOST, server.port), timeout=20.0, source_address=("127.0.0.7", 0)) as other,
    ):
        assert other.recv(len(MAGIC)) == MAGIC


def test_an_address_of_another_machine(held: Held) -> None:
    """A host that is not here is refused with the setting that named it."""
    with pytest.raises(AccessError, match=r"cannot listen on 192\.0\.2\.1.*--nodes"):
        RangeServer("192.0.2.1", held.holder(), SERVER)
