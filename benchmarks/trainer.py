"""One trainer with one system, as a process of its own: the benchmarks start it and kill it.

    python -m benchmarks.trainer train|restore FOLDER OPTIONS

It appends what it measures to FOLDER/events.jsonl, a JSON object a line, and after the last line of `train` waits for its
end. What is timed:
* setup: making the system's object and what it wants at a start; imports are done before.
* blocked: inside the system's calls, and inside whatever it has torch call before an update.
* step: all of a training step, the system's calls included.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks import usage
from benchmarks.peers import BASELINE, EVENTS, STORAGE, named
from benchmarks.peers.base import Job, Peer
from benchmarks.workload import Workload

WARM = 3
FIRST_TRIES = 10
"""A system may leave the first snapshots out: what these cost counts as a part of the first one that it takes."""
COPIES = 3


class Hooks:
    """How long the hooks take that were registered between `first` and `last`: torch calls them in that order."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._began = 0.0
        register_optimizer_step_pre_hook(self._first)

    def close_bracket(self) -> None:
        """Call when the system has registered its own."""
        register_optimizer_step_pre_hook(self._last)

    def _first(self, *_: object) -> None:
        self._began = time.perf_counter()

    def _last(self, *_: object) -> None:
        self.spent += time.perf_counter() - self._began


@dataclass(slots=True)
class Loop:
    """The training loop, with what it cost."""

    peer: Peer
    hooks: Hooks
    step: int = 1
    """Finished updates: the workload was made with one."""
    blocked: list[float] = field(default_factory=list)
    """Seconds, of each snapshot."""
    steps: list[float] = field(default_factory=list)
    """Seconds, of each step."""
    at: list[int] = field(default_factory=list)
    """The steps that ended with a snapshot, as indexes into `steps`."""

    def run(self, count: int, *, every: int) -> None:
        """Train `count` steps; a snapshot after the first and each `every`-th one from there, none with 0."""
        for index in range(1, count + 1):
            began = time.perf_counter()
            self.peer.workload.compute()
            fenced = _timed(self.peer.fence)
            before = self.hooks.spent
            self.peer.workload.update()
            fenced += self.hooks.spent - before
            self.step += 1
            if self.blocked:
                self.blocked[-1] += fenced
            if every and (index - 1) % every == 0:
                self.at.append(len(self.steps))
                self.blocked.append(_timed(lambda: self.peer.save(self.step)))
            self.steps.append(time.perf_counter() - began)

    def forget(self) -> None:
        """Begin the figures anew."""
        self.blocked, self.steps, self.at = [], [], []


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Trainer:
    """What one command does."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.folder
        torch.set_num_threads(options.threads)

    def tell(self, event: str, **values: Any) -> None:
        with (self._folder / EVENTS).open("a") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    def train(self) -> None:
        """Measure, then leave one snapshot behind whose digest is known, and wait to be killed."""
        options = self._options
        adapter = adapter_of(options.system)
        workload = Workload(options.bytes, matmuls=options.matmuls, seed=1)
        hooks = Hooks()
        began = time.perf_counter()
        peer = adapter(self._job(workload))
        peer.begin()
        setup = time.perf_counter() - began
        hooks.close_bracket()
        loop = Loop(peer, hooks)
        loop.run(WARM, every=0)
        for _ in range(FIRST_TRIES):
            left_out = peer.skipped
            loop.run(1, every=1)
            loop.run(WARM, every=0)  # the fence of the first snapshot is in these
            if peer.skipped == left_out:
                break
        first = sum(loop.blocked)
        peer.finish()
        self.tell("ready", state_bytes=workload.state_bytes())
        loop.forget()
        skipped, (own, rest) = peer.skipped, usage.cpu_s(options.services)
        loop.run(options.steps, every=options.every)
        loop.run(1, every=0)  # closes the last snapshot's fence
        peer.finish()
        own_after, rest_after = usage.cpu_s(options.services)
        self.tell(
            "measured",
            setup_s=setup,
            first_s=first,
            blocked_s=loop.blocked,
            steps_s=loop.steps,
            at=loop.at,
            cpu_s=own_after - own,
            other_cpu_s=rest_after - rest,
            skipped=peer.skipped - skipped,
        )
        self._leave(loop)

    def _leave(self, loop: Loop) -> None:
        """A last snapshot, with training after it: what was captured must be of that step and no later one."""
        self.tell("memory")
        loop.run(1, every=1)
        digest, step = loop.peer.workload.digest(), loop.step
        loop.run(WARM, every=0)
        loop.peer.finish()
        self.tell("finished", step=step, digest=digest)
        system = named(self._options.system)
        if system.name != BASELINE and not system.survives:  # nothing will be there for another process
            loop.peer.workload.blank()
            self._restored(loop.peer)
        signal.pause()

    def restore(self) -> None:
        """Bring the newest snapshot back in this new process, beside a plain copy of as many bytes."""
        adapter = adapter_of(self._options.system)
        workload = Workload(self._options.bytes, matmuls=1, seed=2)
        workload.blank()
        self._restored(adapter(self._job(workload)))

    def _restored(self, peer: Peer) -> None:
        copies = [copy_s(peer.workload) for _ in range(COPIES)]
        began = time.perf_counter()
        step = peer.restore()
        took = time.perf_counter() - began
        copies += [copy_s(peer.workload) for _ in range(COPIES)]
        digest = peer.workload.digest()
        self.tell(
            "restored",
            step=step,
            digest=digest,
            restore_s=took,
            copies_s=copies,
            state_bytes=peer.workload.state_bytes(),
        )
        peer.close()

    def _job(self, workload: Workload) -> Job:
        return Job(workload, self._folder / STORAGE, self._options.memory)


def adapter_of(system: str) -> Callable[[Job], Peer]:
    """The class of that system. Raises ImportError where it is not installed."""
    module, name = named(system).adapter.split(":")
    found: Callable[[Job], Peer] = getattr(importlib.import_module(f"benchmarks.peers.{module}"), name)
    return found


def copy_s(workload: Workload) -> float:
    """Seconds of one copy of the whole state between tensors that were touched before."""
    source = workload.tensors()
    target = [torch.zeros_like(tensor) for tensor in source]
    return _timed(lambda: torch._foreach_copy_(target, source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("train", "restore"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--system", required=True)
    parser.add_argument("--memory", type=Path, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--matmuls", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--services", type=int, nargs="*", default=[], help="processes whose CPU time counts, too")
    options = parser.parse_args()
    trainer = Trainer(options)
    trainer.train() if options.mode == "train" else trainer.restore()


if __name__ == "__main__":
    main()
