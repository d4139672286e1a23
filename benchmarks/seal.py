"""What encrypting the data plane costs: the same bytes plain, sealed, and through the ssl module, in turns.

    python -m benchmarks.seal [--mib SIZE] [--repeat N] [--report FILE.json]

Two processes on one connection over 127.0.0.1: one sends an image from memory in ranges of 16 MiB, the other receives
it into memory that was touched before. GB/s is by the receiver's clock, from a first byte on; CPU-s/GB is what both
processes used, user and system together. TLS is 1.3 with AES-256-GCM.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import socket
import ssl
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from benchmarks.report import add_report, machine, measured, write
from ckptd.ckpt import certs
from ckptd.ckpt.config import Tls
from ckptd.ckpt.model import PIECE
from ckptd.daemon.certs import make
from ckptd.daemon.channel import PLAIN, PlainChannel, Session
from ckptd.daemon.sealed import SEALED

WAYS = ("plain", "sealed", "ssl")
RANGE = 64 * PIECE


class Stream(Protocol):
    """What is measured of a channel."""

    def send(self, *buffers: memoryview | bytes) -> None: ...
    def receive_into(self, view: memoryview) -> None: ...
    def close(self) -> None: ...


class TlsStream:
    """The ssl module, called the way a channel calls a socket."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self._connection = connection

    def send(self, *buffers: memoryview | bytes) -> None:
        for buffer in buffers:
            self._connection.sendall(buffer)

    def receive_into(self, view: memoryview) -> None:
        while view:
            view = view[self._connection.recv_into(view) :]

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Taken:
    """One transfer: seconds of the receiver's clock, CPU seconds of both ends."""

    wall: float
    cpu: float


def session(role: Any) -> Session:
    return Session(role, "the other end", 0, "bench", b"s" * 32, b"c" * 32, b"a" * 32)


def opened(way: str, role: str, connection: socket.socket, tls: Tls) -> Stream:
    """This end of the connection, ready to send or receive."""
    if way != "ssl":
        plain = PlainChannel(connection, way, send_s=60.0, receive_s=60.0)
        return {"plain": PLAIN, "sealed": SEALED}[way].wrap(plain, session(role))
    server = role == "server"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=tls.ca.decode())
    if server:
        certificate, key = certs.file_names(0)
        context.load_cert_chain(tls.directory / certificate, tls.directory / key)
    name = None if server else "127.0.0.1"
    secured = context.wrap_socket(connection, server_side=server, server_hostname=name)
    cipher = secured.cipher()
    assert cipher is not None
    assert cipher[0] == "TLS_AES_256_GCM_SHA384", cipher
    return TlsStream(secured)


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def sender(port: int, size: int, tls: Tls, orders: Connection) -> None:
    """The other process: for each way that it is told, connect, send the image, and say what CPU that took."""
    image = memoryview(bytearray(b"\x5a" * size))
    while way := orders.recv():
        channel = opened(way, "server", socket.create_connection(("127.0.0.1", port)), tls)
        channel.send(b"!")
        started = cpu()
        for start in range(0, size, RANGE):
            channel.send(image[start : start + RANGE])
        orders.send(cpu() - started)
        channel.close()


def transfer(way: str, listener: socket.socket, into: memoryview, tls: Tls, orders: Connection) -> Taken:
    orders.send(way)
    channel = opened(way, "reader", listener.accept()[0], tls)
    channel.receive_into(memoryview(bytearray(1)))
    started, used = time.perf_counter(), cpu()
    for start in range(0, len(into), RANGE):
        channel.receive_into(into[start : start + RANGE])
    taken = Taken(time.perf_counter() - started, cpu() - used + orders.recv())
    channel.close()
    return taken


def measure(size: int, repeat: int, tls: Tls) -> dict[str, list[Taken]]:
    """Every way, `repeat` times in turns, after one that does not count."""
    results: dict[str, list[Taken]] = {way: [] for way in WAYS}
    into = memoryview(bytearray(b"\1" * size))
    ours, theirs = multiprocessing.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (listener.getsockname()[1], size, tls, theirs)
        process = multiprocessing.get_context("spawn").Process(target=sender, args=arguments)
        process.start()
        try:
            for turn in range(repeat + 1):
                for way in WAYS:
                    taken = transfer(way, listener, into, tls, ours)
                    assert into[-1] == 0x5A
                    into[-1] = 0
                    if turn:
                        results[way].append(taken)
            ours.send("")
        finally:
            process.join(10.0)
            process.kill()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256, help="MiB of one transfer (default 256)")
    parser.add_argument("--repeat", type=int, default=7, help="transfers of each way (default 7)")
    add_report(parser)
    options = parser.parse_args()
    size, now = options.mib << 20, datetime.now(timezone.utc)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "certs"
        make(directory, ["127.0.0.1:1"], now=now, days=1)
        results = measure(size, options.repeat, certs.load(directory, 0, "127.0.0.1:1", now))
    print(f"{machine()}; {options.mib} MiB, median of {options.repeat}")
    print("          GB/s (lowest to highest)   CPU-s/GB   GB/s of plain")
    rows = {}
    plain = statistics.median(size / 1e9 / taken.wall for taken in results["plain"])
    for way, found in results.items():
        speeds, costs = ([size / 1e9 / t.wall for t in found], [t.cpu * 1e9 / size for t in found])
        speed, cost = statistics.median(speeds), statistics.median(costs)
        rows[way] = {**measured("gb_per_s", speeds), **measured("cpu_s_per_gb", costs), "of_plain": speed / plain}
        print(
            f"{way:8} {speed:5.2f} ({min(speeds):.2f} to {max(speeds):.2f})         {cost:6.2f}       {speed / plain:6.0%}"
        )
    write(options.report, {"mib": options.mib, "repeat": options.repeat, "results": rows})


if __name__ == "__main__":
    main()
