"""Which calls of `step` take a snapshot, and when to take the last one: the same calls on every rank.

Ranks agree in rounds, about one a second: at a call that all of them know, each starts a small reduction in the background,
and at the next call each reads what came of it. By then every rank has finished an update in between, so it has come to
the round too, and nobody waits. Where neither the cadence nor SIGTERM needs agreement there are no rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ckptd.ckpt.pace import Meter, Plan, Planner, calls_to_round
from ckptd.ckpt.policy import Auto, Cadence, Failures, Steps
from ckptd.integrations.journal import logger
from ckptd.integrations.ranks import Ranks

LAG_EVERY_S = 10.0
"""How often the daemon is asked how long sealing takes."""
OURS = "ckptd"
"""Describes the process group of the rounds: whoever looks at the training's collectives leaves it out."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a call of `step` is to do."""

    due: bool = False
    last: bool = False
    """A rank was told to end: this is the step that all of them leave behind."""


class Rounds:
    """Used in the trainer's thread, at every call of `step`, by every rank alike."""

    def __init__(
        self,
        cadence: Cadence,
        ranks: Ranks,
        *,
        failures: Callable[[], Failures],
        ending: Callable[[], bool] | None,
        lag_s: Callable[[], Future[float | None]],
        blocked_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ending`: whether this rank was told to end; None where that is not listened for.

        `failures` and `lag_s` (what the daemon says of the sealing lag) are asked on rank 0, once it is needed; `blocked_s`
        is for how long the Checkpointer has made the trainer wait so far.
        """
        self._cadence, self._ranks, self._clock = cadence, ranks, clock
        self._failures, self._ending, self._ask_lag = failures, ending, lag_s
        self._blocked_s = blocked_s
        self._planner: Planner | None = None
        self._meter = Meter()
        self._taken: tuple[int, float] | None = None
        """The call that took the last snapshot, and when."""
        self._plan = Planner.start(cadence)
        self._calls = 0
        self._next = 1
        self._group: Any = None
        self._round: tuple[torch.Tensor, Any] | None = None
        self._needed = ending is not None or not isinstance(cadence, Steps)
        self._lag: Future[float | None] | None = None
        self._lag_due = 0.0
        self._lag_s = 0.0

    def turn(self, n: int) -> Turn:
        """`step(n)` was called: what it is to do. A collective of the first call, where there are rounds."""
        self._calls += 1
        now = self._clock()
        self._meter.called(now)
        last = self._read() if self._needed else False
        due = n % self._cadence.count == 0 if isinstance(self._cadence, Steps) else self._plan.is_due(self._calls)
        if due or last:
            self._meter.snapshot(self._blocked_s())
            self._taken = self._calls, now
        if self._needed and self._calls >= self._next:
            self._begin(now)
        return Turn(due or last, last)

    def _read(self) -> bool:
        """Take over what was agreed since the last call; return whether to end here."""
        if self._ranks.world == 1:
            return self._ends()
        if self._round is None:
            return False
        (agreed, work), self._round = self._round, None
        try:
            work.wait()
        except RuntimeError:
            # Peers are gone. The plan that stands is the one that they had, and the launcher will end this rank too.
            self._needed = False
            raise
        ending, first, stride, self._next = agreed.tolist()
        self._follow(Plan(first, stride))
        return bool(ending)

    def _follow(self, plan: Plan) -> None:
        if isinstance(self._cadence, Auto) and plan.stride != self._plan.stride and self._ranks.rank == 0:
            cost_s = self._meter.cost_s or 0.0
            logger.info(
                "ckptd: a snapshot costs %.1f ms of training; one is taken every %d steps", cost_s * 1e3, plan.stride
            )
        self._plan = plan

    def _begin(self, now: float) -> None:
        """Begin a round: rank 0 says what it has planned, every rank whether it was told to end."""
        following = self._calls + calls_to_round(self._meter.step_s)
        if self._ranks.world == 1:
            self._next = following
            self._follow(self._planned(now))
            return
        plan = self._planned(now) if self._ranks.rank == 0 else Plan(0, 0)
        said = [int(self._ends()), plan.first, plan.stride, following if self._ranks.rank == 0 else 0]
        values = torch.tensor(said, dtype=torch.int64)
        if (
            self._group is None
        ):  # one of its own, on CPUs: the training's may be on devices, which would have to be waited for
            self._group = dist.new_group(backend="gloo", group_desc=OURS)
        self._round = values, dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _ends(self) -> bool:
        return self._ending is not None and self._ending()

    def _planned(self, now: float) -> Plan:
        """What rank 0 would do from the next call on."""
        if isinstance(self._cadence, Steps) or self._taken is None:
            return self._plan
        if self._planner is None:
            self._planner = Planner(self._cadence, self._failures())
        if isinstance(self._cadence, Auto):
            self._look_at_lag(now)
        return self._planner.plan(self._plan, (self._calls, now), self._taken, self._meter, self._lag_s)

    def _look_at_lag(self, now: float) -> None:
        """Ask the daemon now and then how long sealing takes; its answer is taken when it is there."""
        if self._lag is not None and self._lag.done():
            if self._lag.exception() is None:  # a daemon that is gone is said elsewhere
                self._lag_s = self._lag.result() or self._lag_s
            self._lag = None
        if self._lag is None and now >= self._lag_due:
            self._lag, self._lag_due = self._ask_lag(), now + LAG_EVERY_S
