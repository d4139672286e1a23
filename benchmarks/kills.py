"""Kills a trainer at random instants of a save, again and again; run by benchmarks.recover in the system's environment.

    python -m benchmarks.kills FOLDER --system NAME --memory DIR --bytes N --kills N

A life: restore and compare with the digest that was noted for that step, train a step and save it completely, train another
one and save that, and be killed by SIGKILL at some instant from the beginning of this last save to a little past its end.
How long a save takes is seen in the life before. Lives are forked from a server that has torch loaded: a life costs little.

The last line printed is JSON: {kills, loads, refused, torn, lost_steps_mean, lost_steps_max}.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.peers import STORAGE

_LIFE_S = 60.0
_PAST_END = 1.2
"""Kills fall up to this many lengths of a save after its beginning."""
_SEED = 20_260_101


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
        mean = sum(self.lost) / len(self.lost) if self.lost else 0.0
        return {
            "kills": self.kills, "loads": self.loads, "refused": self.refused, "torn": self.torn,
            "lost_steps_mean": mean, "lost_steps_max": max(self.lost, default=0),
        }  # fmt: skip


def life(options: argparse.Namespace, fresh: bool, pipe: Connection) -> None:
    """One trainer. It tells what it does: restored, saved, begun; and waits to be killed."""
    from benchmarks.peers.base import Job
    from benchmarks.trainer import adapter_of
    from benchmarks.workload import Workload

    os.setsid()  # what it starts can be killed with it
    workload = Workload(options.bytes, matmuls=1, seed=1)
    peer = adapter_of(options.system)(Job(workload, options.folder / STORAGE, options.memory))
    if fresh:
        peer.begin()
        step = 1
    else:
        workload.blank()
        try:
            step = peer.restore()
            pipe.send(("restored", step, workload.digest()))
        except Exception as error:  # noqa: BLE001 - every way of a peer to refuse is an answer
            pipe.send(("restored", None, f"{type(error).__name__}: {error}"))
            return
        if step == 0:
            pipe.send(("restored", None, "it starts fresh"))
            return
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
    signal.pause()


def one_kill(options: argparse.Namespace, tally: Tally, before: tuple[int, int] | None) -> tuple[int, int] | None:
    """One life and its kill: (newest complete step, step whose save was begun); None when nothing could be restored."""
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=life, args=(options, before is None, theirs))
    process.start()
    theirs.close()
    complete = begun = 0
    try:
        while True:
            if not ours.poll(_LIFE_S):
                raise TimeoutError(f"a trainer said nothing for {_LIFE_S:.0f} s")
            kind, step, text = ours.recv()
            if kind == "restored":
                assert before is not None
                tally.judge(step, text, complete=before[0], begun=before[1])
                if step is None:
                    return None
            elif kind == "digest":
                tally.digests[step] = text
            elif kind == "saved":
                complete, took = step, float(text)
            else:
                begun = step
                break
        deadline = time.perf_counter() + random.uniform(0.0, _PAST_END * took)
        while (left := deadline - time.perf_counter()) > 0:
            if ours.poll(left):
                kind, step, _ = ours.recv()
                assert kind == "saved"
                complete = step
    finally:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    while ours.poll():  # what it said before it died
        try:
            kind, step, _ = ours.recv()
        except EOFError:
            break
        if kind == "saved":
            complete = step
    return complete, begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--system", required=True)
    parser.add_argument("--memory", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--kills", type=int, required=True)
    options = parser.parse_args()
    random.seed(_SEED)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.workload", "benchmarks.trainer"])
    tally, before = Tally(), None
    while tally.kills < options.kills:
        before = one_kill(options, tally, before)
    print(json.dumps(tally.report()))


if __name__ == "__main__":
    main()
