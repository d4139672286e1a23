"""A trainer of the demo with which something goes wrong on demand: `python -m ckptd.daemon.demo.faulty FAULT MODULE [...]`.

It is the module as `python -m` would run it, until SIGUSR1 comes: then its main thread does what FAULT says, in the middle
of its own work. The next life of the same rank is well, unless it is sent the signal too. Of a fault of links FAULT is
`slow-link=FILE`: the signal spoils this end of the connections that FILE lists then, as JSON pairs of ports.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ckptd.daemon.demo import wires

FOR_EVER_S = 36_000
STOPPED_S, RUNS_S = 0.06, 0.04
"""Of each period of a slow rank: the 100 ms of the kernel's quotas."""


def hang() -> None:
    """Sleep in Python: other threads go on."""
    time.sleep(FOR_EVER_S)


def hold_gil() -> None:
    """Sleep in a C call that keeps the interpreter's lock: no other thread of the process runs Python."""
    ctypes.PyDLL(None).sleep(FOR_EVER_S)


def wait_for_data() -> None:
    """Wait for the next batch of a data loader whose workers are stuck: in a lock, as one waits for others."""
    queue.Queue[object]().get()


def stop() -> None:
    """Be stopped, as by a debugger."""
    os.kill(os.getpid(), signal.SIGSTOP)


THROTTLE = """
import os, signal, sys, time
trainer, stopped_s, runs_s = os.getppid(), float(sys.argv[1]), float(sys.argv[2])
while os.getppid() == trainer:
    os.kill(trainer, signal.SIGSTOP)
    time.sleep(stopped_s)
    os.kill(trainer, signal.SIGCONT)
    time.sleep(runs_s)
"""


def slow_down() -> None:
    """From now on the rank gets two fifths of its time, as under a cgroup's quota: a child stops it and lets it go on."""
    subprocess.Popen([sys.executable, "-I", "-S", "-c", THROTTLE, str(STOPPED_S), str(RUNS_S)])


def spoil(ill: wires.Ill, listed: Path) -> None:
    """From now on the wire to another trainer is bad, in what this end sends and gets."""
    for wire in wires.own({(local, remote) for local, remote in json.loads(listed.read_text())}):
        wires.spoil(wire, ill)


FAULTS: dict[str, Callable[[], None]] = {
    "hang": hang,
    "gil": hold_gil,
    "loader": wait_for_data,
    "stop": stop,
    "slow-rank": slow_down,
}


def main(argv: list[str]) -> None:
    """Listen for the signal, then be the module."""
    (fault, _, listed), module = argv[0].partition("="), argv[1]
    misbehave = FAULTS.get(fault) or partial(spoil, wires.LINKS[fault], Path(listed))
    signal.signal(signal.SIGUSR1, lambda _number, _frame: misbehave())
    signal.siginterrupt(signal.SIGUSR1, False)
    sys.argv = argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
