"""The nodes' clocks, as the letters between them show: never further from the truth than is said."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.watch.clocks import DRIFT, Clocks
from ckptd.daemon.watch.observations import Exchange

way = st.floats(1e-4, 5.0)


def exchange(ahead_s: float, sent: float, there_s: float, back_s: float) -> Exchange:
    """A letter that is answered at once by a node whose clock is ahead."""
    heard = sent + there_s + ahead_s
    return Exchange(sent, heard, heard + 0.001, sent + there_s + 0.001 + back_s)


@given(st.floats(-1e4, 1e4), st.lists(st.tuples(way, way), min_size=1, max_size=5))
def test_the_truth_is_within_what_is_said(ahead_s: float, ways: list[tuple[float, float]]) -> None:
    """However unlike the ways of letters and answers are; the best exchange counts."""
    clocks, now = Clocks(), 0.0
    for there_s, back_s in ways:
        assert clocks.hear(3, exchange(ahead_s, now, there_s, back_s))
        now += 10.0
    offset = clocks.offset(3, now)
    assert offset is not None
    assert abs(offset.ahead_s - ahead_s) <= offset.error_s + 1e-6
    assert offset.error_s <= min(there_s + back_s for there_s, back_s in ways) / 2 + 10.0 * len(ways) * DRIFT + 1e-6
    assert clocks.ours(3, 500.0 + ahead_s, now) == pytest.approx((500.0 + ahead_s - offset.ahead_s, offset.error_s))


def test_a_short_way_counts_until_it_is_old() -> None:
    """Clocks drift: after an hour a worse exchange is worth more."""
    clocks = Clocks()
    clocks.hear(1, exchange(2.0, 0.0, 0.001, 0.001))
    clocks.hear(1, exchange(2.1, 10.0, 0.5, 0.1))
    early = clocks.offset(1, 10.0)
    assert early is not None
    assert early.ahead_s == pytest.approx(2.0)
    clocks.hear(1, exchange(2.2, 3600.0, 0.1, 0.1))
    late = clocks.offset(1, 3600.2)
    assert late is not None
    assert late.ahead_s == pytest.approx(2.2)


@pytest.mark.parametrize(
    "stamps", [Exchange(5.0, 1.0, 2.0, 4.0), Exchange(0.0, 2.0, 1.0, 9.0), Exchange(0.0, math.nan, 1.0, 2.0)]
)
def test_stamps_that_cannot_be_are_forgotten(stamps: Exchange) -> None:
    """An answer before its question tells nothing of a clock, and an unknown clock is said to be unknown."""
    clocks = Clocks()
    assert not clocks.hear(1, stamps)
    assert clocks.offset(1, 10.0) is None
    assert clocks.ours(1, 5.0, 10.0) is None
