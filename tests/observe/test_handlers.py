"""Asking a trainer's handlers: whatever answers, or does not, the daemon is done in bounded time and memory."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd.ckpt.errors import PeerError
from ckptd.daemon.observe.handlers import ANSWER_MAX, Silent, ask

Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A handler of one's own at a unix socket, for one connection."""
    with contextlib.ExitStack() as open_things:

        def start(answer: Callable[[socket.socket], None]) -> Path:
            listener = open_things.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / "s"))
            listener.listen()

            def run() -> None:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(4096)
                    answer(connection)

            thread = threading.Thread(target=run)
            thread.start()
            open_things.callback(thread.join)
            return tmp_path / "s"

        yield start


def reply(status: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


def test_an_answer_comes_whole_though_in_pieces(serve: Serve) -> None:
    """The body is what the length says."""
    body = b"x" * 100_000

    def in_pieces(connection: socket.socket) -> None:
        for part in (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 100000\r\n\r\n", body):
            connection.sendall(part)

    path = serve(in_pieces)
    assert ask(path, "ping", 2.0) == body


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"404 Not Found", b"Content-Length: 0"),
        reply(b"200 OK"),
        reply(b"200 OK", b"Content-Length: -5"),
        reply(b"200 OK", b"Content-Length: 99999999999999999999"),
        reply(b"200 OK", b"Content-Length: %d" % (ANSWER_MAX + 1)),
        b"SSH-2.0-nonsense\r\n\r\n",
        b"x" * 100_000,
        b"\r\n\r\n",
    ],
    ids=["404", "no length", "negative", "huge", "too large", "another protocol", "flood without end", "empty"],
)
def test_an_answer_that_is_none_is_refused(serve: Serve, answer: bytes) -> None:
    """Errors, other protocols, floods, and lengths that can't be."""
    path = serve(lambda connection: connection.sendall(answer))
    with pytest.raises(PeerError):
        ask(path, "fr_trace_json", 2.0)


def test_a_flood_within_the_length_is_cut_off(serve: Serve) -> None:
    """What comes after the announced length is not read."""
    path = serve(lambda connection: connection.sendall(reply(b"200 OK", b"Content-Length: 3", body=b"abc" * 100_000)))
    assert ask(path, "ping", 2.0) == b"abc"


def test_who_answers_byte_by_byte_does_not_hold_us(serve: Serve) -> None:
    """The time is for the whole answer, not for each part of it."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in reply(b"200 OK", b"Content-Length: 1000", body=b"x" * 1000):
            if stop.wait(0.01):
                return
            connection.sendall(bytes([byte]))

    path = serve(drip)
    began = time.monotonic()
    with pytest.raises(Silent):
        ask(path, "ping", 0.1)
    stop.set()
    assert time.monotonic() - began < 1.0


def test_nobody_there_and_an_end_in_the_middle_are_silence(serve: Serve, tmp_path: Path) -> None:
    """Both are told apart from nonsense: the process may be stopped or gone."""
    with pytest.raises(Silent):
        ask(tmp_path / "nothing", "ping", 0.1)
    path = serve(lambda connection: connection.sendall(reply(b"200 OK", b"Content-Length: 10", body=b"abc")))
    with pytest.raises(Silent):
        ask(path, "ping", 2.0)
