"""Sightings on the wire: they arrive as they were, and none that no daemon would send becomes a value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ckptd.ckpt.errors import PeerError
from ckptd.ckpt.sighting import DIGESTS_MAX, Answer, Decided, Group, Sighting, Stamps, runs_of
from ckptd.ckpt.wire import ckptd_pb2 as pb
from ckptd.ckpt.wire.sightings import answer_in, answer_out
from ckptd.ckpt.wire.translate import letter_in, letter_out

WHOLE = Sighting(
    node=1, boot="b", epoch=2, world=8, at=1.5, digests=b"d" * 10, samples=b"s", groups=(Group(7, ((0, 2, 4),)),),
    stamps=Stamps(1.0, 2.0, 3.0), decided=Decided(2, 40, "parity"), stacks=((3, "in f"),), remarks=("blind",),
    sick="ECC",
)  # fmt: skip


def test_a_sighting_arrives_as_it_was() -> None:
    """With everything in it, and with nothing."""
    assert letter_in(letter_out(WHOLE), 2) == WHOLE
    empty = Sighting(node=0, boot="b")
    assert letter_in(letter_out(empty), 2) == empty


def test_a_node_of_eight_ranks_says_it_in_4_kb() -> None:
    """What docs/watching.md reckons with: eight ranks in eight groups each, and the samples of a full second."""
    from ckptd.daemon.watch.observations import GroupProgress, Kind, PairSample, RankDigest, pack, pack_samples

    groups = tuple(Group(1 << 30 | n, ((n, 8, 1000),)) for n in range(15))
    progress = tuple(GroupProgress(1 << 30 | n, 1_000_000, 1_000_000, 1 << 31) for n in range(8))
    ranks = [RankDigest(rank, step=1_000_000, own_s=(0.1,) * 32, groups=progress) for rank in range(8)]
    samples = pack_samples([PairSample(0, node, Kind.PROBE_FAR, 0.001) for node in range(11)])
    seen = Sighting(
        node=999, boot="b" * 16, epoch=9, world=8000, at=1e9, digests=pack(ranks).tobytes(), samples=samples.tobytes(),
        groups=groups, stamps=Stamps(1e9, 1e9, 1e9),
    )  # fmt: skip
    assert len(letter_out(seen)) < 4096


@pytest.mark.parametrize(
    "wrong",
    [
        {"digests": b"x" * (DIGESTS_MAX + 1)}, {"samples": b"x" * 9999}, {"boot": ""}, {"at": math.nan}, {"at": -1.0},
        {"node": 2}, {"world": 1 << 30}, {"remarks": ["x"] * 99}, {"remarks": ["x" * 999]}, {"sick": "x" * 999},
        {"stacks": [pb.Stack(rank=1, text="x" * 9999)]}, {"stacks": [pb.Stack()] * 99},
        {"stamps": pb.Stamps(sent=math.inf)}, {"decided": pb.Decided(epoch=1, step=1, source="the moon")},
        {"groups": [pb.WatchedGroup(runs=[pb.Run(first=0, stride=1, count=9)])]},
        {"groups": [pb.WatchedGroup(runs=[pb.Run(first=0, stride=0, count=2)])]},
        {"groups": [pb.WatchedGroup(runs=[pb.Run(first=0, stride=1, count=1 << 31)])]},
        {"groups": [pb.WatchedGroup(runs=[pb.Run(count=1, stride=1)] * 99)]}, {"groups": [pb.WatchedGroup()] * 999},
    ],
    ids=range(19),
)  # fmt: skip
def test_a_sighting_that_no_daemon_would_send_is_refused(wrong: dict[str, Any]) -> None:
    """Too much of anything, numbers that can't be, and nodes that are not of the job."""
    message = pb.Sighting(**{"node": 1, "boot": "b", "world": 8, **wrong})
    with pytest.raises(PeerError):
        letter_in(pb.Letter(sighting=message).SerializeToString(), 2)


def test_an_answer_arrives_as_it_was() -> None:
    """And one that names nodes of another job, too many ranks, or no time, does not."""
    answer = Answer(1.5, (1,), (3, 4))
    assert answer_in(answer_out(answer), 2) == answer
    for wrong in (Answer(math.nan), Answer(1.0, (2,)), Answer(1.0, (), tuple(range(99)))):
        with pytest.raises(PeerError):
            answer_in(answer_out(wrong), 2)
    with pytest.raises(PeerError):
        answer_in(b"\xff\xff", 2)


@pytest.mark.parametrize(
    ("members", "runs"),
    [
        ((), ()), ((5,), ((5, 1, 1),)), (range(1000), ((0, 1, 1000),)), (range(3, 64, 8), ((3, 8, 8),)),
        ((0, 1, 7, 8, 9), ((0, 1, 1), (1, 6, 1), (7, 1, 3))), ((4, 2), ((2, 2, 2),)),
    ],
    ids=range(6),
)  # fmt: skip
def test_members_become_runs_and_back(members: Any, runs: tuple[tuple[int, int, int], ...]) -> None:
    """A mesh's groups are one run each, however many members they have."""
    found = runs_of(members)
    assert Group(0, found).members == sorted(members)
    assert len(found) <= max(1, len(runs)) or found == runs
