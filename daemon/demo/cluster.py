"""The demo's cluster: nodes on one machine, each a daemon, an agent with one trainer, and its own directories.

A node is lost as a machine would be: everything of it is killed at once, then its memory and its directory are gone.
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
import sysconfig
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from ckptd.ckpt.errors import CkptdError
from ckptd.daemon.demo.faulty import FAULTS
from ckptd.daemon.demo.options import DemoOptions, Layout
from ckptd.daemon.demo.processes import MARK, Process, kill, reap, start, sweep, terminate
from ckptd.daemon.demo.watch import tail_of
from ckptd.daemon.demo.wires import LINKS

JOB = "demo"
TRAINER = ["-m", "ckptd.examples.train_gpt"]
DAEMON_END_S = 5.0
ORPHANS_S = 2.0
STATUS_S = 20.0
RDZV = "is_host=0,join_timeout=60,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
"""torchrun's rendezvous: the store is hosted by none of the agents, and a silent agent is dropped after 3 s, not 15."""


def ckptd_command() -> list[str]:
    """The installed command `ckptd`, run by this interpreter."""
    return [sys.executable, str(Path(sysconfig.get_path("scripts")) / "ckptd")]


def environment(layout: Layout) -> dict[str, str]:
    """Ours, without what a surrounding torchrun or ckptd has set, and with what several nodes on one machine need."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCHELASTIC_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    return kept | {
        MARK: layout.name,
        "CKPTD_DOMAIN": "none",  # what Slurm or Kubernetes says of this machine would put all nodes into one domain
        "GLOO_SOCKET_IFNAME": "lo",  # the host's name may resolve to an interface that is not there
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # the warnings of four trainers would hide what matters in a failure's logs
        "TMPDIR": str(layout.temporary),  # a killed agent leaves its temporary files behind
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # torch 2.13: restarted gloo workers meet stale addresses without
    }


def address_of(node: int) -> str:
    return f"127.0.0.{11 + node}"


def free_port(address: str) -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class Cluster:
    """Starts, loses, replaces and ends nodes. `stop` must be called whatever happened; it leaves nothing behind."""

    def __init__(self, options: DemoOptions, layout: Layout) -> None:
        self.options, self.layout = options, layout
        self.environment = environment(layout)
        self.addresses = [f"{address_of(node)}:{free_port(address_of(node))}" for node in range(options.nodes)]
        self.store: Process | None = None
        self.rendezvous = ""
        self.daemons: dict[int, Process] = {}
        self.agents: dict[int, Process] = {}
        self.reference: Process | None = None
        for directory in (layout.logs, layout.storage, layout.temporary):
            directory.mkdir(mode=0o700)
        layout.secret.touch(mode=0o600)
        layout.secret.write_text(secrets.token_hex(32))

    def trainer(self, run: str, *more: str) -> list[str]:
        """The training command of a run."""
        options = self.options
        sizes = [f"--steps={options.steps}", f"--seed={options.seed}", *options.model.arguments()]
        if options.pace_s and run != "reference":
            sizes.append(f"--pace={options.pace_s:g}")
        return [*TRAINER, *sizes, f"--events={self.layout.logs / run}", *more]

    def launch(self, name: str, command: list[str], more: dict[str, str] | None = None) -> Process:
        log = self.layout.logs / f"{name}.log"
        return start(name, command, log=log, environment=self.environment | (more or {}))

    def start_reference(self) -> Process:
        """Start the uninterrupted run: one torchrun with all ranks."""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        torchrun += [f"--nproc-per-node={self.options.nodes}"]
        self.reference = self.launch("reference", [*torchrun, *self.trainer("reference", "--no-checkpoint")])
        return self.reference

    def start_store(self) -> None:
        """Start the rendezvous store; `store_ready` tells when it listens."""
        self.store = self.launch("store", [sys.executable, "-m", "ckptd.integrations.store_host"])

    def store_ready(self) -> bool:
        assert self.store
        for line in tail_of(self.store.log, 5):
            if line.startswith("{"):
                told = json.loads(line)
                self.rendezvous = f"{told['host']}:{told['port']}"
        return bool(self.rendezvous)

    def daemon_command(self) -> list[str]:
        """What runs a daemon."""
        return ckptd_command()

    def addresses_for(self, node: int) -> list[str]:
        """Where this node finds every node."""
        return self.addresses

    def start_daemon(self, node: int) -> None:
        """Start the node's daemon, with an empty memory unless one ran here before; it is ready when its socket is there."""
        options, layout = self.options, self.layout
        layout.segment_dir(node).mkdir(mode=0o700, exist_ok=True)
        layout.run_dir(node).mkdir(mode=0o700, exist_ok=True)
        command = [*self.daemon_command(), "serve", "--job", JOB, "--node", str(node)]
        command += ["--nodes", ",".join(self.addresses_for(node))]
        command += ["--parity", str(options.parity), "--persist-every", str(options.persist_every), "--clean-exit"]
        command += ["--run-dir", str(layout.run_dir(node)), "--segment-dir", str(layout.segment_dir(node))]
        command += ["--storage", str(layout.storage), "--secret-file", str(layout.secret)]
        self.daemons[node] = self.launch(f"daemon-{node}", command)

    def daemon_ready(self, node: int) -> bool:
        return (self.layout.run_dir(node) / "ckptd.sock").exists()

    def start_agent(self, node: int) -> None:
        """Start the node's agent, which starts its trainer when all nodes are there."""
        nodes, address = self.options.nodes, address_of(node)
        more = {"CKPTD_RUN_DIR": str(self.layout.run_dir(node)), "CKPTD_JOB": JOB}
        if self.options.launcher == "ckptd":
            run = [*ckptd_command(), "run", f"--nnodes={nodes}", "--nproc-per-node=1", f"--local-addr={address}"]
            run += ["--warm-workers"] if self.options.warm_workers else []
            self.agents[node] = self.launch(f"agent-{node}", [*run, *self.misled(self.trainer("faulty"))], more)
            return
        torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}:{nodes}", "--nproc-per-node=1"]
        torchrun += ["--max-restarts=50", "--rdzv-backend=c10d", f"--rdzv-id={self.layout.name}"]
        torchrun += [f"--rdzv-endpoint={self.rendezvous}", f"--rdzv-conf={RDZV}", f"--local-addr={address}"]
        self.agents[node] = self.launch(f"agent-{node}", [*torchrun, *self.trainer("faulty")], more)

    def misled(self, trainer: list[str]) -> list[str]:
        """The training command, with the fault in it that comes at a signal."""
        fault = self.options.fault
        if fault in LINKS:
            fault = f"{fault}={self.spoiled}"
        elif fault not in FAULTS:
            return trainer
        return ["-m", "ckptd.daemon.demo.faulty", fault, *trainer[1:]]

    @property
    def spoiled(self) -> Path:
        """Lists the connections that a fault of links befalls."""
        return self.layout.temporary / "spoiled.json"

    def mislead(self, pids: Iterable[int]) -> float:
        """Let the fault come over these trainers; return when."""
        now = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        return now

    def strike(self, nodes: Sequence[int], pids: Iterable[int]) -> float:
        """SIGKILL everything of these nodes and the trainers with these pids, all at once; return when."""
        struck = [processes.pop(node) for node in nodes for processes in (self.daemons, self.agents)]
        victims = [member for process in struck for member in process.family()]
        victims += [psutil.Process(pid) for pid in pids]
        now = time.time()
        kill(victims)
        for process in struck:
            reap(process, 5.0)
        return now

    def forget(self, node: int) -> None:
        """Delete the memory and the directory of a node whose processes were killed."""
        shutil.rmtree(self.layout.segment_dir(node))
        shutil.rmtree(self.layout.run_dir(node))

    def failed(self) -> list[Process]:
        """The processes that have ended and should not have: any daemon or store, and trainers' launchers that failed."""
        servants = [*self.daemons.values(), *([self.store] if self.store else [])]
        launchers = [*self.agents.values(), *([self.reference] if self.reference else [])]
        return [p for p in servants if p.code is not None] + [p for p in launchers if p.code not in (None, 0)]

    def status(self, node: int) -> dict[str, Any]:
        """What `ckptd status --json` says about the node. Raises CkptdError when it says nothing."""
        command = [*ckptd_command(), "status", "--run-dir", str(self.layout.run_dir(node)), "--json"]
        try:
            asked = subprocess.run(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=STATUS_S,
                check=False,
            )
            told = json.loads(asked.stdout)
        except subprocess.TimeoutExpired:
            raise CkptdError(f"ckptd status of node {node} did not answer within {STATUS_S:.0f} s") from None
        except ValueError:
            said = (asked.stdout + asked.stderr).decode(errors="replace")[-500:]
            raise CkptdError(f"ckptd status of node {node} printed no JSON but: {said}") from None
        if not isinstance(told, dict):
            raise CkptdError(f"ckptd status of node {node} printed {told!r}, expected a JSON object")
        return told

    def stop(self) -> list[int]:
        """End all processes and free the shared memory; returns the pids of strays that had to be killed."""
        launchers = [*self.agents.values(), *([self.reference] if self.reference else [])]
        servants = [*self.daemons.values(), *([self.store] if self.store else [])]
        try:
            kill([member for launcher in launchers for member in launcher.family()])
            terminate([*launchers, *servants], DAEMON_END_S)
        finally:  # also when a second Ctrl-C came
            strays = sweep(self.layout.name, ORPHANS_S)
            for directory in (self.layout.segments, self.layout.temporary):
                shutil.rmtree(directory, ignore_errors=True)
            self.layout.secret.unlink(missing_ok=True)
        return strays
