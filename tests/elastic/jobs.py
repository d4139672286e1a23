"""Real agents and trainers on the daemons of `tests.cluster`: what a user starts on each node, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from tests.cluster import Cluster, until
from tests.payload import JOB
from tests.processes import wait_ended

from ckptd.daemon.demo.processes import MARK, sweep

WORKER = Path(__file__).with_name("worker.py")
RUN = ["-m", "ckptd.daemon.cli", "run"]
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "ckptd"]
START_S = 60.0
"""torch's imports on a busy machine; what is promised is measured from the fault on."""

PLUGIN = "[torchrun.handlers]\nckptd = ckptd.integrations.rendezvous_plugin:getter\n"


class Agents:
    """The agents of a job, by name; `folder` is where its trainers write."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = folder, mark
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.seen: set[int] = set()
        plugin = folder / "ckptd_plugin-0.dist-info"  # as if the package were installed with its entry point
        plugin.mkdir()
        (plugin / "entry_points.txt").write_text(PLUGIN)
        (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: ckptd-plugin\nVersion: 0\n")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCHELASTIC_"))}
        self.environment = kept | {
            MARK: mark,
            "CKPTD_DOMAIN": "none",
            "CKPTD_JOB": JOB,
            "CKPTD_NICE": "0",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONPATH": os.pathsep.join([str(folder), kept.get("PYTHONPATH", "")]),
        }

    def start(
        self, name: str, run_dir: Path, *options: str, command: list[str] = RUN, script: Sequence[str] | None = None,
        **more: str,
    ) -> None:  # fmt: skip
        """Start an agent that finds its daemon at `run_dir`; its trainers run `worker.py`, or another script."""
        trainer = (str(WORKER), str(self.folder)) if script is None else script
        line = [sys.executable, *command, *options, *trainer]
        environment = self.environment | {"CKPTD_RUN_DIR": str(run_dir)} | more
        with (self.folder / f"log-{name}").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def log(self, name: str) -> str:
        return (self.folder / f"log-{name}").read_text(errors="replace")

    def steps(self) -> list[dict[str, Any]]:
        """What all trainers have written."""
        lines = [
            line for path in self.folder.glob("steps-*.jsonl") for line in path.read_text().splitlines(keepends=True)
        ]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def training(self, world: int, since: float) -> dict[int, dict[str, Any]]:
        """Wait until every rank of a world has made a step that began after `since`; the first such of each rank."""

        def found() -> dict[int, dict[str, Any]] | None:
            first: dict[int, dict[str, Any]] = {}
            for step in sorted(self.steps(), key=lambda step: float(step["t"])):
                if step["t"] > since and step["world"] == world:
                    first.setdefault(step["rank"], step)
            return first if len(first) == world else None

        return self._see(until(found, f"{world} ranks training", START_S))

    def restarted(self, world: int) -> dict[int, dict[str, Any]]:
        """Wait until every rank trains in a process that has not been seen before."""

        def found() -> dict[int, dict[str, Any]] | None:
            new = {
                step["rank"]: step for step in self.steps() if step["pid"] not in self.seen and step["world"] == world
            }
            return new if len(new) == world else None

        return self._see(until(found, f"{world} new ranks training", START_S))

    def _see(self, steps: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        self.seen |= {step["pid"] for step in steps.values()}
        return steps

    def family(self, name: str) -> list[psutil.Process]:
        """An agent and all that it started."""
        root = psutil.Process(self.processes[name].pid)
        return [root, *root.children(recursive=True)]

    def kill(self, name: str) -> None:
        """SIGKILL an agent with all its trainers, as a dying machine does."""
        kill_but_trackers(self.family(name))
        self.processes.pop(name).wait()

    def kill_alone(self, name: str) -> None:
        """SIGKILL an agent, and nothing of what it started."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def finish(self) -> dict[str, int]:
        """Let the training end; the agents' exit codes."""
        (self.folder / "stop").touch()
        return {name: process.wait(START_S) for name, process in self.processes.items()}

    def marked(self) -> list[psutil.Process]:
        """The processes of this job that live."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def kill_but_trackers(processes: list[psutil.Process]) -> None:
    """SIGKILL all but Python's resource trackers: those end by themselves, and take along the semaphores in /dev/shm."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if not any("resource_tracker" in word for word in process.cmdline()):
                process.kill()


@contextmanager
def agents() -> Iterator[Agents]:
    """A job's agents; every process of theirs has ended when the block is left."""
    folder, mark = Path(tempfile.mkdtemp(prefix="ckptd-elastic-")), secrets.token_hex(8)
    made = Agents(folder, mark)
    try:
        yield made
    except BaseException:
        for name in sorted(path.name for path in folder.glob("log-*")):
            print(f"---- {name}\n{(folder / name).read_text(errors='replace')[-4000:]}")
        raise
    finally:
        killed = made.marked()
        kill_but_trackers(killed)
        wait_ended(*[process.pid for process in killed])
        sweep(mark)
        for process in made.processes.values():
            process.wait(10.0)
        shutil.rmtree(folder, ignore_errors=True)


def over(cluster: Cluster, node: int) -> list[str]:
    """Why rounds have ended, as a collector has recorded it."""
    return [str(entry["reason"]) for entry in cluster.events(node, "round_over")]


def formed_after_s(cluster: Cluster, node: int) -> list[float]:
    """How long it took from each end of a round to the next one, as a collector has recorded it."""
    formed = {entry["number"]: entry["t"] for entry in cluster.events(node, "round")}
    ends = {entry["number"]: entry["t"] for entry in cluster.events(node, "round_over")}
    return [formed[number + 1] - t for number, t in ends.items() if number + 1 in formed]


def now() -> float:
    return time.time()
