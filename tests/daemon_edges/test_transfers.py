"""The record of transfers: what `ckptd status` shows of the network, in bounded memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ckptd.daemon import transfers
from ckptd.daemon.transfers import Transfers


def test_both_directions_are_kept_apart() -> None:
    """What was read from a node and what was sent to it add up by themselves; nodes come in order."""
    record = Transfers()
    record.sent(7, 1000, 0.5)
    record.read(2, 300, 0.1, 0.01)
    record.read(2, 700, 0.4, 0.01)
    record.failed(2)
    two, seven = record.to_json()
    assert (two["node"], seven["node"]) == (2, 7)
    assert two["read"] == {
        "bytes": 1000, "seconds": 0.5, "count": 2, "failed": 1, "first_s": 0.01,
        "recent_bytes_s": pytest.approx(1957, abs=1),
    }  # fmt: skip
    assert two["sent"]["count"] == seven["read"]["count"] == 0
    assert (seven["sent"]["bytes"], seven["sent"]["recent_bytes_s"]) == (1000, 2000)


def test_the_recent_rate_follows() -> None:
    """A link that has become ten times slower is seen as slow after a dozen transfers, whatever it was for hours."""
    record = Transfers()
    for _ in range(1000):
        record.read(1, 1000, 0.001, 0.001)
    for _ in range(12):
        record.read(1, 1000, 0.01, 0.1)
    (row,) = record.to_json()
    assert row["read"]["recent_bytes_s"] == pytest.approx(100_000, rel=0.1)
    assert row["read"]["first_s"] == pytest.approx(0.1, rel=0.1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that somebody made up do not fill the memory; those that are known go on counting."""
    monkeypatch.setattr(transfers, "PEERS_MAX", 3)
    record = Transfers()
    for node in (*range(10), 0):
        record.sent(node, 1, 1.0)
    assert [(row["node"], row["sent"]["bytes"]) for row in record.to_json()] == [(0, 2), (1, 1), (2, 1)]


def test_threads_do_not_lose_counts() -> None:
    """Many transfers at a time are all counted."""
    record = Transfers()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: record.sent(1, 1, 0.0), range(2000)))
    assert record.to_json()[0]["sent"]["count"] == 2000
