"""Scenes in which a daemon is stopped, and what must hold afterwards: a restore gives the old or the new version, whole."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ckptd.ckpt.errors import CkptdError
from ckptd.ckpt.model import Version
from ckptd.ckpt.storage import Storage
from tests.cluster import Cluster
from tests.crash import victim
from tests.crash.victim import PLAN, STEPS
from tests.payload import JOB, bytes_of

NODES = 3
SIZE = 300_000
OPERATION_S = 25.0
FROZEN_S = 2.5
"""Longer than a daemon may be silent before it counts as lost."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Stop the victim with `signal` before the step `name` is made for the `occurrence`-th time in a scene."""

    scene: str
    victim: int
    name: str
    occurrence: int
    signal: str

    def __str__(self) -> str:
        return f"{self.scene}:{self.victim}:{self.name}:{self.occurrence}:{self.signal}"


@dataclass(slots=True)
class Outcome:
    """`reached`: the victim came to the step. `state`: what was restored, old or new; else `problem` says what is wrong."""

    cut: Cut
    reached: bool
    state: str = ""
    problem: str = ""


class Stage:
    """A cluster whose daemons can be stopped at any step, with a sealed version to lose."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = Random(seed)
        self.cluster = Cluster(NODES, parity=1, persist_every=1)
        self.cluster.launcher = [victim.__file__]
        self._step = 0
        self._plan = ("", 0, "SIGKILL")
        self.old = Version(0, 0)

    @contextlib.contextmanager
    def open(self) -> Iterator[Stage]:
        with self.cluster:
            self.cluster.begin_life(fresh=True)
            self.settle()
            yield self

    def settle(self) -> None:
        """Seal a version, on storage too: what a cut may not lose."""
        self._step += 1
        deadline = time.monotonic() + 40.0
        while True:
            try:
                self.old = self.cluster.capture(self._step, level="persisted", size=SIZE)
                return
            except (AssertionError, CkptdError):  # no slot is free yet, or a daemon is on its way up
                assert time.monotonic() < deadline, f"step {self._step}: nothing can be sealed and persisted any more"
                self._step += 1
                time.sleep(0.1)

    # ---- plans --------------------------------------------------------------------------------------

    def arm(self, node: int, name: str, occurrence: int, signal_name: str) -> None:
        """Let the node's daemon count its steps from now on, and stop before the one that is named."""
        self._plan = (name, occurrence, signal_name)
        steps, plan = self.cluster.run_dir(node) / STEPS, self.cluster.run_dir(node) / PLAN
        steps.unlink(missing_ok=True)
        fresh = plan.with_suffix(".new")
        fresh.write_text(json.dumps({"name": name, "occurrence": occurrence, "signal": signal_name}))
        fresh.replace(plan)

    def disarm(self, node: int) -> list[tuple[str, int]]:
        """End the plan; return the steps that were made under it."""
        (self.cluster.run_dir(node) / PLAN).unlink(missing_ok=True)
        steps = self.cluster.run_dir(node) / STEPS
        lines = steps.read_text().splitlines() if steps.exists() else []
        found = (line.rpartition(" ") for line in lines)
        return [(name, int(number)) for name, _, number in found if number.isdigit()]

    def steps_of(self, scene: str, victim: int) -> list[tuple[str, int]]:
        """Play a scene without a cut: the steps that the victim makes in it."""
        self.arm(victim, "", 0, "SIGKILL")
        SCENES[scene](self, victim)
        steps = self.disarm(victim)
        self.settle()
        return list(dict.fromkeys(steps))

    # ---- one cut --------------------------------------------------------------------------------------

    def run(self, cut: Cut) -> Outcome:
        """Play a scene, stop the victim in it, recover, and look at what is there."""
        self.arm(cut.victim, cut.name, cut.occurrence, cut.signal)
        told: list[Version] = []
        player = threading.Thread(target=self._play, args=(cut, told), daemon=True)
        player.start()
        self._wake(cut, player)
        dead = self.cluster.processes[cut.victim].poll() is not None
        player.join(2.0 if dead else OPERATION_S)  # what waits for the dead would wait long; it is let go
        steps = self.disarm(cut.victim)
        outcome = Outcome(cut, (cut.name, cut.occurrence) in steps)
        if outcome.reached and cut.signal != "SIGSTOP":  # it is as good as dead: wait for the end, or it ends later
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.cluster.processes[cut.victim].wait(15.0)
        new = Version(self.cluster.epoch, self._step)
        try:
            self._second_fault(cut)
            self._bring_up()
            outcome.state = self._look(new, told)
            self.settle()
        except (AssertionError, CkptdError, OSError) as error:
            outcome.problem = f"{type(error).__name__}: {str(error)[-600:]}"
        return outcome

    def _play(self, cut: Cut, told: list[Version]) -> None:
        with contextlib.suppress(
            CkptdError, AssertionError, OSError
        ):  # the victim is gone: that is what we are here for
            SCENES[cut.scene](self, cut.victim)
            if cut.scene == "capture":
                told.append(Version(self.cluster.epoch, self._step))

    def _wake(self, cut: Cut, player: threading.Thread) -> None:
        """A process that was stopped goes on after a while; one that was killed is seen by its end."""
        process = self.cluster.processes[cut.victim]
        deadline = time.monotonic() + OPERATION_S
        while player.is_alive() and time.monotonic() < deadline:
            if process.poll() is not None and cut.scene not in ("start", "replace"):
                return
            if cut.signal == "SIGSTOP" and _is_stopped(process.pid):
                time.sleep(FROZEN_S)
                process.send_signal(signal.SIGCONT)
                return
            time.sleep(0.01)
            process = self.cluster.processes[cut.victim]

    def _second_fault(self, cut: Cut) -> None:
        """Sometimes another daemon dies too, or the victim does again when it starts: memory outlives both."""
        fate = self.rng.random()
        if fate < 0.2:
            self.cluster.kill((cut.victim + 1) % NODES)
        elif fate < 0.5 and self.cluster.processes[cut.victim].poll() is not None:
            self.arm(cut.victim, self.rng.choice(STARTING), 1, "SIGKILL")
            self.cluster.start(cut.victim)
            deadline = time.monotonic() + 2.0
            while self.cluster.processes[cut.victim].poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            self.disarm(cut.victim)

    def _bring_up(self) -> None:
        for node, process in self.cluster.processes.items():
            if _is_stopped(process.pid):
                process.send_signal(signal.SIGCONT)
            if process.poll() is not None:
                self.cluster.start(node)
        for node in range(NODES):
            self.cluster.wait_ready(node)

    def _look(self, new: Version, told: list[Version]) -> str:
        """Restart the job. Raises AssertionError unless it gets the old or the new version, bit for bit, on every node."""
        for client in self.cluster.ranks.values():
            client.close()
        chosen = self.cluster.begin_life().version
        assert chosen in (self.old, new), f"restored {chosen}, expected {self.old} or {new}"
        assert not told or chosen == new, f"restored {chosen} although {new} was called sealed"
        for node in range(NODES):
            self.cluster.gather(node, chosen, size=SIZE)
        self._look_at_storage()
        return "new" if chosen == new else "old"

    def _look_at_storage(self) -> None:
        storage = Storage(self.cluster.storage, JOB)
        steps, problems = storage.steps()
        assert not problems, f"storage offers what can't be read: {problems}"
        assert steps, "storage has lost the persisted step"
        for step in steps[:2]:
            for image in step.manifest.images:
                into = memoryview(bytearray(image.size))
                storage.read(step, image.rank, into)
                assert bytes(into) == bytes_of(step.manifest.version, image.rank, SIZE), f"{step.path}: other bytes"


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


STARTING = ("create lock", "take a letter", "send Report", "fill daemon.tmp", "mkdir restore")
"""Steps of a daemon's start."""


def _capture(stage: Stage, _victim: int) -> None:
    """Capture, commit, seal and persist."""
    stage._step += 1
    stage.cluster.capture(stage._step, level="persisted", size=SIZE)


def _start(stage: Stage, victim: int) -> None:
    """The daemon ends and another one starts on what it finds."""
    stage.cluster.kill(victim)
    stage.cluster.start(victim)
    stage.cluster.wait_ready(victim)


def _rebuild(stage: Stage, victim: int) -> None:
    """A node is lost and replaced: its payload is rebuilt there, the victim being a survivor."""
    lost = (victim + 1) % NODES
    stage.cluster.lose(lost)
    stage.cluster.restart(lost)
    _until_whole(stage, lost)


def _replace(stage: Stage, victim: int) -> None:
    """The victim's node is lost; its replacement starts with nothing and rebuilds the payload."""
    stage.cluster.lose(victim)
    stage.cluster.run_dir(victim).mkdir(mode=0o700)
    stage.arm(victim, *stage._plan)
    stage.cluster.restart(victim)
    _until_whole(stage, victim)


def _adopt(stage: Stage, victim: int) -> None:
    """The victim brings all images of a version to its node, for ranks that have moved there."""
    stage.cluster.gather(victim, stage.old, size=SIZE)


def _until_whole(stage: Stage, node: int) -> None:
    deadline = time.monotonic() + OPERATION_S
    while time.monotonic() < deadline:
        with contextlib.suppress(CkptdError):
            state = stage.cluster.document(node, "Recover")
            if state["ok"] and not state["busy"] and state["restorable"]:
                return
        time.sleep(0.05)


SCENES: dict[str, Callable[[Stage, int], None]] = {
    "capture": _capture,
    "start": _start,
    "rebuild": _rebuild,
    "replace": _replace,
    "adopt": _adopt,
}


def close_to(step: tuple[str, int]) -> bool:
    """Heartbeats come again and again: the first few stand for all."""
    name, occurrence = step
    frequent = ("send ", "take a letter", "create ckptd", "write")
    return occurrence <= (3 if name.startswith(frequent) else 12)
