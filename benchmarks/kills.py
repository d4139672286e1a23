"""Kills a trainer at random instants of a save, again and again; run by benchmarks.recover in the system's environment.

    python -m benchmarks.kills FOLDER --system NAME --memory DIR --bytes N --kills N

A life: restore and compare with the digest that was noted for that step, train a step and save it completely, train another
one and save that, and be killed by SIGKILL at some instant from the beginning of this last save to a little past its end.
How long a save takes is seen in the life before. Lives are forked from a server that has torch loaded: a life costs little.

The last line printed is JSON, as `Tally.report` makes it. Where a trainer can't go on after a kill, there are fewer kills
than asked for, and `stuck` says why.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.peers import STORAGE

_LIFE_S = 30.0
"""The longest silence of a trainer."""
_PAST_END = 1.2
"""Kills fall up to this many lengths of a save after its beginning."""
_SEED = 20_260_101
_REASON_CHARS = 200


class StuckError(Exception):
    """A trainer can't go on after a kill; the message says why."""


@dataclass(slots=True)
class Tally:
    """What became of each kill."""

    digests: dict[int, str] = field(default_factory=dict)
    """Of every step that was saved."""
    kills: int = 0
    loads: int = 0
    """The newest snapshot that was complete, or the one that the kill fell into, came back right."""
    refused: int = 0
    """Nothing came back, or something older than the newest complete one."""
    torn: int = 0
    """Wrong bytes came back."""
    lost: list[int] = field(default_factory=list)
    """Of each load, the steps that were trained and are gone."""
    stuck: str = ""

    def judge(self, step: int | None, digest: str, *, complete: int, begun: int) -> None:
        """One restore after a kill that fell into the save of step `begun`, when `complete` was the newest complete one.

        `step`: what came back; None when nothing did.
        """
        self.kills += 1
        if step is not None and self.digests.get(step) != digest:
            self.torn += 1
        elif step is None or step < complete:
            self.refused += 1
        else:
            self.loads += 1
            self.lost.append(begun - step)

    def report(self) -> dict[str, Any]:
        return {
            "kills": self.kills, "loads": self.loads, "refused": self.refused, "torn": self.torn, "lost": self.lost,
            "stuck": self.stuck,
        }  # fmt: skip


def summed(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several campaigns of one system: the counts together, steps lost in the mean and at most, and every `stuck`."""
    lost = [steps for report in reports for steps in report["lost"]]
    return {
        **{name: sum(report[name] for report in reports) for name in ("kills", "loads", "refused", "torn")},
        "lost_steps_mean": sum(lost) / len(lost) if lost else 0.0,
        "lost_steps_max": max(lost, default=0),
        "stuck": [report["stuck"] for report in reports if report["stuck"]],
    }


def life(options: argparse.Namespace, fresh: bool, pipe: Connection) -> None:
    """One trainer. It tells what it does (restored, digest, begun, saved, failed), and waits to be killed."""
    os.setsid()  # what it starts can be killed with it
    try:
        _live(options, fresh, pipe)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is an answer
        pipe.send(("failed", None, f"{type(error).__name__}: {error}"))
    signal.pause()


def _live(options: argparse.Namespace, fresh: bool, pipe: Connection) -> None:
    from benchmarks.peers.base import Job
    from benchmarks.trainer import adapter_of
    from benchmarks.workload import Workload

    workload = Workload(options.bytes, matmuls=1, seed=1)
    peer = adapter_of(options.system)(Job(workload, options.folder / STORAGE, options.memory))
    if fresh:
        peer.begin()
        step = 1
    else:
        workload.blank()
        try:
            step = peer.restore()
        except Exception as error:  # noqa: BLE001 - every way of a peer to refuse is an answer
            pipe.send(("restored", None, f"{type(error).__name__}: {error}"))
            return
        pipe.send(("restored", step or None, workload.digest()))
    for kind in ("saved", "begun"):
        workload.compute()
        peer.fence()
        workload.update()
        step += 1
        pipe.send(("digest", step, workload.digest()))
        if kind == "begun":
            pipe.send(("begun", step, ""))
        began = time.perf_counter()
        peer.save(step)
        peer.fence()
        peer.finish()
        pipe.send(("saved", step, str(time.perf_counter() - began)))


def one_kill(options: argparse.Namespace, tally: Tally, before: tuple[int, int] | None) -> tuple[int, int] | None:
    """One life and its kill: (newest complete step, step whose save was begun); None when nothing could be restored.

    Raises StuckError when the trainer can't go on.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=life, args=(options, before is None, theirs))
    process.start()
    theirs.close()
    try:
        return _lived(ours, tally, before)
    finally:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _lived(pipe: Connection, tally: Tally, before: tuple[int, int] | None) -> tuple[int, int] | None:
    """Listen to a life until it is time for its kill."""
    complete, begun, took, asked = 0, 0, 0.0, before
    while True:
        kind, step, text = _heard(pipe) if pipe.poll(_LIFE_S) else ("failed", None, f"no word for {_LIFE_S:.0f} s")
        if asked is not None and kind in ("restored", "failed"):
            tally.judge(step, text, complete=asked[0], begun=asked[1])
            asked = None
            if step is None and kind == "restored":
                return None
        if kind == "failed" or step is None:
            raise StuckError(f"a trainer that was started again: {text}" if before else text)
        if kind == "digest":
            tally.digests[step] = text
        elif kind == "saved":
            complete, took = step, float(text)
        elif kind == "begun":
            begun = step
            break
    deadline = time.perf_counter() + random.uniform(0.0, _PAST_END * took)
    while (left := deadline - time.perf_counter()) > 0:
        if pipe.poll(left):
            kind, step, text = _heard(pipe)
            if kind == "failed" or step is None:
                raise StuckError(text)
            complete = step
    return complete, begun


def _heard(pipe: Connection) -> tuple[str, int | None, str]:
    try:
        kind, step, text = pipe.recv()
    except EOFError:
        return "failed", None, "it ended by itself"
    return kind, step, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--system", required=True)
    parser.add_argument("--memory", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--kills", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a trainer is in a session of its own: it must be ended
    random.seed(_SEED)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.workload", "benchmarks.trainer"])
    tally, before = Tally(), None
    try:
        while tally.kills < options.kills:
            before = one_kill(options, tally, before)
    except StuckError as error:
        tally.stuck = str(error)[:_REASON_CHARS]
    print(json.dumps(tally.report()))


if __name__ == "__main__":
    main()
