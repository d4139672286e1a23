"""The reader against servers that lie, break off, stay silent or are something else: never a wrong byte, always a name."""

from __future__ import annotations

import contextlib
import re
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import xxhash
from tests.contract.wires import DATA, HOST, IMAGE, JOB, PARITY, PIECES, READER, SECRET, SERVER, SIZE, SUMS, Held, V
from tests.daemon_edges.data_plane import Talk, listening, welcomed

from ckptd.ckpt import auth
from ckptd.ckpt.errors import AccessError, CkptdError, CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image
from ckptd.daemon.channel import PlainChannel, Wrapping, receive
from ckptd.daemon.handshake import MAGIC, welcome
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import PIECES_MAX, REPLY, REQUEST, Asked, Limits, Reply, Status, Verb, pack_numbers
from ckptd.daemon.throttle import Throttle
from ckptd.daemon.transport import DamagedThere, Endpoint, Range


@pytest.fixture
def reader() -> Iterator[RangeReader]:
    made = RangeReader(READER, limits=Limits(stall_s=10.0))
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[RangeServer]:
    made = RangeServer(HOST, Held().holder(), SERVER)
    yield made
    made.close()


def endpoint(server: RangeServer) -> Endpoint:
    return Endpoint(1, HOST, server.port)


def read(reader: RangeReader, where: Endpoint, first: int = 0, count: int = 3, what: Image | Parity = IMAGE) -> bytes:
    """Read into the middle of a buffer; nothing around the range is touched, whatever the server says."""
    around = bytearray(b"\xaa" * (count + 2) * PIECE)
    try:
        length = reader.read(where, Range(V, what, first, count), memoryview(around)[PIECE : (count + 1) * PIECE])
    finally:
        assert around[:PIECE] == around[-PIECE:] == b"\xaa" * PIECE
    return bytes(around[PIECE : PIECE + length])


def said(request: bytes, count: int, length: int, *sums: int, status: int = Status.OK) -> bytes:
    return Reply(status, count, length).pack(request) + struct.pack(f"<{len(sums)}Q", *sums)


def lies(make: Callable[[bytes], bytes]) -> Talk:
    """A server that answers each request with what `make` makes of it, and hangs up."""

    def answer(channel: PlainChannel, request: bytes) -> None:
        channel.send(make(request))
        channel.close()

    return welcomed(answer)


WHOLE = DATA[:PIECE]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"", "closed in the middle"),
        (lambda _: b"\x01", "closed in the middle"),
        (lambda r: said(r, 1, PIECE), "closed in the middle"),
        (lambda r: said(r, 1, PIECE, SUMS[0]) + WHOLE[:-1], "closed in the middle"),
        (lambda r: said(r, 2, 2 * PIECE, *SUMS[:2]), "announced 2 pieces"),
        (lambda r: said(r, 2**32 - 1, PIECE), "announced 4294967295 pieces"),
        (lambda r: said(r, 0, 0), "announced 0 pieces"),
        (lambda r: said(r, 1, PIECE + 1, SUMS[0]), f"announced {PIECE + 1} bytes for pieces 0..0"),
        (lambda r: said(r, 1, 2**32 - 1, SUMS[0]), "announced 4294967295 bytes"),
        (lambda r: said(r, 1, PIECE - 1, SUMS[0]) + WHOLE[:-1], f"announced {PIECE - 1} bytes"),
        (lambda r: said(r, 1, 0, SUMS[0]), "announced 0 bytes"),
        (lambda r: said(bytes(len(r)), 1, PIECE, SUMS[0]) + WHOLE, "answered another request"),
        (lambda r: said(r, 1, PIECE, SUMS[0], status=0x77) + WHOLE, "answered 119"),
    ],
)
def test_a_server_that_lies(reader: RangeReader, make: Callable[[bytes], bytes], message: str) -> None:
    """A truncated or impossible answer is a PeerError that names the node, after one more try."""
    with listening(lies(make)) as where, pytest.raises(PeerError, match=re.escape(str(where)) + ".*" + message):
        read(reader, where, 0, 1)


def test_answers_to_another_epoch_are_refused(reader: RangeReader) -> None:
    """An answer is bound to the whole request: one about the same pieces of another life is not taken."""

    def make(request: bytes) -> bytes:
        other = bytearray(request)
        other[2] ^= 1  # the epoch
        return said(bytes(other), 1, PIECE, SUMS[0]) + WHOLE

    with listening(lies(make)) as where, pytest.raises(PeerError, match="another request"):
        read(reader, where, 0, 1)


def test_a_short_piece_in_the_middle() -> None:
    """Only the last piece of a range may be short: bytes can't be shifted."""

    def answer(channel: PlainChannel, request: bytes) -> None:
        asked = Asked.unpack(request)
        channel.send(said(request, asked.count, 1000, *[0] * asked.count), bytes(1000))

    throttle = Throttle()
    throttle.grain = 2
    with (
        listening(welcomed(answer)) as where,
        contextlib.closing(RangeReader(READER, throttle=throttle)) as small,
        pytest.raises(PeerError, match=f"announced 1000 bytes .* expected {2 * PIECE} to"),
    ):
        read(small, where, 0, 4, PARITY)


def test_wrong_sums(reader: RangeReader) -> None:
    """A server whose sums never match, and which finds nothing damaged, is given up: no endless loop."""
    asked_for: list[int] = []

    def answer(channel: PlainChannel, request: bytes) -> None:
        asked = Asked.unpack(request)
        asked_for.append(asked.verb)
        if asked.verb == Verb.CHECK:
            channel.send(said(request, 0, 0) + pack_numbers("I", ()))
        else:
            channel.send(said(request, 1, PIECE, SUMS[0] ^ 1), WHOLE)

    message = "piece 0 of .* fails its checksum on arrival again and again"
    with listening(welcomed(answer)) as where, pytest.raises(CorruptionError, match=message):
        read(reader, where, 0, 1)
    assert asked_for == [Verb.READ, Verb.CHECK] * 3


@pytest.mark.parametrize(
    ("count", "numbers", "message"),
    [
        (2, (0, 1), "found 2 damaged pieces"),
        (1, (1,), "other pieces damaged"),
        (2**32 - 1, (), "found 4294967295 damaged"),
    ],
)
def test_lies_about_damage(reader: RangeReader, count: int, numbers: tuple[int, ...], message: str) -> None:
    """Only pieces that were asked about can be called damaged."""

    def answer(channel: PlainChannel, request: bytes) -> None:
        if Asked.unpack(request).verb == Verb.CHECK:
            channel.send(said(request, count, 0) + pack_numbers("I", numbers))
        else:
            channel.send(said(request, 1, PIECE, SUMS[0] ^ 1), WHOLE)

    with listening(welcomed(answer)) as where, pytest.raises(PeerError, match=message):
        read(reader, where, 0, 1)


@pytest.mark.parametrize("at", range(REPLY.size + 4 + 8))
@pytest.mark.timeout(20)
def test_a_bit_that_is_flipped_in_an_answer(at: int) -> None:
    """The reader asks again over another connection: it neither waits for what the bit announces nor believes it."""
    flips = [0x01, 0]

    def answer(channel: PlainChannel, request: bytes) -> None:
        if Asked.unpack(request).verb == Verb.CHECK:
            frame = bytearray(said(request, 1, 0) + pack_numbers("I", (2,)))
            frame[at] ^= flips.pop(0)
            channel.send(bytes(frame))
        else:
            channel.send(said(request, 3, 3 * PIECE, *SUMS[:2], SUMS[2] ^ 1), DATA[: 3 * PIECE])

    with (
        listening(welcomed(answer)) as where,
        contextlib.closing(RangeReader(READER, limits=Limits(stall_s=60.0))) as patient,
        pytest.raises(DamagedThere) as found,
    ):
        read(patient, where)
    assert found.value.pieces == (2,)
    assert not flips


def test_a_server_that_sends_a_piece_at_a_time(reader: RangeReader) -> None:
    """One that breaks off after each piece is used to the end; what arrived is not asked for again."""
    firsts: list[int] = []

    def answer(channel: PlainChannel, request: bytes) -> None:
        asked = Asked.unpack(request)
        firsts.append(asked.first)
        end = min(SIZE, (asked.first + asked.count) * PIECE)
        start = asked.first * PIECE
        channel.send(
            said(request, asked.count, end - start, *SUMS[asked.first :]), DATA[start : min(end, start + PIECE + 9)]
        )
        channel.close()

    with listening(welcomed(answer)) as where:
        assert read(reader, where, 0, PIECES) == DATA
    assert firsts == list(range(PIECES))


def test_another_kind_of_server(reader: RangeReader) -> None:
    """A port where something else listens is recognised by its first words, and so is another version of ckptd."""
    words = b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40)
    with (
        listening(lambda channel: channel.send(words)) as where,
        pytest.raises(PeerError, match="not a ckptd data port"),
    ):
        read(reader, where)
    old = b"CKPTDR\0\1" + bytes(32)
    with (
        listening(lambda channel: channel.send(old)) as where,
        pytest.raises(PeerError, match=r"speaks version 1 .* node 3"),
    ):
        read(reader, where)


def test_a_server_must_prove_itself(reader: RangeReader) -> None:
    """Who says yes without knowing the secret is not believed; nor who repeats what another server once said."""
    overheard: list[bytes] = []

    def impostor(channel: PlainChannel) -> None:
        channel.send(MAGIC + auth.nonce())
        receive(channel, len(MAGIC) + 5 + 1 + len(JOB) + 64)
        channel.send(overheard[0])

    overheard.append(struct.pack("<BBI", 1, 0, 1) + bytes(auth.PROOF_BYTES))
    with listening(impostor) as where, pytest.raises(AccessError, match=r"node 1 .* could not prove that it knows"):
        read(reader, where)
    answer = struct.pack("<BBI", 1, 0, 1)
    overheard[0] = answer + auth.proof(SECRET, "range server", JOB, auth.nonce(), auth.nonce(), answer)
    with listening(impostor) as where, pytest.raises(AccessError, match="could not prove that it knows"):
        read(reader, where)


def test_the_node_that_was_meant(reader: RangeReader) -> None:
    """A daemon of another number that has the port now is not read from."""
    other = welcomed(lambda *_: None, replace(SERVER, node=5))
    with listening(other) as where, pytest.raises(PeerError, match=r"node 1 .* says that it is node 5"):
        read(reader, where)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": "other"}, "serves another job than 'other'"),
        ({"secret": b"x" * 32}, "knows another secret"),
        ({"wrapping": Wrapping(7, "sealed", lambda channel, _: channel)}, "of kind 0, this node sealed"),
    ],
)
def test_strangers_get_nothing(server: RangeServer, changes: dict[str, object], message: str) -> None:
    """A reader of another job, with another secret or another kind of connection is told so, and not asked to try again."""
    made = RangeReader(replace(READER, **changes))  # type: ignore[arg-type]
    with contextlib.closing(made) as stranger, pytest.raises(AccessError, match=message):
        read(stranger, endpoint(server))


def test_a_connection_is_used_again(server: RangeServer, reader: RangeReader) -> None:
    """One reader that asks again and again keeps one connection, though it is refused and told of damage in between."""
    for _ in range(5):
        assert read(reader, endpoint(server)) == DATA[: 3 * PIECE]
    assert server.connections == 1


def test_a_server_that_was_restarted(reader: RangeReader) -> None:
    """A connection that died with the server before is replaced unasked."""
    held = Held()
    first = RangeServer(HOST, held.holder(), SERVER)
    read(reader, endpoint(first))
    first.close()
    second = RangeServer(HOST, held.holder(), SERVER)
    reader._idle[endpoint(second)] = reader._idle.pop(endpoint(first))
    assert read(reader, endpoint(second)) == DATA[: 3 * PIECE]
    second.close()


def test_all_connections_to_a_dead_daemon_are_forgotten(reader: RangeReader) -> None:
    """However many idle connections died with a daemon, the next read finds its successor."""
    held = Held()
    first = RangeServer(HOST, held.holder(), SERVER)
    links = [reader._checkout(endpoint(first)) for _ in range(5)]
    for link in links:
        reader._give_back(endpoint(first), link)
    first.close()
    second = RangeServer(HOST, held.holder(), SERVER)
    reader._idle[endpoint(second)] = reader._idle.pop(endpoint(first))
    assert read(reader, endpoint(second)) == DATA[: 3 * PIECE]
    second.close()


def test_a_server_that_is_gone(server: RangeServer, reader: RangeReader) -> None:
    """After the end of the server an idle connection and a new one both fail with its name."""
    read(reader, endpoint(server))
    server.close()
    with pytest.raises(PeerError, match=re.escape(str(endpoint(server)))):
        read(reader, endpoint(server))


def test_a_silent_server_is_given_up() -> None:
    """Who accepts and says nothing, before or after the handshake, costs a bounded time and delays nobody else."""
    limits = Limits(handshake_s=0.05, stall_s=0.05)
    release = threading.Event()

    def silent(channel: PlainChannel) -> None:
        release.wait(20.0)

    with contextlib.closing(RangeReader(READER, limits=limits)) as reader:
        for talk in (silent, welcomed(lambda channel, _: silent(channel))):
            release.clear()
            with listening(talk) as where:
                with pytest.raises(PeerError, match=r"node 1 .* timed out"):
                    read(reader, where)
                release.set()


def test_closing_ends_a_read(reader: RangeReader) -> None:
    """A read that waits for a server ends when the reader is closed."""
    asked = threading.Event()
    errors: list[CkptdError] = []

    def work(where: Endpoint) -> None:
        try:
            read(reader, where)
        except CkptdError as error:
            errors.append(error)

    with listening(welcomed(lambda *_: asked.set())) as where:
        thread = threading.Thread(target=work, args=(where,))
        thread.start()
        assert asked.wait(20.0)
        reader.close()
        thread.join(20.0)
    assert len(errors) == 1
    assert isinstance(errors[0], PeerError)


def test_a_host_that_cannot_be_reached(reader: RangeReader) -> None:
    """It is a PeerError with the node's number, at once."""
    for host in (HOST, "no such host", "x" * 300):
        with pytest.raises(PeerError, match=r"node 1 .* cannot be reached"):
            reader.read(Endpoint(1, host, 1), Range(V, IMAGE, 0, 1), memoryview(bytearray(PIECE)))


def test_several_requests_are_under_way() -> None:
    """As many requests as the limit says are sent before the first is answered, and no more."""
    throttle = Throttle()
    throttle.grain = 1
    fourth: list[str] = []

    def talk(channel: PlainChannel) -> None:
        welcome(channel, SERVER, "reader")
        requests = [receive(channel, REQUEST.size) for _ in range(3)]
        channel.patience(send_s=20.0, receive_s=0.05)
        try:
            receive(channel, 1)
        except PeerError as error:
            fourth.append(str(error))
        channel.patience(send_s=20.0, receive_s=20.0)
        while True:
            first = Asked.unpack(requests[0]).first
            channel.send(said(requests.pop(0), 1, PIECE, SUMS[first]), DATA[first * PIECE : (first + 1) * PIECE])
            requests = requests or [receive(channel, REQUEST.size)]

    made = RangeReader(READER, throttle=throttle, limits=Limits(in_flight=3))
    with listening(talk) as where, contextlib.closing(made) as reader:
        assert read(reader, where, 0, 6) == DATA[: 6 * PIECE]
    assert fourth == ["reader timed out: nothing got through any more"]


def test_requests_have_a_limit() -> None:
    """A range of any length is cut into requests of at most 16 MiB."""
    parts = list(Range(V, PARITY, 5, 2 * PIECES_MAX + 1).parts(Throttle().grain))
    assert [(part.first, part.count) for part in parts] == [(5, 64), (69, 64), (133, 1)]
    assert PIECES_MAX * PIECE == 16 << 20


def test_damage_names_few_pieces() -> None:
    """A message about a range that is damaged from end to end stays short; the numbers are all there."""
    error = DamagedThere(Endpoint(1, HOST, 1), Range(V, IMAGE, 0, 100), tuple(range(100)))
    assert len(str(error)) < 200
    assert error.pieces == tuple(range(100))


def test_the_reply_is_as_documented() -> None:
    """17 bytes, little-endian: status, count, length, echo."""
    said = bytes([1, 2, 0, 0, 0, 3, 0, 0, 0])
    frame = Reply(1, 2, 3).pack(b"request")
    assert frame == said + xxhash.xxh3_64_intdigest(b"request" + said).to_bytes(8, "little")
    assert REPLY.size == len(frame) == 17
