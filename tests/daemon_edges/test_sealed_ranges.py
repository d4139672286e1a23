"""Ranges over sealed connections: the data plane as a daemon with `tls_dir` runs it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from tests.cluster import until

from ckptd.ckpt.errors import AccessError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.daemon.channel import PLAIN, Wrapping
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Member
from ckptd.daemon.sealed import SEALED
from ckptd.daemon.segments import Stretch
from ckptd.daemon.transport import Endpoint, Holder, Range

DATA = os.urandom(70 * PIECE + 1234)  # more than one request
SUMS = sums_of(DATA)
IMAGE = Image(0, len(DATA), digest_of(SUMS, len(DATA)))
WANTED = Range(Version(1, 5), IMAGE, 0, len(SUMS))


def member(node: int, wrapping: Wrapping) -> Member:
    return Member(job="j", node=node, secret=b"s" * 32, wrapping=wrapping)


@contextlib.contextmanager
def serving(wrapping: Wrapping) -> Iterator[RangeServer]:
    """Node 1 serves the image."""
    stretch = Stretch(memoryview(DATA), SUMS)
    holder = Holder(lambda *_: stretch, lambda _: None, lambda *_: [])
    server = RangeServer("127.0.0.1", holder, member(1, wrapping))
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def reading(wrapping: Wrapping) -> Iterator[RangeReader]:
    """Node 0 reads."""
    reader = RangeReader(member(0, wrapping))
    try:
        yield reader
    finally:
        reader.close()


class Tap:
    """A relay to a port that keeps what passes, and may flip one bit of what the server sends."""

    def __init__(self, port: int, flip_at: int = -1) -> None:
        self.seen, self.connections = bytearray(), 0
        self._port, self._flip_at = port, flip_at
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            there = socket.create_connection(("127.0.0.1", self._port))
            for source, sink in ((here, there), (there, here)):
                self._threads.append(threading.Thread(target=self._pump, args=(source, sink, source is there)))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError), source:
            while data := bytearray(source.recv(1 << 16)):
                if from_server:
                    if self.connections == 1 and passed <= self._flip_at < passed + len(data):
                        data[self._flip_at - passed] ^= 1
                    passed += len(data)
                    self.seen += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(20.0)


@pytest.mark.parametrize(("wrapping", "shows"), [(PLAIN, True), (SEALED, False)], ids=["plain", "sealed"])
def test_only_who_agreed_on_the_keys_can_read(wrapping: Wrapping, shows: bool) -> None:
    """The range arrives; whoever listens sees its bytes, or not."""
    into = memoryview(bytearray(len(DATA)))
    with serving(wrapping) as server:
        tap = Tap(server.port)
        with reading(wrapping) as reader:
            assert reader.read(Endpoint(1, "127.0.0.1", tap.port), WANTED, into) == len(DATA)
    tap.close()
    assert into == DATA
    assert len(tap.seen) >= len(DATA)
    assert any(DATA[start : start + 32] in tap.seen for start in range(0, len(DATA), 10 * PIECE)) == shows


def test_a_bit_that_is_flipped_on_the_way_costs_a_connection() -> None:
    """The frame is refused and the rest is read over another connection: what arrives is what was captured."""
    into = memoryview(bytearray(len(DATA)))
    with serving(SEALED) as server:
        tap = Tap(server.port, flip_at=30 * PIECE)
        with reading(SEALED) as reader:
            reader.read(Endpoint(1, "127.0.0.1", tap.port), WANTED, into)
        until(lambda: tap.connections == 2, "the second connection")
    tap.close()
    assert into == DATA


@pytest.mark.parametrize(("ours", "theirs"), [(PLAIN, SEALED), (SEALED, PLAIN)], ids=["plain", "sealed"])
def test_one_with_and_one_without(ours: Wrapping, theirs: Wrapping) -> None:
    """A node that seals and one that does not refuse each other before a byte of an image is sent, and say what to do."""
    into = memoryview(bytearray(len(DATA)))
    with serving(theirs) as server, reading(ours) as reader, pytest.raises(AccessError) as refused:
        reader.read(Endpoint(1, "127.0.0.1", server.port), WANTED, into)
    assert "set the same on every node" in str(refused.value)
    assert not any(into)
