"""Runs `examples/train_gpt.py` as a user would, with a daemon of its own, and reads what it logged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from tests.cluster import SHM, until

from ckptd.ckpt.client import Client
from ckptd.ckpt.errors import CkptdError

TINY = ("--layers=1", "--width=32", "--heads=2", "--context=32", "--batch=2", "--text-bytes=200000")
SLOWER = ("--layers=2", "--width=96", "--heads=2", "--context=64", "--batch=8", "--text-bytes=200000")
"""Steps of some 20 ms: time enough for other processes to come and go during a short training."""


class Training:
    """One job in temporary directories. Leaving the block ends its trainer and its daemon and removes every file."""

    def __init__(self, steps: int, *, ranks: int = 1, model: tuple[str, ...] = TINY, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ckptd-"))
        self.segments = Path(tempfile.mkdtemp(prefix="ckptd-test-", dir=SHM))
        self.run_dir, self.storage = self.folder / "run", self.folder / "storage"
        self._steps, self._ranks, self._model = steps, ranks, model
        own = {"JOB": "t", "RUN_DIR": str(self.run_dir), "SEGMENT_DIR": str(self.segments), "NICE": "0", **settings}
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCH"))}
        self.environment = clean | {f"CKPTD_{name}": value for name, value in own.items()}
        self._lives = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Training:  # noqa: PYI034 - `Self` needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for log in sorted(self.folder.rglob("*.log")):
                print(f"---- {log.name}\n{log.read_text()[-4000:]}")
        for process in self._processes:
            process.kill()
            process.wait()
        self.kill_daemon()
        shutil.rmtree(self.segments, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the trainer ----------------------------------------------------------------------------------

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the trainer as plain python, or under torchrun with several ranks."""
        self._lives += 1
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._ranks}"]
            if self._ranks > 1
            else []
        )
        command = [sys.executable, *launcher, "-m", "ckptd.examples.train_gpt", f"--steps={self._steps}", *self._model]
        command += [f"--events={self.folder / f'life-{self._lives}'}", *options]
        with (self.folder / f"life-{self._lives}.log").open("w") as log:
            trainer = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
        self._processes.append(trainer)
        return trainer

    def run(self, *options: str) -> str:
        """Train to the end and return the digest of rank 0's parameters and optimizer state."""
        trainer = self.start(*options)
        assert trainer.wait(100) == 0
        return str(self.events("done")[-1]["digest"])

    def run_until(self, step: int) -> None:
        """Train until a step is captured, then SIGKILL the trainer."""
        trainer = self.start()
        self.wait_captured(step)
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()

    def wait_step(self, step: int) -> None:
        until(lambda: any(e["step"] >= step for e in self.events("step")), f"step {step}", 60.0)

    def wait_captured(self, step: int) -> None:
        """Wait until the daemon holds a restorable step from `step` on: training steps say nothing of captures."""

        def held() -> bool:
            newest = self.status().get("captured")
            return newest is not None and newest["step"] >= step

        until(held, f"step {step} captured", 60.0)

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself; empty while it does not answer."""
        try:
            client = Client(self.run_dir, "t")
        except CkptdError:
            return {}
        try:
            return client.document("Status")
        except CkptdError:
            return {}
        finally:
            client.close()

    def events(self, kind: str, rank: int = 0) -> list[dict[str, Any]]:
        """What the current life logged."""
        path = self.folder / f"life-{self._lives}.rank-{rank}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry for entry in entries if entry["event"] == kind]

    def losses(self) -> dict[int, str]:
        """Step -> exact loss of rank 0 in the current life."""
        return {entry["step"]: entry["loss"] for entry in self.events("step")}

    # ---- the daemon -----------------------------------------------------------------------------------

    def daemon_pid(self) -> int | None:
        """The pid that the daemon left in its lock, if it lives."""
        path = self.segments / "lock"
        text = path.read_text() if path.exists() else ""
        pid = int(text) if text.isdigit() else None
        try:
            alive = pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            alive = False
        return pid if alive else None

    def start_daemon(self) -> None:
        """Start a daemon by hand, as after a crash."""
        command = [sys.executable, "-m", "ckptd.daemon.cli", "serve"]
        with (self.folder / "serve.log").open("w") as log:
            self._processes.append(subprocess.Popen(command, env=self.environment, stderr=log))
        until(lambda: self.status().get("ready", False), "the daemon answers")

    def kill_daemon(self) -> None:
        pid = self.daemon_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            until(lambda: self.daemon_pid() is None, "the daemon's end")

    def ckptd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, as a user in the same environment would call it."""
        command = [sys.executable, "-m", "ckptd.daemon.cli", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
