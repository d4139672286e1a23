"""Many runs on several processes, and one run as a value: what happened, or how it failed."""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context

from tests.sim.chaos import Chaos
from tests.sim.scenario import Scenario, draw
from tests.sim.world import Entry

QUIET = {"node_joined", "skipped", "protected"}
CHUNK = 25
"""Seeds that a process takes at once."""


@dataclass(frozen=True, slots=True)
class Failure:
    scenario: Scenario
    problem: str

    @property
    def kind(self) -> str:
        """The problem without its numbers: what two failures of the same sort share."""
        return re.sub(r"\d+(\.\d+)?", "#", self.problem)[:60]


@dataclass(slots=True)
class Tally:
    """What came of some runs."""

    runs: int = 0
    events: int = 0
    simulated_s: float = 0.0
    seals: int = 0
    restores: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.runs += other.runs
        self.events += other.events
        self.simulated_s += other.simulated_s
        self.seals += other.seals
        self.restores += other.restores
        self.failures += other.failures


def attempt(scenario: Scenario) -> tuple[Failure | None, Chaos]:
    """Run a scenario; any error is a failure, whether a check raised it or the code that is checked."""
    chaos = Chaos(scenario)
    try:
        chaos.run()
    except Exception as error:  # noqa: BLE001 - whatever the code under test raises is what we look for
        return Failure(scenario, f"{type(error).__name__}: {error}"), chaos
    return None, chaos


def run_seeds(first: int, number: int) -> Tally:
    """Run seeds one after another."""
    tally = Tally()
    gc.disable()  # the worlds are full of cycles: one sweep after each batch is cheaper
    for seed in range(first, first + number):
        failure, chaos = attempt(draw(seed))
        tally.runs += 1
        tally.events += chaos.world.events
        tally.simulated_s += chaos.world.now
        tally.seals += len(chaos.world.noted("SEALED"))
        tally.restores += len(chaos.world.noted("RESTORES"))
        if failure:
            tally.failures.append(failure)
    gc.collect()
    return tally


def run_many(first: int, number: int, *, minutes: float, jobs: int, stop_after: int = 3) -> Iterator[Tally]:
    """The sum so far, after each batch, until the seeds, the minutes or our patience with failures are used up."""
    total, deadline = Tally(), time.monotonic() + minutes * 60
    starts = iter(range(first, first + number, CHUNK))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=os.nice, initargs=(5,)) as pool:
        running: set[Future[Tally]] = set()
        for _ in count():
            while len(running) < 2 * jobs and time.monotonic() < deadline and len(total.failures) < stop_after:
                start = next(starts, None)
                if start is None:
                    break
                running.add(pool.submit(run_seeds, start, min(CHUNK, first + number - start)))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                total.add(future.result())
            yield total


def readable(trace: list[Entry], last: int | None = None) -> str:
    """The trace as lines, without what is said at every heartbeat."""
    lines: list[str] = []
    for entry in trace[-last:] if last else trace:
        where = "world  " if entry.node < 0 else f"node {entry.node:2d}"
        what = " ".join(f"{name}={value}" for name, value in entry.fields.items())
        if entry.event not in QUIET:
            lines.append(f"{entry.when:8.3f}  {where}  {entry.event}  {what}".rstrip())
    return "\n".join(lines)
