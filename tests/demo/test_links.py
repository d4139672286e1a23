"""Links over real sockets: what is sent arrives, waits while the link is cut, and is spoiled when it is corrupted."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from ckptd.daemon.demo.links import Links, address_of

LIMIT_S = 10.0


@pytest.fixture
def links() -> Iterator[Links]:
    made = Links(1)
    yield made
    made.close()


@pytest.fixture
def echo() -> Iterator[int]:
    """A server of node 1 that sends back what it gets; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(LIMIT_S)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(LIMIT_S)
                    while data := connection.recv(1 << 16):
                        connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(LIMIT_S)


def connect(links: Links, port: int) -> socket.socket:
    links.open(0, 1, port, "127.0.0.1")
    links.open(0, 1, port, "127.0.0.1")  # twice is harmless
    return socket.create_connection((address_of(0, 1), port), LIMIT_S)


def receive(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = connection.recv(size - len(got))
        assert data, f"the link ended after {len(got)} of {size} bytes"
        got += data
    return got


def test_what_is_sent_arrives(links: Links, echo: int) -> None:
    """In both directions, to the byte; the end of a connection is passed on, too."""
    sent = os.urandom(300_000)
    with connect(links, echo) as connection:
        threading.Thread(target=connection.sendall, args=(sent,)).start()
        assert receive(connection, len(sent)) == sent
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_a_cut_link_holds_everything_back(links: Links, echo: int) -> None:
    """As on a network: the connection stays, nothing arrives, and all of it does once the link is back."""
    with connect(links, echo) as connection:
        connection.sendall(b"before")
        assert receive(connection, 6) == b"before"
        links.set(1, 0, "cut")
        connection.sendall(b"held")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(LIMIT_S)
        links.set(0, 1, None)
        assert receive(connection, 4) == b"held"


def test_another_link_is_not_touched(links: Links, echo: int) -> None:
    links.set(0, 2, "cut")
    with connect(links, echo) as connection:
        connection.sendall(b"free")
        assert receive(connection, 4) == b"free"


def test_a_corrupt_link_flips_bits(links: Links, echo: int) -> None:
    """Some of what arrives is wrong, none of it missing."""
    sent = bytes(4_000_000)
    with connect(links, echo) as connection:
        links.set(0, 1, "corrupt")
        threading.Thread(target=connection.sendall, args=(sent,)).start()
        got = receive(connection, len(sent))
        links.set(0, 1, None)
    assert 0 < sum(byte != 0 for byte in got) < 1000


def test_a_slow_link_takes_its_time(links: Links, echo: int) -> None:
    """It arrives, whole."""
    sent = os.urandom(200_000)
    with connect(links, echo) as connection:
        links.set(0, 1, "slow")
        threading.Thread(target=connection.sendall, args=(sent,)).start()
        assert receive(connection, len(sent)) == sent


@pytest.mark.slow
def test_a_lossy_link_loses_until_it_is_mended_and_everything_arrives(links: Links, echo: int) -> None:
    """Also over connections that are made meanwhile."""
    sent = os.urandom(4_000_000)
    before = connect(links, echo)
    links.set(0, 1, "lossy")
    for connection in (before, connect(links, echo)):  # the echo is of one after the other
        with connection:
            threading.Thread(target=connection.sendall, args=(sent,)).start()
            assert receive(connection, len(sent)) == sent
    links.set(0, 1, None)
