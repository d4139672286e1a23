"""Sealed connections: what is sent arrives, nobody on the way reads, changes, repeats or leaves out anything unnoticed."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.ckpt.errors import AccessError, PeerError
from ckptd.daemon import sealed
from ckptd.daemon.agreement import Keys, offer, spoken
from ckptd.daemon.channel import Channel, PlainChannel, Session
from ckptd.daemon.sealed import FRAME, FRAMES_MAX, SEALED, TAG, Nonces, SealedChannel

READER = Session("reader", "node-a", 1, "j", b"s" * 32, b"c" * 32, b"a" * 32)
SERVER = replace(READER, role="server", where="node-b")
KEYS = Keys(b"r" * 32, b"w" * 32)
HEAD = 4


class Tape:
    """A channel that keeps what was sent; `cut` is where the other side reads on."""

    def __init__(self, content: bytes = b"") -> None:
        self.content, self.closed, self.sends = bytearray(content), False, 0

    def send(self, *buffers: bytes | bytearray | memoryview) -> None:
        self.sends += 1
        for buffer in buffers:
            self.content += buffer

    def receive_into(self, view: memoryview) -> None:
        if len(view) > len(self.content) or self.closed:
            raise PeerError("node-b: the connection was closed in the middle of a message")
        view[:] = self.content[: len(view)]
        del self.content[: len(view)]

    def close(self) -> None:
        self.closed = True


def sealed_tape(*messages: bytes) -> Tape:
    """What the server sends for these messages."""
    tape = Tape()
    channel = SealedChannel(tape, KEYS, SERVER)
    for message in messages:
        channel.send(message)
    return tape


def received(tape: Tape, size: int) -> bytes:
    """What the reader gets of it."""
    view = memoryview(bytearray(size))
    SealedChannel(tape, KEYS, READER).receive_into(view)
    return bytes(view)


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """The reader's and the server's end of one real connection, agreed and sealed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    ends = both(
        lambda: SEALED.wrap(PlainChannel(here, "node-a", send_s=20.0, receive_s=20.0), READER),
        lambda: SEALED.wrap(PlainChannel(there, "node-b", send_s=20.0, receive_s=20.0), SERVER),
    )
    yield ends
    for end in ends:
        end.close()


def both(one: Callable[[], Channel], other: Callable[[], Channel]) -> tuple[Channel, Channel]:
    """Do both at the same time."""
    found: list[Channel] = []
    thread = threading.Thread(target=lambda: found.append(other()))
    thread.start()
    first = one()
    thread.join(20.0)
    return first, found[0]


@pytest.mark.parametrize("size", [1, 5, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 77])
def test_a_round_trip_over_a_real_connection(pair: tuple[Channel, Channel], size: int) -> None:
    """A head and a body of any size arrive as they were sent, in both directions, at once."""
    data = os.urandom(size)
    threads = [threading.Thread(target=end.send, args=(b"head", data)) for end in pair]
    for thread in threads:
        thread.start()
    for end in pair:
        view = memoryview(bytearray(4 + size))
        end.receive_into(view[:4])
        end.receive_into(view[4:])
        assert view == b"head" + data
    for thread in threads:
        thread.join(20.0)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6), st.lists(st.integers(1, 50), max_size=30))
def test_frames_and_reads_need_not_agree(messages: list[bytes], reads: list[int]) -> None:
    """Bytes come out in order however they were cut on either side."""
    tape, whole = Tape(), b"".join(messages)
    SealedChannel(tape, KEYS, SERVER).send(*messages)
    reader, got = SealedChannel(tape, KEYS, READER), b""
    for size in [*reads, len(whole)]:
        view = memoryview(bytearray(min(size, len(whole) - len(got))))
        reader.receive_into(view)
        got += view
    assert got == whole
    assert not tape.content


def test_nothing_can_be_read_on_the_way() -> None:
    """Neither the bytes nor the same frame twice are seen by whoever looks on."""
    tape = sealed_tape(b"weights" * 9, b"weights" * 9)
    assert b"weights" not in tape.content
    half = len(tape.content) // 2
    assert tape.content[HEAD:half] != tape.content[half + HEAD :]


def test_small_buffers_go_out_together() -> None:
    """A reply's parts, and the first megabyte after them, cost one send."""
    tape = Tape()
    SealedChannel(tape, KEYS, SERVER).send(b"status", b"heads", bytes(FRAME))
    assert tape.sends == 1


@given(st.data())
def test_a_flipped_bit_is_noticed(data: st.DataObject) -> None:
    """Wherever it is, the connection ends with an error that names the peer, and no byte of the frame is delivered."""
    tape = sealed_tape(b"first", b"second frame")
    position = data.draw(st.integers(0, len(tape.content) - 1))
    tape.content[position] ^= 1 << data.draw(st.integers(0, 7))
    first = HEAD + 5 + TAG
    reader, view = SealedChannel(tape, KEYS, READER), memoryview(bytearray(17))
    with pytest.raises(PeerError, match=r"node-[ab]"):
        reader.receive_into(view)
    assert bytes(view) == (bytes(17) if position < first else b"first" + bytes(12))
    with pytest.raises(PeerError):
        reader.receive_into(view)


@pytest.mark.parametrize("order", [(0, 0), (1,), (1, 0), (0, 2), (0, 1, 1)])
def test_repeated_reordered_and_missing_frames(order: tuple[int, ...]) -> None:
    """Frames count: one that comes again, early, or instead of one that is missing fails its tag."""
    size = HEAD + 8 + TAG
    whole = bytes(sealed_tape(b"frame  0", b"frame  1", b"frame  2").content)
    tape = Tape(b"".join(whole[index * size : (index + 1) * size] for index in order))
    with pytest.raises(PeerError, match="node-a: a frame was changed, repeated or left out on the way"):
        received(tape, 8 * len(order))
    assert tape.closed


def test_frames_of_the_other_direction_are_refused() -> None:
    """What the reader itself has sent can't be sent back to it."""
    tape = Tape()
    SealedChannel(tape, KEYS, READER).send(b"request")
    with pytest.raises(PeerError, match="changed, repeated or left out"):
        received(tape, 7)


@pytest.mark.parametrize("kept", [0, 3, HEAD, HEAD + 4, HEAD + 8 + TAG - 1])
def test_a_cut_off_frame_delivers_nothing(kept: int) -> None:
    """A connection that ends inside a frame is an error, whatever of it has come."""
    tape = Tape(bytes(sealed_tape(b"a frame.").content[:kept]))
    view = memoryview(bytearray(8))
    with pytest.raises(PeerError, match="closed in the middle"):
        SealedChannel(tape, KEYS, READER).receive_into(view)
    assert bytes(view) == bytes(8)


@pytest.mark.parametrize("size", [0, FRAME + 1, 1 << 31, (1 << 32) - 1])
def test_an_impossible_length_is_refused_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A length beyond the limit makes no buffer and waits for no byte; an empty frame could go on for ever."""
    monkeypatch.setattr(sealed, "_room", lambda *_: pytest.fail("memory was taken"))
    tape = Tape(struct.pack("<I", size) + bytes(100))
    with pytest.raises(PeerError, match=f"node-a announced a frame of {size} bytes, expected 1 to {FRAME}"):
        received(tape, 10)
    assert tape.closed
    assert len(tape.content) == 100


def test_no_nonce_comes_twice() -> None:
    """Over all frames of one key and both directions, nonces differ; when they are used up, it ends."""
    ways = [Nonces(direction, "node-a") for direction in (0, 1)]
    seen = {way.take() for way in ways for _ in range(1000)}
    assert len(seen) == 2000
    assert {len(nonce) for nonce in seen} == {12}
    ways[0]._next = FRAMES_MAX - 1
    assert ways[0].take() == struct.pack("<IQ", 0, FRAMES_MAX - 1)
    for _ in range(2):
        with pytest.raises(
            PeerError, match="node-a: 1048576 frames went under one key, which is its limit; connect again"
        ):
            ways[0].take()


def test_every_frame_takes_a_nonce_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender seals as many frames as it took nonces, large and small ones alike."""
    taken: list[bytes] = []
    take = Nonces.take

    def noted(nonces: Nonces) -> bytes:
        taken.append(take(nonces))
        return taken[-1]

    monkeypatch.setattr(Nonces, "take", noted)
    SealedChannel(Tape(), KEYS, SERVER).send(b"", b"head", bytes(2 * FRAME + 1), b"tail")
    assert len(taken) == len(set(taken)) == 5


def test_memory_is_bounded() -> None:
    """However much goes through, a connection holds a few frames; one that only carries requests holds next to nothing."""
    tape = Tape()
    server, reader = SealedChannel(tape, KEYS, SERVER), SealedChannel(tape, KEYS, READER)

    def held(channel: SealedChannel) -> int:
        return sum(map(len, (channel._out, channel._in, channel._left)))

    server.send(b"x" * 57)
    reader.receive_into(memoryview(bytearray(57)))
    assert held(server) + held(reader) < 1000
    server.send(bytes(10 * FRAME))
    reader.receive_into(memoryview(bytearray(10 * FRAME - 1)))
    assert held(server) < 1.1 * FRAME
    assert held(reader) < 2.2 * FRAME


@pytest.mark.parametrize(
    "stranger",
    [replace(SERVER, secret=b"x" * 32), replace(SERVER, job="k"), replace(SERVER, challenge=b"x" * 32), READER],
)
def test_an_offer_that_nobody_vouches_for(stranger: Session) -> None:
    """Another secret, job or handshake, or one's own offer sent back: refused, and the connection is closed."""
    here = Answered(spoken(stranger, offer()))
    with pytest.raises(AccessError, match="node-a could not prove that its key is its own"):
        SEALED.wrap(here, READER)
    assert here.closed


class Answered(Tape):
    """A channel on which an answer lies already."""

    def send(self, *buffers: bytes | bytearray | memoryview) -> None:
        """Nobody listens."""
