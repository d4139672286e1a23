"""Letters over connections that something on the way has made of no use without ending them. Found by drills."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cluster import free_address, until

from ckptd.ckpt.config import Config
from ckptd.ckpt.inventory import Report
from ckptd.ckpt.wire.translate import Letter
from ckptd.daemon.peers import Peers, PeerServer


class Relay:
    """Passes on what `spoil` makes of what comes over its first connection, and all of what comes over later ones."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        self.spoil: Callable[[bytes], bytes] = bytes
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            there = socket.create_connection(self._to)
            self._open += [here, there]
            is_first = self.connections == 1
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(source, sink, is_first), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_first: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(self.spoil(data) if is_first else data)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._accepting.join(10.0)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class Way:
    """Node 0 sends reports to node 1 through a relay, ten a second."""

    def __init__(self, run_dir: Path) -> None:
        ends = tuple(free_address(f"127.76.1.{index + 1}") for index in range(2))
        self.letters: list[Letter] = []
        self._server = PeerServer(self._config(run_dir, 1, ends), "b", self.letters.append)
        self.relay = Relay(ends[1])
        self._peers = Peers(self._config(run_dir, 0, (ends[0], self.relay.address)))
        self._sequence = itertools.count(1)

    def arrive(self, count: int) -> None:
        """Wait until so many letters have arrived."""

        def sent() -> bool:
            self._peers.send(1, Report(node=0, boot="b", seq=next(self._sequence)))
            time.sleep(0.1)
            return len(self.letters) >= count

        until(sent, "letters that arrive", 15.0)

    def close(self) -> None:
        self._peers.close()
        self.relay.close()
        self._server.close()

    def _config(self, run_dir: Path, node: int, nodes: tuple[str, ...]) -> Config:
        return Config(
            job="j", node=node, nodes=nodes, run_dir=run_dir, segment_dir=run_dir, secret=b"s" * 32
        ).validate()


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    made = Way(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_a_connection_that_has_gone_dumb_is_replaced(way: Way) -> None:
    """Nothing ends it, and nothing comes through: letters go over a new one within seconds."""
    way.arrive(1)
    way.relay.spoil = lambda _: b""
    way.arrive(len(way.letters) + 2)
    assert way.relay.connections == 2


def test_a_connection_with_a_spoilt_header_is_replaced(way: Way) -> None:
    """HTTP/2 sends the name of a header once and refers to it from then on: one flipped bit refuses every letter."""
    way.relay.spoil = lambda data: data.replace(b"ckptd-session", b"ckptd-sessiom")
    way.arrive(2)
    assert way.relay.connections == 2
