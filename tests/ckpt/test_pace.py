"""Plans of snapshots by time and by cost: a clock that tests move, and calls that they count."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from ckptd.ckpt.pace import ROUND_CALLS_MAX, STRIDE_MAX, Meter, Plan, Planner, calls_to_round
from ckptd.ckpt.policy import Auto, Cadence, Failures, Seconds

JOB = Failures(mtbf_node_s=1e6, nodes=100, parity=1)


def drive(
    cadence: Cadence,
    calls: int,
    step_s: Callable[[int], float],
    *,
    failures: Failures = JOB,
    lag_s: float = 0.0,
    blocked_s: float = 0.0,
) -> list[tuple[int, float]]:
    """Train for so many calls, each `step_s(calls since the last snapshot)` long; (call, time) of the snapshots."""
    planner, meter, plan = Planner(cadence, failures), Meter(), Planner.start(cadence)
    now, taken = 0.0, []
    for call in range(1, calls + 1):
        meter.called(now)
        if plan.is_due(call):
            taken.append((call, now))
            meter.snapshot(blocked_s * len(taken))
        plan = planner.plan(plan, (call, now), taken[-1], meter, lag_s)
        now += step_s(call - taken[-1][0])
    return taken


def gaps(taken: list[tuple[int, float]]) -> list[float]:
    times = [time for _, time in taken]
    return [after - before for before, after in pairwise(times)]


def test_a_plan_says_which_calls() -> None:
    """From the first on, every so many."""
    assert [call for call in range(12) if Plan(3, 4).is_due(call)] == [3, 7, 11]


def test_a_time_is_kept_to_the_nearest_step() -> None:
    """Every 10 s with steps of 3 s: the first at once, then each at most half a step off, also when steps change."""
    found = gaps(drive(Seconds(10.0), 100, lambda _: 3.0))
    assert len(found) > 20
    assert all(abs(gap - 10.0) <= 1.5 for gap in found)
    slow = gaps(drive(Seconds(10.0), 10, lambda _: 30.0))
    assert slow[1:] == [30.0] * 7  # before the second call nothing is known


def test_cheap_snapshots_are_taken_at_every_step() -> None:
    """Where a snapshot adds nothing, `auto` soon takes one at each step, but for a few quiet ones that are measured."""
    taken = drive(Auto(), 400, lambda _: 0.1)
    late = [call for call, _ in taken if call > 100]
    assert len(late) >= 0.9 * 300


def test_dear_snapshots_are_taken_as_young_says() -> None:
    """One that adds 2 s to its step and 1 s to the next, at 10,000 s between failures: every 251 s, if Daly is right."""
    taken = drive(Auto(), 4000, lambda after: 1.0 + (2.0, 1.0, 0.0)[min(after, 2)])
    expected = (2.0 * 3.0 / JOB.within_memory) ** 0.5
    assert gaps(taken)[-1] == pytest.approx(expected, rel=0.05)


def test_noise_is_no_cost() -> None:
    """Steps that vary by a fifth say nothing against snapshots; what they block is known exactly, and counts."""
    rng = random.Random(5)
    noisy = [rng.gauss(0.1, 0.02) for _ in range(5000)]
    steps = iter(noisy)
    taken = drive(Auto(), 400, lambda _: next(steps))
    assert len([call for call, _ in taken if call > 100]) >= 0.9 * 300
    steps = iter(noisy)
    rare = gaps(drive(Auto(), 4000, lambda _: next(steps), blocked_s=0.05))
    assert rare[-1] == pytest.approx((2.0 * 0.05 / JOB.within_memory) ** 0.5, rel=0.2)


def test_sealing_bounds_auto() -> None:
    """More often than sealing takes there is nothing to gain: slots would be full."""
    taken = drive(Auto(), 400, lambda _: 0.1, lag_s=1.0)
    assert all(gap >= 0.999 for gap in gaps(taken)[-10:])


def test_costs_need_samples_of_each_kind() -> None:
    """Before there are enough steps with, right after and without a snapshot nothing is known."""
    meter = Meter()
    for call in range(14):
        meter.called(float(call))
        if call % 4 == 0:
            meter.snapshot(0.0)
        assert meter.cost_s is None
    meter.called(14.0)
    assert meter.cost_s == 0.0
    assert Meter().step_s is None


def test_rounds_are_a_second_apart() -> None:
    """In calls, at least one and not beyond count, and at once while nothing is known."""
    assert calls_to_round(None) == calls_to_round(5.0) == 1
    assert calls_to_round(0.02) == 50
    assert calls_to_round(0.0) == ROUND_CALLS_MAX


def test_without_failures_one_snapshot_is_enough() -> None:
    """No rate, no need: the interval is beyond all steps and fits a message."""
    never = Failures(mtbf_node_s=1e300)
    taken = drive(Auto(), 600, lambda after: 1.0 + (after == 0), failures=never)
    assert taken[-1][0] < 100
    assert STRIDE_MAX < 2**63
