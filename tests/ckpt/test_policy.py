"""How often: what may be asked for, and that the chosen intervals lose the least time."""

from __future__ import annotations

import math

import pytest

from ckptd.ckpt.errors import UsageError
from ckptd.ckpt.policy import (
    CORRELATED,
    DISTURBS,
    LOSES_MEMORY,
    PERSIST_MIN_S,
    Auto,
    Cadence,
    Failures,
    Seconds,
    Steps,
    Tier,
    cadence_of,
    daly_s,
    lost_share,
    persist_interval_s,
    snapshot_interval_s,
    young_s,
)

HOUR = 3600.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, Steps(1)),
        ("500", Steps(500)),
        (2**53, Steps(2**53)),
        ("90s", Seconds(90.0)),
        ("5min", Seconds(300.0)),
        (" 1.5 h ", Seconds(5400.0)),
        ("500ms", Seconds(0.5)),
        ("auto", Auto()),
    ],
)
def test_what_may_be_asked_for(value: int | str, expected: Cadence) -> None:
    """A number of steps, a time with its unit, or auto."""
    assert cadence_of(value, "every") == expected


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, "", "0", "0s", "-5s", "5 m", "s", "often"])
def test_what_may_not(value: object) -> None:
    """Anything else is named with what was expected."""
    with pytest.raises(UsageError, match=r"found every=.*, expected a number of steps from 1 on, a time such as '90s'"):
        cadence_of(value, "every")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["1e3s", "nan", "inf", "٣", "9" * 30, "1" * 11 + "s", 2**53 + 1])
def test_numbers_out_of_bounds(value: int | str) -> None:
    """Nothing that a float or a step can't hold, and no digits of other scripts."""
    with pytest.raises(UsageError, match="persist_every"):
        cadence_of(value, "persist_every")


@pytest.mark.parametrize("cost_s", [0.001, 1.0, 60.0])
@pytest.mark.parametrize("mean_s", [14 * 60.0, 3.09 * HOUR])
def test_young_is_the_least_of_what_is_lost(cost_s: float, mean_s: float) -> None:
    """No other interval of a fine grid loses less; at the optimum snapshots and work done again cost the same."""
    tier = Tier(cost_s=cost_s, rate=1.0 / mean_s)
    best = young_s(cost_s, 1.0 / mean_s)
    assert best == pytest.approx(math.sqrt(2.0 * cost_s * mean_s))
    least = lost_share([tier], [best])
    assert least == pytest.approx(2.0 * cost_s / best)
    assert all(lost_share([tier], [best * 1.02**k]) >= least for k in range(-200, 201))


@pytest.mark.parametrize(
    ("cost_s", "mean_s", "expected"), [(60.0, 3.09 * HOUR, 1116.0), (1.0, 3.09 * HOUR, 149.0), (0.02, 840.0, 5.8)]
)
def test_daly_agrees_with_the_table(cost_s: float, mean_s: float, expected: float) -> None:
    """Published examples: between two snapshots, the time of one included or not, to a few per cent."""
    assert daly_s(cost_s, 1.0 / mean_s) - cost_s == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("cost_s", [1.0, 60.0, 300.0])
def test_daly_is_the_least_of_the_exact_time(cost_s: float) -> None:
    """Against the exact expectation for exponential failures, also where a snapshot costs much of the time between them."""
    mean_s = 840.0

    def exact(interval_s: float) -> float:
        return math.expm1(interval_s / mean_s) / (interval_s - cost_s)

    chosen = exact(daly_s(cost_s, 1.0 / mean_s))
    best = min(exact(cost_s + 1.0 + 0.5 * k) for k in range(10_000))
    assert chosen <= best * 1.001


def test_without_failures_nothing_is_worth_a_snapshot() -> None:
    """And where failures are all there is, nothing is worth waiting for longer than they last."""
    assert young_s(1.0, 0.0) == daly_s(1.0, 0.0) == math.inf
    assert daly_s(1000.0, 1.0 / 100.0) == 1100.0


def test_a_tier_is_not_used_faster_than_it_takes() -> None:
    """Where snapshots cost nothing, the time until one is safe decides."""
    assert Tier(cost_s=0.0, rate=1e-3, lag_s=2.5).interval_s == 2.5


def test_tiers_add_up() -> None:
    """Each tier is at its best by itself: no pair of other intervals loses less."""
    tiers = [Tier(cost_s=0.02, rate=1e-4, lag_s=1.0), Tier(cost_s=5.0, rate=1e-6, lag_s=60.0)]
    best = [tier.interval_s for tier in tiers]
    least = lost_share(tiers, best)
    for a in range(-10, 11):
        for b in range(-10, 11):
            others = [max(best[0] * 1.3**a, 1.0), max(best[1] * 1.3**b, 60.0)]
            assert lost_share(tiers, others) >= least * 0.9999


def test_which_failures_need_storage() -> None:
    """Without parity all that take the memory; with it those of many hosts at once, and m + 1 in one window, which are rarer
    with each m."""
    bare = Failures(mtbf_node_s=1e7, nodes=1)
    assert bare.beyond_memory == pytest.approx(LOSES_MEMORY / 1e7)
    one, two = (Failures(mtbf_node_s=1e6, nodes=64, parity=m) for m in (1, 2))
    assert one.rate == 64 / 1e6
    assert one.within_memory + one.beyond_memory == pytest.approx(one.rate)
    assert one.beyond_memory > two.beyond_memory >= one.rate * CORRELATED
    # Two of eight within a window of length w: 28 pairs, each at rate 2 w r r, halved for the order.
    lost = 600.0 * LOSES_MEMORY / 1e6
    assert one.beyond_memory - one.rate * CORRELATED == pytest.approx(8 * 28 * lost**2 / 600.0, rel=0.01)


def test_failures_never_exceed_themselves() -> None:
    """Nodes that fail all the time still fail no more often than they do."""
    worst = Failures(mtbf_node_s=1.0, nodes=16, parity=1)
    assert 0.0 <= worst.within_memory <= worst.rate


def test_snapshots_come_as_often_as_they_are_cheap() -> None:
    """A cheap one at once after the other, a dear one rarely, and never faster than sealing."""
    job = Failures(nodes=2048, parity=2)
    assert snapshot_interval_s(job, cost_s=0.0, lag_s=0.0) == 0.0
    assert snapshot_interval_s(job, cost_s=0.0, lag_s=3.0) == 3.0
    cheap, dear = (snapshot_interval_s(job, cost_s=cost_s, lag_s=0.1) for cost_s in (0.005, 5.0))
    assert dear == pytest.approx(cheap * math.sqrt(1000.0), rel=0.02)


def test_persisting_follows_its_time_and_its_need() -> None:
    """At least a minute apart, storage is free for half of the time, and parity makes it rarer."""
    alone = Failures(nodes=1)
    protected = Failures(nodes=64, parity=2)
    assert persist_interval_s(alone, 0.0) == PERSIST_MIN_S
    assert persist_interval_s(Failures(mtbf_node_s=60.0), 500.0) == 1000.0
    assert persist_interval_s(alone, 10.0) == pytest.approx(young_s(DISTURBS * 10.0, alone.beyond_memory), rel=0.01)
    assert persist_interval_s(protected, 10.0) > persist_interval_s(Failures(nodes=64), 10.0)
