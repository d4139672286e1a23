"""The bare loop that transfers are compared with: one process sends a file's bytes by `sendall`, another receives them.

    python -m benchmarks.bare --hold FILE

The process that holds a file says where it listens in its first line, and answers every line on its stdin by the CPU
seconds that it has used; it ends with its stdin. Nothing is checked and nothing is framed: this is what the machine's
loopback gives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ckptd.ckpt import shm

HOST = "127.0.0.1"


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# ---- the process that holds the bytes ---------------------------------------------------------------


def serve(connection: socket.socket, path: Path, view: memoryview) -> None:
    """Send what is asked for: a word of 8 bytes says how, two numbers say from where to where."""
    with connection, path.open("rb") as file:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while asked := connection.recv(24, socket.MSG_WAITALL):
            way, start, end = asked[:8].strip(), *(int.from_bytes(asked[i : i + 8], "little") for i in (8, 16))
            if way == b"bare":
                connection.sendall(view[start:end])
            while way == b"sendfile" and start < end:
                start += os.sendfile(connection.fileno(), file.fileno(), start, end - start)


def listen(path: Path, view: memoryview) -> int:
    """Serve a file and its mapping from now on, one thread a connection; return the port."""
    listener = socket.create_server((HOST, 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0], path, view), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def answer_cpu() -> None:
    """Answer each line on stdin by the CPU seconds so far, until stdin ends."""
    for _ in sys.stdin:
        print(cpu_seconds(), flush=True)


# ---- the process that receives ----------------------------------------------------------------------


class Holder:
    """The process that holds the bytes, seen from the one that receives them."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said: dict[str, Any] = json.loads(self._line())
        """What its first line says: `bare`, the port of the bare loop, and whatever else it serves."""

    def connect(self) -> socket.socket:
        """A connection for `receive`."""
        return socket.create_connection((HOST, self.said["bare"]))

    def cpu(self) -> float:
        """The CPU seconds that it has used."""
        assert self._process.stdin is not None
        self._process.stdin.write("cpu\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        """End it."""
        try:
            self._process.communicate(timeout=60)
        finally:
            self._process.kill()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def ask(connection: socket.socket, way: str, start: int, end: int) -> None:
    """Have the bytes from `start` to `end` sent: by `bare` sendall, or by `sendfile`."""
    connection.sendall(way.encode().ljust(8) + start.to_bytes(8, "little") + end.to_bytes(8, "little"))


def receive(connection: socket.socket, view: memoryview) -> None:
    """Fill the view with what arrives."""
    while view:
        view = view[connection.recv_into(view) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hold", type=Path, required=True, help="the file to send from")
    path = parser.parse_args().hold
    view = memoryview(shm.map_file(path, path.stat().st_size, write=False))
    print(json.dumps({"bare": listen(path, view)}), flush=True)
    answer_cpu()


if __name__ == "__main__":
    main()
