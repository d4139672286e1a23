"""From `kill -9` of a rank to the next step on every rank: `ckptd run`, cold and warm, beside torchrun in the same run.

    python -m benchmarks.relaunch [--ranks 2] [--repeat 5] [--report FILE.json]

One machine; each launcher trains the small model of `ckptd.examples.train_gpt`, a snapshot a step, and loses one rank after
the other, the launchers taking turns. The time ends with the last rank's first step that is recorded after the fault, by
the trainers' own clocks. torchrun has TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: torch 2.13's restarts with gloo need it.
Expected: below 1 s with warm workers; what cold ones take is torch's imports.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import add_report, measured, write
from ckptd.daemon.demo.processes import MARK, sweep

RUN = [sys.executable, "-m", "ckptd.daemon.cli", "run"]
LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=100"],
    "cold": [*RUN, "--max-restarts=100"],
    "warm": [*RUN, "--max-restarts=100", "--warm-workers"],
}
MODEL = ["--layers=2", "--width=64", "--steps=1000000", "--pace=0.05"]
LIMIT_S = 120.0
SETTLE_S = 2.0
"""Of steps between two faults, so that each strikes a job that trains."""


@dataclass
class Job:
    """A training under one launcher."""

    name: str
    folder: Path
    memory: Path
    ranks: int
    mark: str
    process: subprocess.Popen[bytes] | None = None
    seen: set[int] = field(default_factory=set)

    def start(self) -> None:
        """Start it and wait until every rank trains."""
        self.folder.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCHELASTIC_"))}
        environment = kept | {
            MARK: self.mark, "CKPTD_JOB": self.name, "CKPTD_RUN_DIR": str(self.folder / "run"), "CKPTD_DOMAIN": "none",
            "CKPTD_SEGMENT_DIR": str(self.memory / self.name), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }  # fmt: skip
        command = [*LAUNCHERS[self.name], f"--nproc-per-node={self.ranks}", "-m", "ckptd.examples.train_gpt", *MODEL]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--events={self.folder / 'events'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.training(time.time())

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(40.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        sweep(self.mark)

    def training(self, since: float) -> dict[int, dict[str, Any]]:
        """Wait until every rank has made a step after `since` in a process that is new; the first such of each rank."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            first: dict[int, dict[str, Any]] = {}
            for path in self.folder.glob("events.rank-*.jsonl"):
                lines = path.read_text().splitlines(keepends=True)
                for event in (json.loads(line) for line in lines if line.endswith("\n")):
                    if event["event"] == "step" and event["t"] > since and event["pid"] not in self.seen:
                        first.setdefault(event["rank"], event)
            if len(first) == self.ranks:
                self.seen |= {event["pid"] for event in first.values()}
                return first
            time.sleep(0.05)
        raise SystemExit(f"{self.name}: no step on every rank within {LIMIT_S:.0f} s; see {self.folder / 'log'}")

    def strike(self, rank: int) -> float:
        """SIGKILL a rank; the seconds until all ranks have made a step again."""
        newest: dict[int, int] = {}
        for path in self.folder.glob("events.rank-*.jsonl"):
            event = json.loads(path.read_text().splitlines()[-1])
            newest[event["rank"]] = event["pid"]
        struck = time.time()
        os.kill(newest[rank], signal.SIGKILL)
        return max(float(event["t"]) for event in self.training(struck).values()) - struck


def one(name: str, rank: int, options: argparse.Namespace, folder: Path, memory: Path) -> list[float]:
    """A turn of one launcher: a job that loses two ranks; only one job at a time has the cores."""
    job = Job(name, folder / f"{name}-{rank}-{secrets.token_hex(2)}", memory, options.ranks, secrets.token_hex(8))
    try:
        job.start()
        taken = []
        for victim in range(2):
            time.sleep(SETTLE_S)
            taken.append(job.strike((rank + victim) % options.ranks))
        return taken
    finally:
        job.stop()
        shutil.rmtree(memory / name, ignore_errors=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relaunch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--ranks", type=int, default=2, help="ranks on this machine (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="turns of each launcher, two faults each (default: %(default)s)"
    )
    add_report(parser)
    options = parser.parse_args(argv)
    folder, memory = Path(tempfile.mkdtemp(prefix="ckptd-relaunch-")), Path(tempfile.mkdtemp(dir="/dev/shm"))
    taken: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    try:
        for turn in range(options.repeat):
            for name in LAUNCHERS:
                taken[name] += one(name, turn % options.ranks, options, folder, memory)
    finally:
        shutil.rmtree(memory, ignore_errors=True)
    results = {name: measured("seconds", values) for name, values in taken.items()}
    for name, result in results.items():
        low, high = result["seconds_spread"]
        ratio = results["torchrun"]["seconds"] / result["seconds"]
        print(f"{name:10} {result['seconds']:6.2f} s  ({low:.2f} to {high:.2f})  {ratio:5.1f} times torchrun's speed")
    write(options.report, {"ranks": options.ranks, "repeat": options.repeat, "launchers": results})
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
