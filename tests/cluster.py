"""Real daemons on this machine, each a node of its own: a run directory, a segment directory and a loopback address.

    with Cluster(4, parity=1) as cluster:
        cluster.begin_life()
        version = cluster.capture(1)
        cluster.lose(2)

Every wait is bounded, and leaving the block ends every process and removes every file, whatever happened inside.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from ckptd.ckpt.client import Client, Decision, Slot
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import DaemonUnavailable
from ckptd.ckpt.model import Version
from ckptd.ckpt.shm import private_dir
from ckptd.daemon.certs import make
from ckptd.daemon.driver import Driver
from ckptd.daemon.main import _assemble
from ckptd.daemon.record import EventRecord
from ckptd.daemon.segments import Segments
from tests.payload import JOB, bytes_of

T = TypeVar("T")
SHM = Path("/dev/shm")
_counter = itertools.count(1)


def until(condition: Callable[[], T | None], what: str, timeout_s: float = 30.0) -> T:
    """Poll until `condition()` is truthy and return it: the only wait of the tests. Fails when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s, the last answer was {value!r}"
        time.sleep(0.02)


def fill(slot: Slot, data: bytes) -> None:
    """Write an image into its slot, as a trainer does."""
    with slot.path.open("r+b", buffering=0) as file:
        assert file.write(data) == len(data)


class Cluster:
    """Daemons as processes. Rank r lives on node `placement[r]` (default: one rank a node) and has a client here."""

    def __init__(
        self, nodes: int, *, parity: int, placement: Sequence[int] | None = None, persist_every: int = 0, slots: int = 3,
        encrypted: bool = False, settings: Mapping[str, str] | None = None, storage: str = "",
    ) -> None:  # fmt: skip
        """`storage`: the URL of an object store, instead of a directory of this cluster's."""
        # Not nice: these daemons are what is tested, and the machine may be busy with other things.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")}
        self._environment = (
            inherited | {"CKPTD_NICE": "0"} | {f"CKPTD_{name}": value for name, value in (settings or {}).items()}
        )
        self.parity, self._persist_every, self._slots = parity, persist_every, slots
        self.placement = list(range(nodes)) if placement is None else list(placement)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ranks: dict[int, Client] = {}
        self.epoch = 0
        self.launcher = ["-m", "ckptd.daemon.cli"]
        """What runs the daemons; another module may wrap what they do."""
        self._clients: list[Client] = []
        self._folder = Path(tempfile.mkdtemp(prefix="ckptd-"))
        self._shm = SHM / f"ckptd-test-{os.getpid()}-{secrets.token_hex(4)}"
        self._secret = self._folder / "secret"
        self._secret.write_text(secrets.token_hex(32))
        self._secret.chmod(0o600)
        self.storage = self._folder / "storage"
        self._root = storage or str(self.storage)
        network = next(_counter)
        self.addresses = [
            free_address(f"127.{77 + network // 200}.{network % 200}.{node + 1}") for node in range(nodes)
        ]
        self._tls_dir = self._folder / "certs" if encrypted else None
        if self._tls_dir:
            make(self._tls_dir, self.addresses, now=datetime.now(timezone.utc), days=100)

    def __enter__(self) -> Cluster:  # noqa: PYI034 - `Self` needs Python 3.11
        try:
            for node in range(len(self.addresses)):
                self.start(node)
            for node in range(len(self.addresses)):
                self.wait_ready(node)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for log in sorted(self._folder.glob("log*")):
                print(f"---- {log.name}\n{log.read_text()[-4000:]}")
        self.close()

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
        for folder in (self._folder, self._shm):
            shutil.rmtree(folder, ignore_errors=True)

    # ---- processes ----------------------------------------------------------------------------------

    def start(self, node: int, **settings: str) -> None:
        """Start the node's daemon on what its directories hold, with settings of its own."""
        command = [sys.executable, *self.launcher, "serve", "--job", JOB, "--node", str(node), "-v"]
        command += ["--nodes", ",".join(self.addresses), "--parity", str(self.parity), "--slots", str(self._slots)]
        command += ["--run-dir", str(self.run_dir(node)), "--segment-dir", str(self.segments(node))]
        command += ["--storage", self._root, "--persist-every", str(self._persist_every)]
        command += ["--secret-file", str(self._secret)]
        command += ["--tls-dir", str(self._tls_dir)] if self._tls_dir else []
        own = {f"CKPTD_{name}": value for name, value in settings.items()}
        with (self._folder / f"log{node}").open("a") as log:
            self.processes[node] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, cwd=self._folder, env=self._environment | own
            )

    def wait_ready(self, node: int) -> None:
        """Wait until the daemon has read its segments and heard a collector."""

        def ready() -> bool:
            assert self.processes[node].poll() is None, f"daemon {node} ended: {self.log(node)}"
            try:
                client = Client(self.run_dir(node), JOB, timeout_s=10.0)
            except DaemonUnavailable:
                return False
            try:
                return bool(client.document("Status")["ready"])
            except DaemonUnavailable:
                return False
            finally:
                client.close()

        until(ready, f"daemon {node} ready")

    def kill(self, *nodes: int) -> None:
        """SIGKILL daemons; what is in shared memory stays."""
        for node in nodes:
            self.processes[node].send_signal(signal.SIGKILL)
        for node in nodes:
            self.processes[node].wait()

    def restart(self, *nodes: int) -> None:
        """Start killed daemons again, all at once, and wait for them."""
        for node in nodes:
            self.start(node)
        for node in nodes:
            self.wait_ready(node)

    def lose(self, *nodes: int) -> None:
        """Lose whole nodes: their daemons and their memory."""
        self.kill(*nodes)
        for node in nodes:
            shutil.rmtree(self.segments(node))
            shutil.rmtree(self.run_dir(node))

    # ---- places -------------------------------------------------------------------------------------

    def run_dir(self, node: int) -> Path:
        return self._folder / f"n{node}"

    def segments(self, node: int) -> Path:
        return self._shm / f"n{node}"

    def slot_file(self, node: int, version: Version, rank: int) -> Path:
        """The file in which a node holds an image, by its record."""
        for path in self.segments(node).glob(f"rank-{rank:05d}.slot-*.json"):
            record = json.loads(path.read_text())
            if (record["epoch"], record["step"]) == (version.epoch, version.step):
                return self.segments(node) / str(record["file"])
        raise AssertionError(f"node {node} has no record of rank {rank}, {version}")

    def parity_files(self, node: int, version: Version) -> list[Path]:
        """The files of the parities that a node keeps of a version, by their records."""
        records = self.segments(node).glob(f"parity-*.e{version.epoch}.s{version.step}.*.json")
        return [self.segments(node) / str(json.loads(path.read_text())["file"]) for path in sorted(records)]

    def log(self, node: int) -> str:
        return (self._folder / f"log{node}").read_text()

    def events(self, node: int, event: str) -> list[dict[str, Any]]:
        """The entries of that kind in a node's event record."""
        path = self.run_dir(node) / "events.jsonl"
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [entry for entry in entries if entry["event"] == event]

    # ---- what ranks do ------------------------------------------------------------------------------

    @property
    def world(self) -> int:
        return len(self.placement)

    def client(self, node: int) -> Client:
        """A new client of a node's daemon; closed with the cluster."""
        client = Client(self.run_dir(node), JOB)
        self._clients.append(client)
        return client

    def attach(self, rank: int) -> Client:
        """A client that is a rank on its node."""
        node = self.placement[rank]
        client = self.ranks[rank] = self.client(node)
        client.attach(rank=rank, world=self.world, local_world=self.placement.count(node))
        return client

    def begin_life(self, *, fresh: bool = False) -> Decision:
        """What trainers do at their start: attach, let rank 0 decide, join."""
        for rank in range(self.world):
            self.attach(rank)
        decision = self.ranks[0].decide(world=self.world, fresh=fresh)
        for client in self.ranks.values():
            client.join(decision.epoch)
        self.epoch = decision.epoch
        return decision

    def capture(self, step: int, *, level: str = "sealed", size: int | None = None) -> Version:
        """Capture `bytes_of` the step on every rank and wait until it has reached `level` everywhere."""
        version = Version(self.epoch, step)
        for rank in self.ranks:
            self.capture_one(rank, version, size=size)
        for rank, client in self.ranks.items():
            reached = client.wait(version, level, 30.0)
            assert reached == level or reached == "persisted", f"rank {rank}: {version} is only {reached}"
        return version

    def capture_one(self, rank: int, version: Version, *, size: int | None = None) -> None:
        """One rank's part of `capture`."""
        data = bytes_of(version, rank, size)
        slot = self.ranks[rank].begin(version, len(data))
        assert slot is not None, f"rank {rank}: no slot is free for {version}"
        fill(slot, data)
        self.ranks[rank].commit(slot, version)

    # ---- what came of it ----------------------------------------------------------------------------

    def document(self, node: int, method: str) -> dict[str, Any]:
        """What the command line would print."""
        client = Client(self.run_dir(node), JOB)
        try:
            return client.document(method)
        finally:
            client.close()

    def gather(self, node: int, version: Version, *, size: int | None = None) -> list[str]:
        """Gather a version on a node, check every byte, and return where each rank's image came from."""
        client = self.client(node)
        found = client.gather(version)
        assert [item.rank for item in found] == list(range(self.world))
        for item in found:
            assert item.path.read_bytes() == bytes_of(version, item.rank, size), f"rank {item.rank} of {version}"
        client.release(version)
        return [item.source for item in found]

    def wait_lost(self, *nodes: int) -> None:
        """Wait until a living node knows that these are lost."""
        witness = next(n for n, process in self.processes.items() if process.poll() is None)

        def known() -> bool:
            states = {row["node"]: row["state"] for row in self.document(witness, "Status")["nodes"]}
            return all(states[node] == "lost" for node in nodes)

        until(known, f"nodes {nodes} noticed as lost")

    def wait_rebuilt(self, node: int, version: Version) -> None:
        """Wait until a node holds its whole payload of a version."""

        def whole() -> bool:
            state = self.document(node, "Recover")
            named = {"epoch": version.epoch, "step": version.step}
            return bool(state["ok"]) and state["restorable"] == named

        until(whole, f"node {node} rebuilt")


def free_address(host: str) -> str:
    """host:port with a port that is free now: a daemon's port must be known before it starts."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


@contextlib.contextmanager
def shm_dir() -> Iterator[Path]:
    """A folder on the tmpfs that is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="ckptd-test-", dir=SHM))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def daemon_here(config: Config, *, clean: bool = True) -> Iterator[Driver]:
    """A daemon's parts in threads of this process: for tests of its edges that need not lose it."""
    stopping = threading.Event()
    private_dir(config.run_dir)
    with contextlib.ExitStack() as parts:
        segments = Segments(config.segment_dir, config.memory_bytes)
        parts.callback(segments.close, clean=clean)
        record = EventRecord(config.run_dir / "events.jsonl", config.node)
        parts.callback(record.close)
        driver = _assemble(config, segments, record, parts)
        thread = threading.Thread(target=driver.run, args=(stopping.is_set,), name="driver")
        thread.start()
        parts.callback(thread.join)
        parts.callback(driver._inbox.put, stopping.set)  # it wakes up at once
        yield driver
