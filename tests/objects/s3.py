"""A real S3 server on loopback, as a process, and a gate before it that counts requests and spoils those a test names."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

from ckptd.ckpt.model import PIECE

KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback", "AWS_DEFAULT_REGION": "us-east-1"}


class Server:
    """moto's server in a process of its own; `kill` takes everything that it holds with it. Parts may be one piece small."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        environment = os.environ | {"S3_UPLOAD_PART_MIN_SIZE": str(PIECE), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        assert self.process.stderr is not None
        lines = iter(self.process.stderr.readline, b"")
        found = next(match for line in lines if (match := re.search(rb"http://127\.0\.0\.1:(\d+)", line)))
        self.port = int(found[1])
        self._drain = threading.Thread(target=lambda: [None for _ in lines], name="drain")
        self._drain.start()

    def make_bucket(self, name: str) -> None:
        urlopen(Request(f"http://127.0.0.1:{self.port}/{name}", method="PUT")).close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._drain.join()
        if self.process.stderr:
            self.process.stderr.close()


HELD, LOST, FLIPPED = 0, 1, 2
CODES = {403: "ExpiredToken", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Fault:
    """What becomes of requests that match: an HTTP status, no answer until the gate is opened (HELD), the answer of the
    server, which has done what it was asked to, lost on its way (LOST), or a bit of it flipped (FLIPPED)."""

    pattern: str
    status: int = 503
    times: int = 1_000_000
    skip: int = 0
    """How many go through before."""
    opened: threading.Event = field(default_factory=threading.Event)
    met: threading.Event = field(default_factory=threading.Event)


class Gate:
    """An HTTP proxy before a server."""

    def __init__(self, server: Server) -> None:
        self.port, self.faults, self.seen = server.port, list[Fault](), list[str]()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"gate": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), name="gate", daemon=True).start()

    def spoil(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Nothing is spoilt any more; who waits is let go without an answer."""
        faults, self.faults = self.faults, []
        for fault in faults:
            fault.opened.set()

    def count(self, pattern: str) -> int:
        """How many such requests came."""
        with self._lock:
            return sum(bool(re.search(pattern, request)) for request in self.seen)

    def fault_of(self, request: str) -> Fault | None:
        with self._lock:
            self.seen.append(request)
            for fault in self.faults:
                if re.search(fault.pattern, request) and fault.times:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    fault.met.set()
                    return fault
            return None

    def close(self) -> None:
        self.heal()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    gate: Gate
    protocol_version = "HTTP/1.1"

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.gate.fault_of(f"{self.command} {self.path}")
        kind = fault.status if fault else None
        if fault is not None and kind == HELD:
            fault.opened.wait(60.0)
            self.close_connection = True
            return
        if kind is not None and kind >= 400:
            self._answer(kind, [], f"<Error><Code>{CODES[kind]}</Code><Message>by the gate</Message></Error>".encode())
            return
        try:
            server = http.client.HTTPConnection("127.0.0.1", self.gate.port, timeout=20.0)
            with contextlib.closing(server):
                server.request(self.command, self.path, body=body, headers=dict(self.headers))
                reply = server.getresponse()
                content = reply.read()
        except OSError:
            self.close_connection = True
            return
        if kind == LOST:
            self.close_connection = True
            return
        if kind == FLIPPED:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._answer(reply.status, reply.getheaders(), content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        given = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if "content-length" not in given:
            self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(OSError):  # who asked may be gone
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server, until the block ends."""
    server = Server()
    try:
        yield server
    finally:
        server.kill()
