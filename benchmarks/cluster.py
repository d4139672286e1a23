"""Daemons on this machine for a benchmark, each a node of its own, and one trainer on each of them.

    with Cluster(4, parity=1, size=256 << 20) as cluster:
        cluster.begin_life()
        at = cluster.commit(cluster.prepare(1))

Leaving the block, by whatever way, ends every process and removes every file. Nothing here is nice to others: the daemons
are what is measured.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ckptd.ckpt import shm
from ckptd.ckpt.client import Client, Slot
from ckptd.ckpt.errors import DaemonUnavailable
from ckptd.ckpt.model import PIECE, Version, pieces_of

JOB, SLOTS, SHM = "bench", 2, Path("/dev/shm")  # noqa: S108 - shared memory is where snapshots are
PATIENCE_S = 120.0
_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")} | {
    "CKPTD_NICE": "0"
}


class NotInTimeError(Exception):
    """Something that was waited for did not happen; the message says what."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A snapshot that is in the slots and not committed yet."""

    version: Version
    slots: dict[int, Slot]


class Cluster:
    """Daemons as processes. Node i holds rank i, whose payload is one image of `size` bytes."""

    def __init__(self, nodes: int, *, parity: int, size: int) -> None:
        self.parity, self._size = parity, size
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ranks: dict[int, Client] = {}
        self._epoch = 0
        self._stamps: dict[int, list[int]] = {}
        """By node: in which step each piece has changed last."""
        self._folder = Path(tempfile.mkdtemp(prefix="ckptd-bench-"))
        self._shm = SHM / f"ckptd-bench-{os.getpid()}-{secrets.token_hex(4)}"
        self._secret = self._folder / "secret"
        shm.private_dir(self._folder)
        self._secret.write_text(secrets.token_hex(32))
        self._secret.chmod(0o600)
        self._image = secrets.token_bytes(1 << 20)
        self.addresses = [_free_address(f"127.91.0.{node + 1}") for node in range(nodes)]

    def __enter__(self) -> Cluster:  # noqa: PYI034 - `Self` needs Python 3.11
        try:
            self.start(*self.nodes)
            self.wait_ready()
        except BaseException as error:
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            for log in sorted(self._folder.glob("log*")):
                print(f"---- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
        self.close()

    def close(self) -> None:
        """End every process and remove every file."""
        for client in self._ranks.values():
            client.close()
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        for folder in (self._folder, self._shm):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def nodes(self) -> range:
        return range(len(self.addresses))

    # ---- daemons --------------------------------------------------------------------------------------

    def start(self, *nodes: int) -> None:
        """Start daemons on what their directories hold."""
        for node in nodes:
            command = [sys.executable, "-m", "ckptd.daemon.cli", "serve", "--job", JOB, "--node", str(node)]
            command += ["--nodes", ",".join(self.addresses), "--parity", str(self.parity), "--slots", str(SLOTS)]
            command += ["--run-dir", str(self.run_dir(node)), "--segment-dir", str(self._shm / f"n{node}")]
            command += ["--secret-file", str(self._secret)]
            with (self._folder / f"log{node}").open("a") as log:
                self.processes[node] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stderr=log, cwd=self._folder, env=_ENVIRONMENT
                )

    def wait_ready(self) -> None:
        """Wait until every daemon has read its segments and heard a collector."""
        for node in self.nodes:
            self.until(partial(self._is_ready, node), f"daemon {node} ready")

    def lose(self, *nodes: int) -> None:
        """Lose nodes: their daemons by SIGKILL, and their memory."""
        for node in nodes:
            self.processes[node].send_signal(signal.SIGKILL)
        for node in nodes:
            self.processes[node].wait()
            if node in self._ranks:
                self._ranks.pop(node).close()
            shutil.rmtree(self._shm / f"n{node}")
            shutil.rmtree(self.run_dir(node))

    def cpu_s(self) -> dict[int, float]:
        """The CPU seconds that each daemon has used, user and system."""
        found = {}
        for node, process in self.processes.items():
            times = psutil.Process(process.pid).cpu_times()
            found[node] = times.user + times.system
        return found

    def anonymous_bytes(self) -> dict[int, int]:
        """The memory of each daemon that is no file's: neither slots nor parities are among it."""
        found = {}
        for node, process in self.processes.items():
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            (kib,) = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
            found[node] = int(kib) << 10
        return found

    def events(self, node: int, event: str) -> list[dict[str, Any]]:
        """The entries of that kind in a node's event record."""
        path = self.run_dir(node) / "events.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [entry for entry in entries if entry["event"] == event]

    def status(self, node: int) -> dict[str, Any]:
        """What `ckptd status` prints."""
        client = Client(self.run_dir(node), JOB)
        try:
            return client.document("Status")
        finally:
            client.close()

    def tolerates(self, losses: int) -> bool:
        """Whether the first node's daemon counts so many losses as tolerated."""
        return bool(self.status(0)["losses_tolerated"] == losses)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Poll until the condition holds. Raises NotInTimeError when it takes too long or a daemon has ended."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise NotInTimeError(f"{what}: not within {timeout_s:.0f} s")
            ended = [node for node, process in self.processes.items() if process.poll() is not None]
            if ended:
                raise NotInTimeError(f"{what}: the daemons of nodes {ended} have ended")
            time.sleep(0.02)

    # ---- trainers -------------------------------------------------------------------------------------

    def begin_life(self) -> None:
        """What trainers do at their start: attach, let rank 0 decide, join, have their slots made."""
        for node in self.nodes:
            self._attach(node)
        self._epoch = self._ranks[0].decide(world=len(self.nodes)).epoch
        for client in self._ranks.values():
            client.join(self._epoch)
            client.reserve(self._size)

    def prepare(self, step: int, changed: Callable[[int], Sequence[int]] | None = None) -> Filled:
        """Fill a slot on every node. The pieces `changed(node)` differ from the last snapshot's; all do where it is None."""
        version = Version(self._epoch, step)
        slots = {}
        for node, client in self._ranks.items():
            slot = client.begin(version, self._size)
            if slot is None:
                raise NotInTimeError(f"node {node}: no slot is free for {version}")
            with memoryview(shm.map_file(slot.path, slot.size, write=True)) as view:
                shm.touch(view)
                for start in range(0, slot.size, len(self._image)):
                    part = view[start : start + len(self._image)]
                    part[:] = self._image[: len(part)]
                stamps = self._stamps.setdefault(node, [step] * pieces_of(slot.size))
                for piece in range(len(stamps)) if changed is None else changed(node):
                    stamps[piece] = step
                for piece, stamp in enumerate(stamps):
                    view[piece * PIECE : piece * PIECE + 8] = (node << 32 | stamp).to_bytes(8, "little")
            slots[node] = slot
        return Filled(version, slots)

    def commit(self, filled: Filled) -> float:
        """Commit all slots, one right after the other; return when the last one was answered, as event records say it."""
        for node, client in self._ranks.items():
            client.commit(filled.slots[node], filled.version)
        return time.time()

    def _attach(self, node: int) -> Client:
        client = self._ranks[node] = Client(self.run_dir(node), JOB)
        client.attach(rank=node, world=len(self.nodes), local_world=1)
        return client

    def _is_ready(self, node: int) -> bool:
        try:
            return bool(self.status(node)["ready"])
        except DaemonUnavailable:
            return False

    def run_dir(self, node: int) -> Path:
        return self._folder / f"n{node}"


def _free_address(host: str) -> str:
    """host:port with a port that is free now: a daemon's port must be known before it starts."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
