"""Asks torch's handlers inside a trainer over their unix socket: plain HTTP, bounded in time and size, nothing unpickled.

The handlers are native: they answer while the trainer computes, waits in a collective or holds the interpreter's lock; only
`dump_traceback` waits for that. A stopped process does not answer.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

from ckptd.ckpt.errors import PeerError

STATUS = "fr_trace_json"
STATUS_NCCL = "dump_nccl_trace_json?includecollectives=false&includestacktraces=false"
STACKS = "dump_traceback"
ANSWER_MAX = 4 * 1024 * 1024
_HEAD_MAX = 16 * 1024
_CHUNK = 256 * 1024


class Silent(PeerError):
    """Nobody answers at the socket, or not in time."""


def ask(path: Path, handler: str, timeout_s: float) -> bytes:
    """What the handler answers, within `timeout_s` in all.

    Raises Silent when nothing comes, another PeerError for an answer that is none: an error's status, more than 4 MiB, or
    not HTTP.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            request = (
                f"POST /handler/{handler} HTTP/1.1\r\nHost: ckptd\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            connection.sendall(request.encode())
            return _answer(connection, deadline, f"{path.name} {handler.partition('?')[0]}")
        except OSError as error:
            raise Silent(f"{path.name}: {error.strerror or 'no answer in time'}") from error


def _answer(connection: socket.socket, deadline: float, what: str) -> bytes:
    received = bytearray()
    end = -1
    while end < 0:
        _more(connection, deadline, received, what)
        end = received.find(b"\r\n\r\n")
        if end < 0 and len(received) > _HEAD_MAX:
            raise PeerError(f"{what}: no answer in HTTP")
    lines = bytes(received[:end]).split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or words[1] != b"200":
        raise PeerError(f"{what}: found {bytes(lines[0][:60])!r}, expected status 200")
    length = next((line[15:].strip() for line in lines if line.lower().startswith(b"content-length:")), b"")
    if not (length.isdigit() and len(length) < 10 and int(length) <= ANSWER_MAX):
        raise PeerError(f"{what}: found a length of {length[:20]!r}, expected {ANSWER_MAX} bytes at most")
    total = end + 4 + int(length)
    while len(received) < total:
        _more(connection, deadline, received, what)
    return bytes(received[end + 4 : total])


def _more(connection: socket.socket, deadline: float, received: bytearray, what: str) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Silent(f"{what}: no whole answer in time")
    connection.settimeout(left)
    data = connection.recv(_CHUNK)
    if not data:
        raise Silent(f"{what}: the answer broke off after {len(received)} bytes")
    received += data
