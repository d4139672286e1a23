"""Letters between daemons over mutual TLS: they arrive, and who comes without, or with other certificates, is told why."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from tests.cluster import free_address, until

from ckptd.ckpt.certs import load
from ckptd.ckpt.config import Config, Tls
from ckptd.ckpt.inventory import Report
from ckptd.ckpt.wire.translate import Letter
from ckptd.daemon import tls as daemon_tls
from ckptd.daemon.certs import make
from ckptd.daemon.peers import Peers, PeerServer

NOW = datetime.now(timezone.utc)
HOSTS = ("127.76.1.1", "127.76.1.2")


@pytest.fixture
def nodes() -> tuple[str, ...]:
    return tuple(free_address(host) for host in HOSTS)


@pytest.fixture
def plain(tmp_path: Path, nodes: tuple[str, ...]) -> Config:
    return Config(job="j", nodes=nodes, run_dir=tmp_path, segment_dir=tmp_path, secret=b"s" * 32)


@pytest.fixture
def sets(tmp_path: Path, nodes: tuple[str, ...]) -> Callable[[str], list[Tls]]:
    """Makes a set of certificates by name; the two nodes' share of it."""

    def made(name: str) -> list[Tls]:
        directory = make(tmp_path / name, nodes, now=NOW, days=1).directory
        return [load(directory, node, address, NOW) for node, address in enumerate(nodes)]

    return made


class Daemon:
    """What one node says and hears."""

    def __init__(self, config: Config) -> None:
        self.heard: list[Letter] = []
        self._node = config.node
        self._server = PeerServer(config, f"boot-{config.node}", self.heard.append)
        self._peers = Peers(config)

    def speak(self) -> None:
        self._peers.send(1 - self._node, Report(node=self._node, boot=f"boot-{self._node}", seq=1))

    def close(self) -> None:
        self._peers.close()
        self._server.close()


@pytest.fixture
def started(plain: Config) -> Iterator[Callable[[Tls | None, Tls | None], list[Daemon]]]:
    """Starts both nodes, each with these certificates, or without any."""
    made: list[Daemon] = []

    def start(first: Tls | None, second: Tls | None) -> list[Daemon]:
        for node, tls in enumerate((first, second)):
            made.append(Daemon(replace(plain, node=node, tls=tls).validate()))
        return made

    yield start
    for daemon in made:
        daemon.close()


Start = Callable[[Tls | None, Tls | None], list[Daemon]]
Sets = Callable[[str], list[Tls]]


def spoken(daemon: Daemon) -> bool:
    daemon.speak()
    return True


def complaints(daemons: list[Daemon], caplog: pytest.LogCaptureFixture, *wanted: str) -> None:
    """Both speak until the log has every wanted sentence; nothing was heard meanwhile."""

    def said() -> bool:
        for daemon in daemons:
            daemon.speak()
        return all(any(text in line for line in caplog.messages) for text in wanted)

    with caplog.at_level(logging.INFO):
        until(said, f"the complaints {wanted}, in the log {caplog.messages}")
    assert not any(daemon.heard for daemon in daemons)


def test_letters_arrive_over_tls(started: Start, sets: Sets) -> None:
    """Two nodes with certificates of one set hear each other."""
    daemons = started(*sets("certs"))
    for daemon in daemons:
        daemon.speak()
    until(lambda: all(daemon.heard for daemon in daemons), "both letters")
    assert daemons[1].heard == [Report(node=0, boot="boot-0", seq=1)]


def test_nothing_of_a_letter_is_seen_on_the_way(plain: Config, sets: Sets) -> None:
    """What goes over the wire is TLS from the first byte, and holds no name of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        config = replace(plain, nodes=(plain.nodes[0], address), tls=sets("certs")[0])
        peers = Peers(config)
        try:
            peers.send(1, Report(node=0, boot="boot-0", seq=1))
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20.0)
                seen = connection.recv(65536)
        finally:
            peers.close()
    assert seen[:2] == b"\x16\x03"
    assert b"ckptd" not in seen


@pytest.mark.parametrize("sealed", [0, 1])
def test_one_with_and_one_without(
    started: Start, sets: Sets, nodes: tuple[str, ...], caplog: pytest.LogCaptureFixture, sealed: int
) -> None:
    """They refuse each other, and each log names the other node and says what to do."""
    tls = sets("certs")
    pair = [tls[node] if node == sealed else None for node in range(2)]
    complaints(
        started(pair[0], pair[1]),
        caplog,
        f"node {1 - sealed} ({nodes[1 - sealed]}): it does not speak TLS and this daemon does; give every node --tls-dir",
        f"node {sealed} ({nodes[sealed]}): it speaks TLS and this daemon does not; give every node --tls-dir, or none",
    )


def test_another_ca(started: Start, sets: Sets, nodes: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """Certificates of two sets: neither takes the other's, and both say so."""
    remedy = "unable to get local issuer certificate; give every node the files of one run of `ckptd certs`"
    complaints(
        started(sets("one")[0], sets("other")[1]),
        caplog,
        *(f"node {node} ({nodes[node]}): its certificate is refused here: {remedy}" for node in range(2)),
    )


def test_a_certificate_of_another_host(
    started: Start, nodes: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A node whose certificate names another host is refused by those that connect to it, and they say so."""
    kept = make(tmp_path / "kept", nodes, now=NOW, days=1, keep_ca_key=True).directory
    good = load(kept, 0, nodes[0], NOW)
    for name in ("node-1.pem", "node-1.key"):
        (kept / name).unlink()
    make(kept, [nodes[0], "127.76.1.9:1"], now=NOW, days=1)
    bad = load(kept, 1, "127.76.1.9:1", NOW)
    daemons = started(good, bad)
    with caplog.at_level(logging.INFO):

        def said() -> bool:
            daemons[0].speak()
            return "IP address mismatch, certificate is not valid for '127.76.1.2'; give every node" in caplog.text

        until(said, "the complaint")
    assert not daemons[1].heard


def test_the_complaint_stays_until_it_is_mended(plain: Config, sets: Sets, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once, not with every letter; when the node comes back with TLS, letters arrive."""
    tls = sets("certs")
    first, second = (Daemon(replace(plain, node=node, tls=tls[node] if node == 0 else None)) for node in range(2))
    try:
        with caplog.at_level(logging.INFO):
            until(lambda: spoken(first) and "does not speak TLS" in caplog.text, "the complaint")
            for _ in range(5):
                first.speak()
            second.close()
            second = Daemon(replace(plain, node=1, tls=tls[1]))
            until(lambda: spoken(first) and second.heard, "a letter after the restart")
        assert len([line for line in caplog.messages if "does not speak TLS" in line]) == 1
    finally:
        first.close()
        second.close()


# ---- looking at what is there -------------------------------------------------------------------


def test_who_does_not_listen_is_no_mismatch(nodes: tuple[str, ...], sets: Sets) -> None:
    """A daemon that is gone, or that accepts and says nothing, is not blamed for its TLS."""
    tls = sets("certs")[0]
    assert daemon_tls.mismatch(nodes[1], tls) == daemon_tls.mismatch(nodes[1], None) == ""


@pytest.mark.slow
def test_who_accepts_and_says_nothing_is_no_mismatch(sets: Sets) -> None:
    """A daemon that hangs costs a second, and is not blamed for its TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        assert daemon_tls.mismatch(address, sets("certs")[0]) == ""


def test_the_same_on_both_sides_is_no_mismatch(started: Start, sets: Sets, nodes: tuple[str, ...]) -> None:
    """Where nothing is wrong nothing is found."""
    tls = sets("certs")
    started(*tls)
    assert daemon_tls.mismatch(nodes[1], tls[0]) == ""


def test_files_that_are_gone_are_no_mismatch(started: Start, sets: Sets, nodes: tuple[str, ...]) -> None:
    """The look needs this node's files once more; without them it has nothing to say."""
    tls = sets("certs")
    started(*tls)
    shutil.rmtree(tls[0].directory)
    assert daemon_tls.mismatch(nodes[1], tls[0]) == ""


def test_a_certificate_that_they_refuse(
    started: Start, nodes: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When only ours is refused, which shows after the handshake alone, that is what is said: here it has expired."""
    kept = make(tmp_path / "kept", nodes[1:], now=NOW - timedelta(hours=40), days=30, keep_ca_key=True).directory
    for kind in ("pem", "key"):  # its node 0 becomes node 1, which leaves room for a node 0 of a shorter life
        (kept / f"node-0.{kind}").rename(kept / f"node-1.{kind}")
    make(kept, nodes, now=NOW - timedelta(hours=30), days=1)
    ours, theirs = load(kept, 0, nodes[0], NOW - timedelta(hours=8)), load(kept, 1, nodes[1], NOW)
    daemons = started(ours, theirs)
    with caplog.at_level(logging.INFO):

        def said() -> bool:
            daemons[0].speak()
            return f"node 1 ({nodes[1]}): it refuses this daemon's certificate; give every" in caplog.text

        until(said, "the complaint")
    assert not daemons[1].heard


def test_a_refusal_with_a_reason(nodes: tuple[str, ...], sets: Sets) -> None:
    """gRPC hangs up without a word; where the other side does give a reason, it is passed on."""
    ours, theirs = sets("one")[0], sets("other")[1]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(cadata=theirs.ca.decode())
    mine = sets("three")
    merged = replace(ours, ca=ours.ca + mine[1].ca)
    context.load_cert_chain(mine[1].directory / "node-1.pem", mine[1].directory / "node-1.key")
    context.verify_mode = ssl.CERT_REQUIRED
    host, _, port = nodes[1].rpartition(":")
    with socket.create_server((host, int(port))) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with contextlib.suppress(ssl.SSLError), connection:
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        found = daemon_tls.mismatch(nodes[1], merged)
        thread.join(20.0)
    assert found.startswith("it refuses this daemon's certificate (tlsv1 alert unknown ca); give every node")
