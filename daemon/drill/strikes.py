"""Faults struck at the throw-away job. Each returns when it struck, after what ends by itself has ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from ckptd.daemon.demo.run import start_nodes
from ckptd.daemon.demo.stage import Stage
from ckptd.daemon.drill.faults import Fault
from ckptd.daemon.drill.job import DrillJob, fill

NOTICED_S = 60.0
READY_S = 30.0
RESTART_S = 0.5
"""After so long a service manager starts a daemon again."""


class Strikes:
    """Strikes one job, whose story `stage` follows."""

    def __init__(self, stage: Stage, job: DrillJob, rng: Random) -> None:
        self.stage, self.job, self.rng = stage, job, rng

    def strike(self, fault: Fault) -> float:
        """Do it, and see to what an operator or a scheduler would do. Returns the unix time at which it struck."""
        acts: dict[str, Callable[[Fault], float]] = {
            "rank": self._rank,
            "daemon": self._daemon,
            "node": self._node,
            "memory": self._memory,
            "disk": self._disk,
            "link": self._link,
            "bits": self._bits,
        }
        return acts[fault.kind](fault)

    def _rank(self, fault: Fault) -> float:
        pids = {event.fields["rank"]: event.fields["pid"] for event in self.stage.watch.events if event.name == "start"}
        return self.job.kill_trainer(pids[fault.node])

    def _daemon(self, fault: Fault) -> float:
        struck = self.job.kill_daemon(fault.node)
        self._pause(RESTART_S)
        self.job.start_daemon(fault.node)
        self.stage.until(
            "the daemon to be ready again", lambda: fault.node in self.stage.seen("ready", "node", struck), READY_S
        )
        return struck

    def _node(self, fault: Fault) -> float:
        stage, node = self.stage, fault.node
        struck = self.job.strike([node], [])
        stage.poll()  # the daemon's last words, before their file is deleted
        self.job.forget(node)
        if self.job.options.nodes > 1:
            stage.until(
                "the other daemons to notice", lambda: node in stage.seen("node_lost", "lost", struck), NOTICED_S
            )
        start_nodes(stage, [node])
        return struck

    def _memory(self, fault: Fault) -> float:
        struck = time.time()
        taken = fill(self.job.ballast)
        self.stage.say(f"{taken / 1e6:.0f} MB of ballast leave no room for {fault.seconds:g} s")
        with contextlib.ExitStack() as undo:
            undo.callback(self.job.ballast.unlink)
            self._pause(fault.seconds)
        return struck

    def _disk(self, fault: Fault) -> float:
        struck = time.time()
        self.job.stalled.touch()
        with contextlib.ExitStack() as undo:
            undo.callback(self.job.stalled.unlink)
            self._pause(fault.seconds)
        return struck

    def _link(self, fault: Fault) -> float:
        struck = time.time()
        self.job.links.set(fault.node, fault.peer, fault.how)
        with contextlib.ExitStack() as undo:
            undo.callback(self.job.links.set, fault.node, fault.peer, None)
            self._pause(fault.seconds)
        return struck

    def _bits(self, fault: Fault) -> float:
        struck = self._rank(fault)
        # The others may end a capture yet; the killed rank's slots stand still from now on.
        for path in slots_of(self.job.layout.segment_dir(fault.node), fault.node):
            flip_bit(path, self.rng)
        return struck

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.stage.until("the fault to pass", lambda: time.monotonic() >= end)


def slots_of(directory: Path, rank: int) -> Iterator[Path]:
    """The files of a rank's slots."""
    return iter(sorted(directory.glob(f"rank-{rank:05d}.*.safetensors")))


def flip_bit(path: Path, rng: Random) -> None:
    """Flip one bit of a file where it is."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        offset = rng.randrange(os.fstat(descriptor).st_size)
        found = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([found[0] ^ 1 << rng.randrange(8)]), offset)
    finally:
        os.close(descriptor)
