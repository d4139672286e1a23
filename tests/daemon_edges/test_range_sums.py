"""Listing the sums of an image on the wire: exactly what was captured, or an error that names who said otherwise."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable

import pytest
from tests.contract.wires import HOST, IMAGE, PIECES, READER, SERVER, SUMS, Held, V
from tests.daemon_edges.data_plane import connected, listening, welcomed

from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.model import PIECE
from ckptd.daemon import range_reader
from ckptd.daemon.channel import PlainChannel, receive
from ckptd.daemon.range_reader import RangeReader
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import (
    REPLY,
    SUMS_MAX,
    Asked,
    Reply,
    Status,
    Verb,
    pack_numbers,
    pack_request,
    receive_numbers,
)
from ckptd.daemon.transport import Endpoint, Range


def said(request: bytes, count: int, *sums: int, length: int = 0) -> bytes:
    return Reply(Status.OK, count, length).pack(request) + pack_numbers("Q", sums)


def test_a_list_on_the_wire() -> None:
    """The reply has the count, no length, and then 8 bytes a piece; a read goes on over the same connection."""
    with contextlib.closing(RangeServer(HOST, Held().holder(), SERVER)) as server, connected(server.port) as channel:
        for first, count in ((0, PIECES), (3, 2)):
            request = pack_request(Verb.SUMS, Range(V, IMAGE, first, count))
            channel.send(request)
            assert Reply.unpack(receive(channel, REPLY.size), request) == Reply(Status.OK, count, 0)
            assert receive_numbers(channel, "Q", count) == tuple(SUMS[first : first + count])
        request = pack_request(Verb.READ, Range(V, IMAGE, 0, 1))
        channel.send(request)
        assert Reply.unpack(receive(channel, REPLY.size), request) == Reply(Status.OK, 1, PIECE)


def test_more_than_a_list_may_have() -> None:
    """The sums of 16 GiB are listed at a time at the most: memory stays the same whatever is asked for."""
    assert SUMS_MAX * PIECE == 16 << 30
    held = Held()
    held.stretch.sums.extend([0] * SUMS_MAX)
    with contextlib.closing(RangeServer(HOST, held.holder(), SERVER)) as server, connected(server.port) as channel:
        for count, status in ((SUMS_MAX + 1, Status.NOT_HELD), (SUMS_MAX, Status.OK)):
            request = pack_request(Verb.SUMS, Range(V, IMAGE, 0, count))
            channel.send(request)
            reply = Reply.unpack(receive(channel, REPLY.size), request)
            assert reply is not None
            assert reply.status == status


def test_a_long_list_is_asked_for_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with more pieces than one answer lists takes several; a connection that breaks costs no part twice."""
    monkeypatch.setattr(range_reader, "SUMS_MAX", 3)
    asked: list[tuple[int, int]] = []

    def answer(channel: PlainChannel, request: bytes) -> None:
        wanted = Asked.unpack(request)
        asked.append((wanted.first, wanted.count))
        channel.send(said(request, wanted.count, *SUMS[wanted.first : wanted.first + wanted.count]))
        if wanted.first:
            channel.close()

    with listening(welcomed(answer)) as where, contextlib.closing(RangeReader(READER)) as reader:
        assert reader.sums(where, V, IMAGE) == SUMS
    assert asked == [(0, 3), (3, 3), (6, 2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: b"", "closed in the middle"),
        (lambda r: said(r, PIECES, *SUMS[:-1]), "closed in the middle"),
        (lambda r: said(r, PIECES - 1, *SUMS[:-1]), f"announced {PIECES - 1} sums"),
        (lambda r: said(r, 2**32 - 1), "announced 4294967295 sums"),
        (lambda r: said(r, PIECES, *SUMS, length=8), "8 bytes for"),
        (lambda r: said(bytes(len(r)), PIECES, *SUMS), "answered another request"),
        (lambda r: said(r, PIECES, *SUMS)[:-1] + b"\xff", "a bit of its answer"),
    ],
)
def test_a_server_that_says_something_else(make: Callable[[bytes], bytes], message: str) -> None:
    """A truncated or impossible list is a PeerError that names the node, after one more try."""

    def answer(channel: PlainChannel, request: bytes) -> None:
        channel.send(make(request))
        channel.close()

    with (
        listening(welcomed(answer)) as where,
        contextlib.closing(RangeReader(READER)) as reader,
        pytest.raises(PeerError, match=re.escape(str(where)) + ".*" + message),
    ):
        reader.sums(where, V, IMAGE)


def test_a_node_that_nobody_answers_for() -> None:
    """It is a PeerError with its number."""
    with contextlib.closing(RangeReader(READER)) as reader, pytest.raises(PeerError, match=r"node 1 .* be reached"):
        reader.sums(Endpoint(1, HOST, 1), V, IMAGE)


@pytest.mark.parametrize("index", [0, PIECES - 1])
def test_a_false_list_is_found_out(index: int) -> None:
    """One sum that is another one, and the image's digest does not fit: the node is named."""
    held = Held()
    held.stretch.sums[index] ^= 1 << 40
    with (
        contextlib.closing(RangeServer(HOST, held.holder(), SERVER)) as server,
        contextlib.closing(RangeReader(READER)) as reader,
        pytest.raises(CorruptionError, match=r"node 1 .* lists other sums than those of rank 0"),
    ):
        reader.sums(Endpoint(1, HOST, server.port), V, IMAGE)
