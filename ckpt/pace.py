"""Which calls of `step` take a snapshot when that depends on time or cost: measured by rank 0, the same on every rank. Pure.

Ranks don't look at their own clocks to say whether a snapshot is due: each would say something else. Rank 0 plans ahead in
calls of `step`, which all ranks count alike, and its newest plan is brought to all of them at a call that all know.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ckptd.ckpt.policy import Auto, Cadence, Failures, Seconds, snapshot_interval_s

STRIDE_MAX = 2**40
ROUND_S = 1.0
"""About so often the ranks agree anew: a SIGTERM waits for the next time."""
ROUND_CALLS_MAX = 10_000
_SAMPLES = 32
_MEDIAN_ERROR = 1.253 * 1.4826
"""The standard error of a median of n normal values is their median absolute deviation times this, by the root of n."""
_ENOUGH = 4
_QUIET = 4
"""How many calls in a row a plan begins without a snapshot, so that steps without one are measured too."""
_REVIEW = 64
"""`auto` measures for so many calls before it thinks anew."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls of `step` that are due: `first`, and every `stride` calls after it. Calls count from 1."""

    first: int
    stride: int

    def is_due(self, call: int) -> bool:
        return call >= self.first and (call - self.first) % self.stride == 0


class Meter:
    """How long steps take, by how long ago the last snapshot was begun: what a snapshot costs the training."""

    def __init__(self) -> None:
        self._since: int | None = None
        self._last: float | None = None
        self._taken: tuple[deque[float], ...] = tuple(deque[float](maxlen=_SAMPLES) for _ in range(3))
        """Steps in which a snapshot was taken, the ones right after these, and all others."""
        self._recent: deque[float] = deque(maxlen=_SAMPLES)
        self._blocked: deque[float] = deque(maxlen=_SAMPLES)
        """Seconds from one snapshot to the next in which the trainer waited for the Checkpointer."""
        self._blocked_s: float | None = None

    def called(self, now: float) -> None:
        """`step` was called at `now`."""
        if self._last is not None:
            after = 2 if self._since is None else min(self._since, 2)
            self._taken[after].append(now - self._last)
            self._recent.append(now - self._last)
        self._last = now
        self._since = None if self._since is None else self._since + 1

    def snapshot(self, blocked_s: float) -> None:
        """This call takes a snapshot; until now the trainer has been blocked for so long in all."""
        self._since = 0
        if self._blocked_s is not None:
            self._blocked.append(blocked_s - self._blocked_s)
        self._blocked_s = blocked_s

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, snapshots or not; None before the second call."""
        return statistics.median(self._recent) if self._recent else None

    @property
    def cost_s(self) -> float | None:
        """Seconds that a snapshot costs the steps around it; None until enough of each kind were seen.

        That is what it blocks, and what else it adds as far as the steps' own noise does not explain it.
        """
        if min(len(taken) for taken in self._taken) < _ENOUGH:
            return None
        during, after, quiet = self._taken
        return max(statistics.median(self._blocked), _beyond_noise(during, quiet) + _beyond_noise(after, quiet))


class Planner:
    """Rank 0's part: from what was measured to the plan that all ranks follow."""

    def __init__(self, cadence: Cadence, failures: Failures) -> None:
        """`cadence`: Seconds or Auto; with Steps nothing needs to be planned."""
        self._cadence, self._failures = cadence, failures
        self._reviewed: int | None = None

    @staticmethod
    def start(cadence: Cadence) -> Plan:
        """Before anything was measured: `auto` leaves quiet steps between snapshots, the others take one and then see."""
        return Plan(1, _QUIET if isinstance(cadence, Auto) else STRIDE_MAX)

    def plan(self, current: Plan, at: tuple[int, float], last: tuple[int, float], meter: Meter, lag_s: float) -> Plan:
        """What to do from the next call on.

        `at` and `last` are this call and that of the last snapshot, each with its time. `lag_s`: how long sealing takes.
        """
        (call, now), (last_call, taken), step_s = at, last, meter.step_s
        if step_s is None:
            return current
        if isinstance(self._cadence, Seconds):
            left = self._cadence.seconds - (now - taken)
            return Plan(call + _calls(left, step_s), _calls(self._cadence.seconds, step_s))
        cost_s = meter.cost_s
        if cost_s is None or (self._reviewed is not None and call - self._reviewed < _REVIEW):
            return current
        self._reviewed = call
        stride = _calls(snapshot_interval_s(self._failures, cost_s=cost_s, lag_s=lag_s), step_s)
        return Plan(max(call + _QUIET, last_call + stride), stride)


def _beyond_noise(longer: Sequence[float], quiet: Sequence[float]) -> float:
    """By how much the medians differ, or 0 where twice their standard error covers it."""
    spread = [statistics.median(abs(s - statistics.median(of)) for s in of) for of in (longer, quiet)]
    error = math.hypot(*(_MEDIAN_ERROR * s / math.sqrt(len(of)) for s, of in zip(spread, (longer, quiet), strict=True)))
    difference = statistics.median(longer) - statistics.median(quiet)
    return difference if difference > 2.0 * error else 0.0


def calls_to_round(step_s: float | None) -> int:
    """After how many calls the ranks agree anew."""
    return 1 if step_s is None else min(_calls(ROUND_S, step_s), ROUND_CALLS_MAX)


def _calls(seconds: float, step_s: float) -> int:
    """So many seconds in calls of `step`, one at least."""
    if not math.isfinite(seconds):
        return STRIDE_MAX
    return max(1, min(round(seconds / max(step_s, 1e-6)), STRIDE_MAX))
