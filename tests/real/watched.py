"""Ranks of a real training over gloo beside a cluster's daemons, and what the collector's daemon records about them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.cluster import Cluster, until
from tests.payload import JOB

from ckptd.ckpt.client import Client
from ckptd.daemon.watch.verdicts import Syndrome

ROOT = Path(__file__).parents[2]


class Watched:
    """One rank on each node of a cluster. Leaving the block ends the ranks."""

    def __init__(self, cluster: Cluster, world: int, steps: int, fault: str = "") -> None:
        self._cluster = cluster
        self._folder = tempfile.TemporaryDirectory(prefix="ckptd-")
        store = Path(self._folder.name) / "store"
        self.ranks = []
        for rank in range(world):
            clean = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCH"))}
            own = {"CKPTD_JOB": JOB, "CKPTD_RUN_DIR": str(cluster.run_dir(rank)), "GLOO_SOCKET_IFNAME": "lo"}
            paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
            command = [sys.executable, "-m", "tests.real.watched_worker", str(rank), str(world), str(store), str(steps)]
            with (Path(self._folder.name) / f"rank{rank}").open("w") as log:
                self.ranks.append(
                    subprocess.Popen(
                        [*command, fault] if fault else command,
                        env={**clean, **own, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                        cwd=ROOT,
                        stdout=log,
                        stderr=log,
                    )
                )

    def __enter__(self) -> Watched:  # noqa: PYI034 - `Self` needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for rank in self.ranks:
            rank.send_signal(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()
        if kind is not None:
            for log in sorted(Path(self._folder.name).glob("rank*")):
                print(f"---- {log.name}\n{log.read_text()[-3000:]}")
            print(self.status())
        self._folder.cleanup()

    def incidents(self, number: int = 0) -> list[dict[str, Any]]:
        """What the collector's daemon, node 0's, has recorded."""
        client = Client(self._cluster.run_dir(0), JOB)
        try:
            found: list[dict[str, Any]] = client.document("Incidents", id=number)["incidents"]
            return found
        finally:
            client.close()

    def status(self) -> dict[str, Any]:
        """What the collector's daemon says of the watching."""
        watch: dict[str, Any] = self._cluster.document(0, "Status")["watch"]
        return watch

    def first_incident(self, timeout_s: float) -> dict[str, Any]:
        """Wait for an incident and return its record. That a busy machine makes all ranks slow alike is not the fault."""

        def named() -> list[dict[str, Any]]:
            return [incident for incident in self.incidents() if incident["verdict"]["class"] != Syndrome.NOBODY.value]

        until(named, "an incident", timeout_s)
        return named()[0]

    def shown(self, run_dir: Path) -> str:
        """What `ckptd incidents 1` prints."""
        command = [sys.executable, "-m", "ckptd.daemon.cli", "incidents", "1", "--job", JOB, "--run-dir", str(run_dir)]
        return subprocess.run(command, capture_output=True, check=True, timeout=60, text=True).stdout
