"""What the audience sees: the running account of a demo, and the one place where it waits."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ckptd.ckpt.errors import CkptdError
from ckptd.daemon.demo.cluster import Cluster
from ckptd.daemon.demo.report import describe
from ckptd.daemon.demo.watch import Event, Watch, tail_of

POLL_S = 0.05
LOG_LINES = 15
PROGRESS_LINES = 12
"""About how many lines tell of the progress of one run."""

STYLES = {
    "rank_lost": "red",
    "node_lost": "red",
    "refused": "red",
    "decided": "cyan",
    "rebuilt": "cyan",
    "fault": "red",
}


class DemoFailed(CkptdError):
    """The demo could not go on."""


class Progress:
    """How far the ranks of one run are."""

    def __init__(self, ranks: int, steps: int) -> None:
        self.ranks, self.steps = ranks, steps
        self.every = max(1, steps // PROGRESS_LINES)
        self.at: dict[int, int] = {}
        self.newest = {"sealed": 0, "persisted": 0}
        self.finished: set[int] = set()
        self.losses: dict[int, float] = {}
        self.last: tuple[int, float] | None = None

    @property
    def step(self) -> int:
        """The step that every rank has finished."""
        return min(self.at.values()) if len(self.at) == self.ranks else 0

    def note(self, event: Event) -> str | None:
        """Take an event in; a line to print when there is progress to tell."""
        if event.told_by == "daemon":
            if event.name in self.newest:
                self.newest[event.name] = max(self.newest[event.name], event.fields["step"])
            return None
        if event.told_by != "trainer":
            return None
        rank = event.fields["rank"]
        before = self.step
        if event.name == "restored":
            step = event.fields["step"]
            self.at[rank], self.last = step, None
            self.newest = {name: min(newest, step) for name, newest in self.newest.items()}  # what came after is void
        elif event.name == "done":
            self.finished.add(rank)
        elif event.name == "step":
            self.at[rank] = event.fields["step"]
            self.losses[rank] = float.fromhex(event.fields["loss"])
        return self.line(event.t) if self.step > before and self.step % self.every == 0 else None

    def line(self, t: float) -> str:
        """Where the run stands, and since the last line how fast."""
        parts = [f"step {self.step} of {self.steps}", f"loss {sum(self.losses.values()) / self.ranks:.3f}"]
        if self.last and self.step > self.last[0]:
            parts.append(f"{(t - self.last[1]) / (self.step - self.last[0]):.2f} s a step")
        self.last = (self.step, t)
        return ", ".join(parts + [f"{name} to {step}" for name, step in self.newest.items() if step])


class Stage:
    """Prints what happens while it waits for what should."""

    def __init__(self, console: Console, cluster: Cluster) -> None:
        self.console, self.cluster = console, cluster
        self.t_start = time.time()
        self.begin_run("nothing", 0.0, 0)

    def begin_run(self, name: str, limit_s: float, steps: int) -> None:
        """From now on the run `name` is followed, and everything has to be over in `limit_s`."""
        self.run, self.limit_s = name, limit_s
        self.deadline = time.monotonic() + limit_s
        self.watch = Watch()
        self._refused: set[str | None] = set()
        self.progress = Progress(self.cluster.options.nodes, steps)

    def say(self, text: str, style: str = "", t: float | None = None) -> None:
        """Print a line with the time since the start."""
        elapsed = (time.time() if t is None else t) - self.t_start
        self.console.print(Text.assemble((f"{elapsed:7.2f} s  ", "dim"), (text, style)), soft_wrap=True)

    def tell(self, name: str, t: float, text: str, **fields: object) -> None:
        """Record an event of the demo's own, and print it."""
        self.watch.events.append(Event(t, "demo", name, {"text": text, **fields}))
        self.say(text, STYLES.get(name, ""), t)

    def poll(self) -> None:
        """Print what is new."""
        for event in self.watch.poll():
            told = describe(event)
            if event.name == "refused" and told in self._refused:
                continue  # what is refused at every step is told once
            if event.name == "refused":
                self._refused.add(told)
            ended = event.name == "rank_lost" and event.fields["rank"] in self.progress.finished
            if told and not ended:
                self.say(told, STYLES.get(event.name, ""), event.t)
            line = self.progress.note(event)
            if line:
                self.say(line, t=event.t)

    def until(self, what: str, is_so: Callable[[], bool], limit_s: float | None = None) -> None:
        """Wait until it is so. Raises DemoFailed when a process has failed meanwhile or the time is up."""
        limit_s = min(limit_s or self.limit_s, self.limit_s)
        deadline = min(self.deadline, time.monotonic() + limit_s)
        while True:
            self.poll()
            if is_so():
                return
            failed = self.cluster.failed()
            if failed:
                ended = ", ".join(f"{process.name} (exit code {process.code})" for process in failed)
                raise DemoFailed(f"while waiting for {what}: {ended} has ended")
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.run} run: waited in vain for {what}, limit {limit_s:.0f} s; {self.standing()}")
            time.sleep(POLL_S)

    def seen(self, name: str, key: str, since: float = 0.0) -> set[object]:
        """The values of `key` in all events of this name."""
        return {event.fields.get(key) for event in self.watch.events if event.name == name and event.t >= since}

    def standing(self) -> str:
        """Where the run stands, for the message of a failure."""
        ranks = ", ".join(f"rank {rank} at step {step}" for rank, step in sorted(self.progress.at.items()))
        return ranks or "no rank has begun to train"

    def show_logs(self) -> None:
        """Print the ends of the logs that may tell why the run failed: those of failed processes, else all."""
        logs = [process.log for process in self.cluster.failed()] or sorted(self.cluster.layout.logs.glob("*.log"))
        for log in logs:
            lines = tail_of(log, LOG_LINES)
            if lines:
                self.console.print(Text(f"── the end of {log.name}", "yellow"))
                self.console.print(Text("\n".join(lines)), soft_wrap=True)
