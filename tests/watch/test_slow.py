"""Slow ranks where few ranks show what is usual and a busy machine makes their steps differ much."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from ckptd.daemon.watch.clocks import Clocks
from ckptd.daemon.watch.fleet import Fleet
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import OWN_KEPT, NodeReport, RankDigest, pack
from ckptd.daemon.watch.slow import SlowRanks
from ckptd.daemon.watch.verdicts import Verdict

WORLD = 4
WORK_S, JITTER, NATURE = 0.3, 0.15, 0.03
"""As seen of four trainers on two cores: one step's own work beside another's, and one rank's beside another's."""
STRUCK_AT = 30
STEPS = 60

Own = npt.NDArray[np.float64]


def works(seed: int, slow: float = 1.0) -> Own:
    """The own seconds of all ranks, shape (steps, ranks); rank 2 takes `slow` times its usual from STRUCK_AT on."""
    rng = np.random.default_rng(seed)
    own: Own = WORK_S * np.exp(rng.normal(0.0, JITTER, (STEPS, WORLD)) + rng.normal(0.0, NATURE, WORLD))
    own[STRUCK_AT:, 2] *= slow
    return own


def told_up_to(own: Own, step: int, rank: int, lag: int) -> tuple[float, ...]:
    """What a rank tells at a step, newest first, whose recorder answers `lag` steps late."""
    newest = own[: step - lag, rank][::-1][: OWN_KEPT - lag]
    return (math.nan,) * lag + tuple(map(float, newest))


def judged(own: Own, lag: Callable[[int], int] = lambda rank: 0) -> list[tuple[int, Verdict]]:
    """Every verdict about ranks, with the step at which it was spoken."""
    fleet = Fleet(Layout(list(range(WORLD)), {}), 1, 0.0, Limits())
    slow, clocks = SlowRanks(WORLD, Limits()), Clocks()
    found = []
    for step in range(1, STEPS + 1):
        now = float(step)
        digests = [
            RankDigest(rank, step=step, step_s=0.5, own_s=told_up_to(own, step, rank, lag(rank)))
            for rank in range(WORLD)
        ]
        fleet.hear([NodeReport(rank, pack([digest])) for rank, digest in enumerate(digests)], now, clocks)
        found += [(step, verdict) for verdict in slow.judge(fleet, now) if verdict.ranks]
    return found


@pytest.mark.parametrize("seed", range(8))
def test_one_of_four_that_works_half_as_long_again_is_named_within_twenty_steps(seed: int) -> None:
    """Single steps hardly tell: the medians of ten do, beside what they were."""
    found = judged(works(seed, slow=1.5))
    assert found
    assert {verdict.ranks for _, verdict in found} == {(2,)}
    assert STRUCK_AT < found[0][0] <= STRUCK_AT + 20


@pytest.mark.parametrize("seed", range(8))
def test_of_four_healthy_ones_nobody_is_named(seed: int) -> None:
    assert judged(works(seed)) == []


def test_who_has_always_been_later_is_not_slow() -> None:
    """By as much as the one above: a rank with more to do than the others."""
    own = works(1)
    own[:, 3] *= 1.2
    assert judged(own) == []


def test_one_that_tells_of_its_steps_late_is_judged_late() -> None:
    """A slow trainer's recorder is slow to answer: the newest steps of all are compared that it has told of, too."""
    lagging = judged(works(3, slow=2.0), lag=lambda rank: 6 * (rank == 2))
    assert lagging
    assert lagging[0][0] == judged(works(3, slow=2.0))[0][0] + 6
