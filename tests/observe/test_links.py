"""The links of a node: probes over real range servers, rates of reads, and what a cut costs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from tests.cluster import until

from ckptd.daemon.observe.links import EVERY_S, MIB, Links, Neighbours
from ckptd.daemon.range_server import RangeServer
from ckptd.daemon.ranges import Member
from ckptd.daemon.transfers import Transfers
from ckptd.daemon.transport import Endpoint, Holder
from ckptd.daemon.watch.observations import Kind, PairSample

SECRET = b"s" * 32


@pytest.fixture
def server() -> Iterator[RangeServer]:
    """Node 1 serves ranges, and holds nothing."""
    holder = Holder(lambda *_: None, lambda _: None, lambda *_: None)
    made = RangeServer("127.0.0.1", holder, Member(job="j", node=1, secret=SECRET))
    yield made
    made.close()


@pytest.fixture
def transfers() -> Transfers:
    return Transfers()


@pytest.fixture
def links(transfers: Transfers) -> Iterator[Links]:
    made = Links(Member(job="j", node=0, secret=SECRET), transfers)
    yield made
    made.close()


def around(
    server: RangeServer, *, partners: tuple[int, ...] = (1,), domains: dict[int, str] | None = None
) -> Neighbours:
    return Neighbours({1: Endpoint(1, "127.0.0.1", server.port)}, partners, domains or {})


def gathered(links: Links, where: Neighbours, now: float, asked: tuple[int, ...] = ()) -> list[PairSample]:
    """Look once, and again without any time passing until something has come."""
    found = links.look(where, asked, now)

    def come() -> list[PairSample]:
        found.extend(links.look(where, (), now))
        return found

    return until(come, "samples")


def test_a_partner_is_probed_at_intervals(links: Links, server: RangeServer) -> None:
    """The round trip is measured by who receives; no new probe is made before its time, and the connection is used again."""
    first = gathered(links, around(server), 0.0)
    assert [(s.receiver, s.sender, s.kind) for s in first] == [(0, 1, Kind.PROBE_NEAR), (1, 0, Kind.LOST)]
    assert 0.0 < first[0].cost < 1.0
    assert first[1].cost == 0
    assert links.look(around(server), (), EVERY_S - 0.1) == []
    assert gathered(links, around(server), EVERY_S)
    assert server.connections == 1


def test_others_are_probed_when_the_judge_asks(links: Links, server: RangeServer) -> None:
    """A node that is no partner is left alone until then; between two domains the probe is of another kind."""
    far = around(server, partners=(), domains={0: "rack-a", 1: "rack-b"})
    assert links.look(far, (), 0.0) == links.look(far, (), 100.0) == []
    found = gathered(links, far, 100.0, asked=(1, 0, 7))
    assert [(s.sender, s.kind) for s in found] == [(1, Kind.PROBE_FAR), (0, Kind.LOST)]


def test_a_node_that_is_gone_costs_infinitely_much(links: Links, server: RangeServer) -> None:
    """Nothing comes from it any more: that is a sample too, and also when the ledger does not name it any longer."""
    where = around(server)
    gathered(links, where, 0.0)
    server.close()
    found = gathered(links, Neighbours({}, (1,), {}), EVERY_S)
    assert [s.cost for s in found] == [math.inf]


def test_the_work_s_own_reads_are_samples(links: Links, transfers: Transfers) -> None:
    """Their rate once a MiB has come, and each that was given up."""
    nobody = Neighbours({}, (), {})
    transfers.read(1, MIB // 2, 0.1, 0.0)
    assert links.look(nobody, (), 0.0) == []
    transfers.read(1, MIB * 3 // 2, 0.3, 0.0)
    (sample,) = links.look(nobody, (), 1.0)
    assert (sample.sender, sample.kind) == (1, Kind.READ_NEAR)
    assert sample.cost == pytest.approx(0.2)
    transfers.failed(1)
    assert links.look(nobody, (), 2.0) == [PairSample(0, 1, Kind.READ_NEAR, math.inf)]
    assert links.look(nobody, (), 3.0) == []
