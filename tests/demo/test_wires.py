"""Bad wires over real TCP on loopback: slow is paced, lossy is sent again, cut is silent, and a mended one is as before."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from ckptd.ckpt.errors import CkptdError
from ckptd.daemon.demo import wires

Ends = tuple[socket.socket, socket.socket]
_TCP_INFO_RETRANSMITS = slice(100, 104)


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname(), 10.0)
        other, _ = server.accept()
    with one, other:
        other.settimeout(10.0)
        yield one, other


def carry(ends: Ends, size: int) -> float:
    """Send so many bytes from the first end to the second; how long that took, in seconds. They arrive as they were."""
    sent, got = os.urandom(size), bytearray()
    began = time.monotonic()
    sender = threading.Thread(target=ends[0].sendall, args=(sent,))
    sender.start()
    while len(got) < size:
        got += ends[1].recv(size)
    sender.join()
    assert got == sent
    return time.monotonic() - began


def test_a_slow_wire_is_paced_until_it_is_mended(ends: Ends) -> None:
    carry(ends, 1_000_000)  # a connection's first segments are never paced
    wires.spoil(ends[0], "slow")
    size = wires.SLOW_BYTES_S // 8
    assert carry(ends, size) > 0.07
    wires.spoil(ends[0], None)
    assert min(carry(ends, size) for _ in range(5)) < 0.07


@pytest.mark.slow
def test_a_lossy_wire_loses_and_tcp_sends_it_again(ends: Ends) -> None:
    wires.spoil(ends[1], "lossy")
    carry(ends, 8_000_000)
    info = ends[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    assert int.from_bytes(info[_TCP_INFO_RETRANSMITS], sys.byteorder) > 0


@pytest.mark.slow
def test_nothing_arrives_over_a_cut_wire_until_it_is_mended(ends: Ends) -> None:
    wires.spoil(ends[1], "cut")
    ends[0].sendall(b"held")
    ends[1].settimeout(0.05)
    with pytest.raises(TimeoutError):
        ends[1].recv(4)
    wires.spoil(ends[1], None)
    ends[1].settimeout(10.0)
    assert ends[1].recv(4) == b"held"


def test_two_processes_connections_are_found_by_their_ports(ends: Ends) -> None:
    """Both ends of this one are ours; a process without any to us has none."""
    local, remote = (end.getsockname()[1] for end in ends)
    ports = wires.between(os.getpid(), os.getpid())
    assert {(local, remote), (remote, local)} <= set(ports)
    assert [wire.getsockname()[1] for wire in wires.own({(local, remote)})] == [local]
    assert ends[0].getsockname()[1] == local, "the connection itself is still open"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        with pytest.raises(CkptdError, match="no TCP connection to each other"):
            wires.between(os.getpid(), stranger.pid)
        stranger.communicate(b"\n")
