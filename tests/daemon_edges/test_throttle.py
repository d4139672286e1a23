"""The caps of the data plane, with simulated time; and that those who wait are let go."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.ckpt.model import PIECE
from ckptd.daemon import throttle as throttles
from ckptd.daemon.throttle import Throttle, TokenBucket

amounts = st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 2.0)), min_size=1, max_size=50)


@given(st.floats(0.5, 100.0), st.floats(0.0, 20.0), amounts)
def test_the_rate_is_kept(rate: float, burst: float, taken: list[tuple[float, float]]) -> None:
    """Whatever is asked for and whenever: nothing is let through before the rate, after one burst, allows it."""
    bucket, now, total, origin = TokenBucket(rate, burst), 100.0, 0.0, 100.0
    for amount, later in taken:
        now += later
        total += amount
        through = now + bucket.take(amount, now)
        assert total <= burst + rate * (through - origin) + 1e-6 * (1 + total)


@given(st.floats(0.5, 100.0), amounts)
def test_nobody_waits_longer_than_needed(rate: float, taken: list[tuple[float, float]]) -> None:
    """One after the other, each waits just until the debts before it and its own are paid."""
    bucket, now, free_at = TokenBucket(rate, 0.0), 0.0, 0.0
    for amount, later in taken:
        now += later
        free_at = max(free_at, now) + amount / rate
        assert now + bucket.take(amount, now) == pytest.approx(free_at, abs=1e-6)


def test_a_burst_is_not_saved_up_for_ever() -> None:
    """After a long pause one burst passes at once, and not what the pause would add up to."""
    bucket = TokenBucket(10.0, 5.0)
    assert bucket.take(5.0, 0.0) == 0.0
    assert bucket.take(5.0, 1e6) == 0.0
    assert bucket.take(5.0, 1e6) == 0.5


def test_time_that_stands_still_gives_nothing() -> None:
    """Two who come at the same moment, or whose clocks were read in the wrong order, share what is there."""
    bucket = TokenBucket(1.0, 1.0)
    assert bucket.take(1.0, 10.0) == 0.0
    assert bucket.take(1.0, 10.0) == 1.0
    assert bucket.take(1.0, 9.0) == 2.0


class SimulatedTime:
    """Stands for the `time` module: waiting moves it."""

    def __init__(self) -> None:
        self.now, self.worked = 100.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.worked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimulatedTime:
    made = SimulatedTime()
    monkeypatch.setattr(throttles, "time", made)
    return made


def sleeping(throttle: Throttle, clock: SimulatedTime) -> None:
    """Waiting moves the simulated time instead."""

    def wait(timeout: float) -> bool:
        clock.now += timeout
        return False

    throttle._closed.wait = wait  # type: ignore[method-assign,assignment]


def test_the_bandwidth_cap(clock: SimulatedTime) -> None:
    """At 10 MB/s, 20 MB in grains take two seconds less the burst."""
    throttle = Throttle(bandwidth_bytes_s=10_000_000)
    sleeping(throttle, clock)
    waited = sum(throttle.bytes(100_000) for _ in range(200))
    assert waited == pytest.approx(1.75)
    assert clock.now == pytest.approx(101.75)


def test_the_cpu_cap(clock: SimulatedTime) -> None:
    """With half a core, work of 10 ms at a time is done half of the time."""
    throttle = Throttle(cpu_share=0.5)
    sleeping(throttle, clock)
    for _ in range(1000):
        with throttle.work():
            clock.worked += 0.01
            clock.now += 0.01
    assert clock.worked / (clock.now - 100.0) == pytest.approx(0.5, abs=0.02)


def test_work_that_fails_counts_too(clock: SimulatedTime) -> None:
    """An error passes through, and the time it took is owed like any other."""
    throttle = Throttle(cpu_share=0.1)
    sleeping(throttle, clock)

    def fail() -> None:
        with throttle.work():
            clock.worked += 1.0
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert clock.now > 109.0


def test_without_caps_nobody_waits(clock: SimulatedTime) -> None:
    """0 is no cap; requests have their full size then."""
    throttle = Throttle()
    assert throttle.bytes(10**15) == 0.0
    with throttle.work():
        clock.worked += 1e9
    assert clock.now == 100.0
    assert throttle.grain * PIECE == 16 << 20


@pytest.mark.parametrize(("rate", "pieces"), [(1 << 20, 1), (16 << 20, 8), (100 << 20, 50), (10 << 30, 64)])
def test_requests_shrink_under_a_cap(rate: int, pieces: int) -> None:
    """An eighth of a second's worth at a time, never less than a piece and never more than 16 MiB."""
    assert Throttle(bandwidth_bytes_s=rate).grain == pieces


def test_closing_lets_everyone_go() -> None:
    """A stop of the daemon does not wait for a cap."""
    throttle = Throttle(bandwidth_bytes_s=1)
    thread = threading.Thread(target=throttle.bytes, args=(10**9,))
    thread.start()
    throttle.close()
    thread.join(20.0)
    assert not thread.is_alive()
