"""One kind of a node's background work: at most one job of it runs, and after a failure it pauses. Pure."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from ckptd.daemon.machine import Transitions, follow

T = TypeVar("T")
State = Literal["idle", "running", "pausing"]

TRANSITIONS: Transitions[State] = {
    "idle": {"start": "running"},
    "running": {"succeed": "idle", "fail": "pausing"},
    "pausing": {"start": "running", "hurry": "idle"},
}


class Work(Generic[T]):
    """`job` is what runs now. `pause_s` is how long it waits after a failure."""

    def __init__(self, name: str, pause_s: float) -> None:
        self.name, self._pause_s = name, pause_s
        self.state: State = "idle"
        self.job: T | None = None
        self._pause_ends = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether a job may start."""
        return self.state == "idle" or (self.state == "pausing" and now >= self._pause_ends)

    def start(self, job: T) -> None:
        self.state, self.job = follow(TRANSITIONS, self.state, "start", self.name), job

    def end(self, now: float, *, failed: bool) -> T:
        """The job has come back; return it."""
        self.state = follow(TRANSITIONS, self.state, "fail" if failed else "succeed", self.name)
        job, self.job = self.job, None
        if failed:
            self._pause_ends = now + self._pause_s
        assert job is not None, f"{self.name}: a job came back that nobody started"
        return job

    def hurry(self) -> None:
        """Forget the pause: somebody asks for the work now."""
        if self.state == "pausing":
            self.state = follow(TRANSITIONS, self.state, "hurry", self.name)

    def check_invariants(self) -> None:
        assert (self.state == "running") == (self.job is not None), f"{self.name} is {self.state} with {self.job}"
