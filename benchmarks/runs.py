"""One run of one system: its services, its trainer, the kill, and the new trainer that restores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import usage
from benchmarks.peers import BASELINE, EVENTS, STORAGE, System
from benchmarks.services import Service, serving
from benchmarks.venvs import Ready

ROOT = Path(__file__).parents[1]
_POLL_S = 0.02
_SAMPLE_S = 0.05
_PATIENCE_S = 180.0
_REASON_CHARS = 300
_TRACKERS_S = 3.0


class RunFailedError(Exception):
    """A system did not do what it should; the message is its own last word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How every system is run in one comparison."""

    state_bytes: int
    matmuls: int
    steps: int
    every: int
    threads: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run measured. Seconds and bytes."""

    measured: dict[str, Any]
    memory_bytes: int
    finished: dict[str, Any]
    restored: dict[str, Any]
    """Empty for the baseline, which has nothing to restore."""

    @property
    def restored_ok(self) -> bool:
        """The bytes of the last snapshot came back, all of them and no others."""
        return all(self.finished[key] == self.restored.get(key) for key in ("step", "digest"))


class Process:
    """A trainer in a session of its own: whatever it starts ends with it."""

    def __init__(self, mode: str, system: System, ready: Ready, folder: Path, service: Service, plan: Plan) -> None:
        command = [str(ready.python), "-m", "benchmarks.trainer", mode, str(folder), "--system", system.name]
        command += ["--memory", str(service.memory), "--bytes", str(plan.state_bytes), "--matmuls", str(plan.matmuls)]
        command += ["--steps", str(plan.steps), "--every", str(plan.every), "--threads", str(plan.threads)]
        command += ["--services", *(str(pid) for pid in service.pids())]
        self._events, self._log, self._read = folder / EVENTS, folder / f"{mode}.log", 0
        self._events.unlink(missing_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, env=environment() | dict(service.environment), cwd=folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self, event: str) -> dict[str, Any] | None:
        """The trainer's line of that kind, if it was written. Raises RunFailedError when it will not be."""
        ended = self._process.poll() is not None
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        for line in lines:
            entry: dict[str, Any] = json.loads(line) if line.endswith("}") else {"event": ""}
            if entry["event"] == event:
                return entry
        if ended:
            raise RunFailedError(last_word(self._log.read_text()))
        return None

    def wait(self, event: str) -> dict[str, Any]:
        """Raises RunFailedError when it does not come in time."""
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self.poll(event)) is None:
            if time.monotonic() > deadline:
                raise RunFailedError(f"no {event!r} within {_PATIENCE_S:.0f} s")
            time.sleep(_POLL_S)
        return found

    def kill(self) -> None:
        """SIGKILL to it and to all that it started and that is still in its session.

        Those of its children that clean up after it (multiprocessing's trackers) are given the time to do so first.
        """
        others = [process for process in usage.tree(self.pid) if process.pid != self.pid]
        self._process.kill()
        self._process.wait()
        trackers = [process for process in others if _is_tracker(process)]
        for process in others:
            if process not in trackers:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        psutil.wait_procs(trackers, timeout=_TRACKERS_S)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


@contextmanager
def running(mode: str, system: System, ready: Ready, folder: Path, service: Service, plan: Plan) -> Iterator[Process]:
    """A trainer that is killed at the end of the block."""
    process = Process(mode, system, ready, folder, service, plan)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def folder_of_a_run() -> Iterator[Path]:
    """A folder on the disk for one run, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ckptd-bench-"))
    (folder / STORAGE).mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """Of every trainer: ours without what ckptd or torchrun may have set, and with the way to this tree."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CKPTD_", "TORCHELASTIC_"))}
    return clean | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}


def measure(system: System, ready: Ready, plan: Plan) -> Outcome:
    """Run a system once. Raises RunFailedError, NotInTimeError."""
    with (
        folder_of_a_run() as folder,
        serving(system, ready.python, folder, state_bytes=plan.state_bytes, every=plan.every) as service,
    ):
        with running("train", system, ready, folder, service, plan) as trainer:
            measured = trainer.wait("measured")
            trainer.wait("memory")
            most = 0
            while (finished := trainer.poll("finished")) is None:
                most = max(most, usage.memory_bytes([trainer.pid, *service.pids()], service.memory))
                time.sleep(_SAMPLE_S)
            in_there = system.name != BASELINE and not system.survives
            restored = trainer.wait("restored") if in_there else {}
        if system.survives:
            service.lose()
            with running("restore", system, ready, folder, service, plan) as trainer:
                restored = trainer.wait("restored")
        return Outcome(measured, most, finished, restored)


def end_tidily() -> None:
    """Let SIGTERM do what Ctrl-C does: leave every block, which ends the processes and removes the files."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with it ignored


def last_word(log: str) -> str:
    """The line of a log that names an error, else its last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (named or lines or ["it ended without a word"])[-1][:_REASON_CHARS]
