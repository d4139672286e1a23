"""How faults are written, drawn and read from a campaign, and what is promised for each."""

from __future__ import annotations

from random import Random

import pytest

from ckptd.ckpt.errors import UsageError
from ckptd.daemon.drill.command import from_arguments
from ckptd.daemon.drill.faults import KINDS, Fault, campaign_from, draw, parse, promise


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("node=1", Fault("node", 1)),
        ("rank=2", Fault("rank", 2)),
        ("memory=0:2.5", Fault("memory", 0, 2.5)),
        ("disk=1", Fault("disk", 1, 4.0)),
        ("link=0-2:slow:3", Fault("link", 0, 3.0, 2, "slow")),
        ("link=2-1:corrupt", Fault("link", 2, 5.0, 1, "corrupt")),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, fault: Fault) -> None:
    """Each form of a fault; written out again it is read as the same."""
    found = parse(text, 3, Random(1))
    assert found == fault
    assert parse(str(found), 3, Random(2)) == found


def test_what_is_not_said_is_drawn_from_the_seed() -> None:
    """The same seed gives the same faults; other seeds others; a link has two ends."""
    texts = ["node", "rank", "link", "link:cut", "memory", "bits"]
    first = from_arguments(texts, 4, 1, 7).faults
    assert from_arguments(texts, 4, 1, 7).faults == first
    assert any(from_arguments(texts, 4, 1, seed).faults != first for seed in range(20))
    for fault in draw(Random(3), 4, 300):
        assert 0 <= fault.node < 4
        assert fault.kind != "link" or (fault.peer != fault.node and 0 <= fault.peer < 4)
    assert {fault.kind for fault in draw(Random(3), 4, 300)} == set(KINDS)
    assert "link" not in {fault.kind for fault in draw(Random(3), 1, 300)}
    assert [fault.kind for fault in from_arguments(["all"], 3, 1, 1).faults] == list(KINDS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("flood", "expected one of rank, daemon"),
        ("", "expected one of"),
        ("node=x", "expected one of"),
        ("node=3", "expected a node from 0 to 2"),
        ("node=-1", "expected one of"),
        ("node=1:5", "last for some seconds"),
        ("rank=1:cut", "only a link"),
        ("link=1-1", "two different nodes"),
        ("link=0-9", "two different nodes"),
        ("link=0-1:melt", "expected cut, slow, corrupt"),
        ("memory:600", "expected 0 to 60"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, problem: str) -> None:
    """With what was found and what is expected."""
    with pytest.raises(UsageError, match=problem):
        parse(text, 3, Random(1))


CAMPAIGN = """
nodes = 4
parity = 2
seed = 9

[[fault]]
kind = "node"
node = 3

[[fault]]
kind = "link"
node = 0
peer = 1
how = "slow"
seconds = 2

[[fault]]
kind = "rank"
count = 3
"""


def test_a_campaign_is_read() -> None:
    """The job's shape, the faults in their order, a repeated one as often as it says."""
    campaign = campaign_from(CAMPAIGN)
    assert (campaign.nodes, campaign.parity, campaign.seed) == (4, 2, 9)
    assert campaign.faults[:2] == (Fault("node", 3), Fault("link", 0, 2.0, 1, "slow"))
    assert [fault.kind for fault in campaign.faults[2:]] == ["rank"] * 3
    assert campaign_from(CAMPAIGN) == campaign


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("nodes = 4", "nodes = 9", "expected 1 to 8"),
        ("nodes = 4", "nodes = true", "expected a number"),
        ("nodes = 4", "knots = 4", "'knots' is not known"),
        ("parity = 2", "parity = 4", "expected 0 to 3"),
        ("seed = 9", "seed = -1", "expected a number"),
        ('kind = "node"', 'kind = "flood"', "expected one of"),
        ('kind = "node"', 'kind = ["node"]', "expected one of"),
        ("node = 3", "node = 4", "expected a node from 0 to 3"),
        ("node = 3", "seconds = 3", "only memory, disk, link"),
        ("node = 3", 'how = "cut"', "only a link"),
        ("peer = 1", "peer = 0", "two different nodes"),
        ('how = "slow"', 'how = "melt"', "expected cut, slow, corrupt"),
        ('how = "slow"', "how = 3", "expected cut, slow, corrupt"),
        ("seconds = 2", 'seconds = "2"', "a number of them"),
        ("seconds = 2", "seconds = nan", "expected 0 to 60"),
        ("count = 3", "count = 1.5", "expected a number"),
        ("[[fault]]", "[fault]", "campaign: "),
        ("nodes = 4", "nodes = ", "campaign: "),
    ],
)
def test_a_bad_campaign_is_refused(old: str, new: str, problem: str) -> None:
    """Nothing is guessed: what is unknown or impossible is named."""
    with pytest.raises(UsageError, match=problem):
        campaign_from(CAMPAIGN.replace(old, new))


def test_a_campaign_without_faults_is_refused() -> None:
    with pytest.raises(UsageError, match=r"one or more \[\[fault\]\]"):
        campaign_from("nodes = 3")


def test_what_is_promised_follows_from_fault_and_parity() -> None:
    """Only a lost node without parity, or with none to give it back, costs more than unsealed steps."""
    node, rank = Fault("node", 0), Fault("rank", 0)
    assert "parity" in (promise(node, 3, 1).sources or ())
    assert promise(node, 3, 0).sources == frozenset({"storage", "none"})
    assert promise(node, 1, 0).sources == frozenset({"storage", "none"})
    assert "own" in (promise(rank, 1, 0).sources or ())
    for kind in ("daemon", "memory", "disk", "link"):
        assert promise(Fault(kind, 0, peer=1), 3, 1).sources is None
