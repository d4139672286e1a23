"""The example for plain torchrun, for real: its own scripts, two nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cluster import free_address, shm_dir, until
from tests.elastic.jobs import kill_but_trackers
from tests.examples.scripts import BASH, EXAMPLES, ROOT

from ckptd.ckpt.client import Client
from ckptd.daemon.demo.processes import MARK, sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
NODES, JOB = 2, "plain"
TRAIN = [
    "-m",
    "ckptd.examples.train_gpt",
    "--steps=12",
    "--pace=0.05",
    "--layers=1",
    "--width=16",
    "--text-bytes=200000",
]
WAIT_S = 120.0


class Machine:
    """Runs the scripts, with the commands of this tree in their PATH."""

    def __init__(self, folder: Path, shm: Path) -> None:
        self.folder, self.mark = folder, secrets.token_hex(8)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for name, module in (("ckptd", "ckptd.daemon.cli"), ("torchrun", "torch.distributed.run"), ("python", "")):
            words = f'"{sys.executable}" -m {module}' if module else f'"{sys.executable}"'
            (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (folder / name).chmod(0o755)
        (folder / "secret").write_text(secrets.token_hex(32))
        (folder / "secret").chmod(0o600)
        self.addresses = [free_address(f"127.91.0.{node + 1}") for node in range(NODES)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCHELASTIC_"))}
        self.shared = kept | {
            MARK: self.mark, "PATH": f"{folder}:{kept['PATH']}", "PYTHONPATH": str(ROOT / "src"),
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "RANKS_PER_NODE": "1", "CKPTD_JOB": JOB,
            "CKPTD_NODES": ",".join(self.addresses), "CKPTD_SECRET_FILE": str(folder / "secret"), "CKPTD_NICE": "0",
            "CKPTD_DOMAIN": "none", "CKPTD_STORAGE": str(folder / "storage"), "CKPTD_PERSIST_EVERY": "5",
        }  # fmt: skip
        self.shm = shm

    def start(self, script: str, *arguments: str, node: int = 0, **more: str) -> None:
        own = {"CKPTD_RUN_DIR": str(self.run_dir(node)), "CKPTD_SEGMENT_DIR": str(self.shm / f"n{node}")}
        name = f"{script}-{node}"
        with (self.folder / f"log-{name}").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [BASH, str(EXAMPLES / "torchrun" / f"{script}.sh"), *arguments], env=self.shared | own | more,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def run_dir(self, node: int) -> Path:
        return self.folder / f"n{node}"

    def log(self, name: str) -> str:
        return (self.folder / f"log-{name}").read_text(errors="replace")

    def status(self, node: int) -> dict[str, Any]:
        with contextlib.closing(Client(self.run_dir(node), JOB)) as client:
            return client.document("Status")

    def close(self) -> None:
        kill_but_trackers([process for process in psutil.process_iter() if self._is_ours(process)])
        sweep(self.mark)
        for process in self.processes.values():
            process.wait(10.0)

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get(MARK) == self.mark
        return False


@pytest.fixture
def machine() -> Iterator[Machine]:
    folder = Path(tempfile.mkdtemp(prefix="ckptd-plain-"))
    with shm_dir() as shm:
        made = Machine(folder, shm)
        try:
            yield made
        finally:
            made.close()
            for log in sorted(folder.glob("log-*")):
                print(f"---- {log.name}\n{log.read_text(errors='replace')[-2000:]}")
            shutil.rmtree(folder, ignore_errors=True)


def test_the_scripts_train_on_two_nodes(machine: Machine) -> None:
    """Daemons, store and trainers as the page says; snapshots are sealed over both nodes, and their memory is given back."""
    machine.start("store", RENDEZVOUS="127.91.0.9:0")
    for node in range(NODES):
        machine.start("serve", str(node), node=node)
    store = json.loads(until(lambda: machine.log("store-0").partition("\n")[0], "the store is there", WAIT_S))
    until(lambda: all((machine.run_dir(node) / "ckptd.sock").exists() for node in range(NODES)), "daemons", WAIT_S)
    for node in range(NODES):
        machine.start("train", str(node), *TRAIN, node=node, RENDEZVOUS=f"{store['host']}:{store['port']}")
    codes = [machine.processes[f"train-{node}"].wait(WAIT_S) for node in range(NODES)]
    assert codes == [0] * NODES
    assert "done step=12" in machine.log("train-0") + machine.log("train-1")
    assert machine.status(1)["sealed"]["step"] == 12
    for node in range(NODES):
        machine.processes[f"serve-{node}"].terminate()
        assert machine.processes[f"serve-{node}"].wait(30.0) == 0
    assert list(machine.shm.glob("*/rank-*")) == []


def test_trainers_do_not_start_without_their_daemon(machine: Machine) -> None:
    """One that they started themselves would know nothing of the other nodes."""
    machine.start("train", "0", *TRAIN)
    assert machine.processes["train-0"].wait(10.0) == 1
    assert "start serve.sh 0 first" in machine.log("train-0")
