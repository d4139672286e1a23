"""A link that loses segments is named by the kernels' own counts, though most of what goes over it is as fast as ever."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from ckptd.daemon.watch.judge import Judge
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.losses import Losses
from ckptd.daemon.watch.observations import (
    GroupProgress,
    Kind,
    NodeReport,
    PairSample,
    RankDigest,
    pack,
    pack_samples,
)
from ckptd.daemon.watch.verdicts import Syndrome, Verdict

NODES = 4
PAIRS = [(receiver, sender) for receiver in range(NODES) for sender in range(NODES) if receiver != sender]
MOMENT_S = Limits().lost_apart_s
NEEDED = Limits().lost_of


def second(losses: Losses, now: float, lost: Iterable[tuple[int, int]] = ()) -> list[Verdict]:
    """All links are probed, and of these (receiver, sender) a segment is lost; what is said then."""
    gone = set(lost)
    for node in range(NODES):
        samples = [PairSample(r, s, Kind.LOST, float((r, s) in gone)) for r, s in PAIRS if s == node]
        losses.hear([NodeReport(node, samples=pack_samples(samples))], now)
    return losses.verdicts(now)


def moments(*lost: Iterable[tuple[int, int]]) -> list[list[Verdict]]:
    """What is said at each moment in which something is lost, so far apart that each counts; and half a minute before them
    nothing is lost."""
    losses, began, said = Losses(NODES, Limits()), 130, []
    for now in range(100, began + int(MOMENT_S) * (len(lost) - 1) + 1):
        number, between = divmod(now - began, int(MOMENT_S))
        gone = lost[number] if number >= 0 and not between else ()
        found = second(losses, float(now), gone)
        said += [found] if gone else []
    return said


def wires(node: int) -> list[tuple[int, int]]:
    return [pair for pair in PAIRS if node in pair]


def test_a_link_that_loses_again_and_again_is_named() -> None:
    """Whichever of its ends it was that lost something; before that it is only suspected."""
    said = moments(*([(1, 2)], [(2, 1)]) * (NEEDED // 2))
    assert not any(said[:-1])
    (found,) = said[-1]
    assert (found.syndrome, found.nodes) == (Syndrome.COMMUNICATION_SLOW, (1, 2))
    assert found.links == ((1, 2), (2, 1))
    assert f"nodes 1 and 2 send each other some is lost: {NEEDED} times in 18 s and 37 probes" in found.reason


def test_what_is_lost_in_one_burst_counts_once() -> None:
    """Traffic of others pushes segments out for seconds, on any link."""
    losses = Losses(NODES, Limits())
    said = [second(losses, 100.0 + number / NEEDED, [(1, 2)]) for number in range(int(MOMENT_S) * NEEDED)]
    assert not any(said)
    assert losses.suspects(100.0 + MOMENT_S) == ((1, 2), (2, 1))


def test_old_losses_are_forgotten() -> None:
    losses, limits = Losses(NODES, Limits()), Limits()
    for number in range(NEEDED):
        found = second(losses, 100.0 + number * limits.frame_s / (NEEDED - 1) * 1.1, [(1, 2)])
    assert not found
    assert not losses.suspects(1000.0)


def test_a_side_that_loses_is_named_and_not_its_links() -> None:
    """Its links do not show it at once: meanwhile none of them is blamed for it."""
    said = moments(*[[(2, 1)]] * 2, *[wires(1)] * NEEDED)
    assert [verdict.nodes for verdicts in said for verdict in verdicts] == [(1,)]
    assert not said[-1][0].links
    assert "over 3 of its 3 links" in said[-1][0].reason


def test_of_two_sides_that_lose_both_are_named_and_nobody_else() -> None:
    """Two of three links of either other node are bad by them."""
    said = moments(*[wires(1) + wires(3)] * NEEDED)
    assert sorted(verdict.nodes for verdict in said[-1]) == [(1,), (3,)]


def test_two_links_apart_are_two_verdicts() -> None:
    said = moments(*[[(1, 2), (0, 3)]] * NEEDED)
    assert [verdict.nodes for verdict in said[-1]] == [(0, 3), (1, 2)]


@pytest.mark.parametrize(
    "sample",
    [
        PairSample(1, 3, Kind.LOST, 1.0),
        PairSample(NODES, 2, Kind.LOST, 1.0),
        PairSample(2, 2, Kind.LOST, 1.0),
        PairSample(1, 2, Kind.LOST, math.inf),
        PairSample(1, 2, Kind.LOST, math.nan),
        PairSample(1, 2, Kind.LOST, -1.0),
        PairSample(1, 2, Kind.PROBE_NEAR, 1.0),
    ],
)
def test_only_what_a_node_has_sent_itself_counts(sample: PairSample) -> None:
    """Node 2 says something of others, of nobody, of itself, or no count."""
    losses = Losses(NODES, Limits())
    losses.hear([NodeReport(2, samples=pack_samples([sample]))], 1.0)
    assert losses.suspects(1.0) == ()


def test_the_judge_looks_closer_and_says_once_what_is_slow_because_it_loses() -> None:
    """From second 50 on each moment something is lost between nodes 1 and 2, and what is not takes ten times as long."""
    ring = list(range(NODES))
    judge = Judge(Layout(ring, {5: ring}), epoch=1, now=0.0)
    closer = []
    for now in range(1, 100):
        bad = now >= 50
        for node in ring:
            mine = [pair for pair in PAIRS if pair[0] == node]
            samples = [
                PairSample(r, s, Kind.PROBE_NEAR, 1e-3 * (10 if bad and {r, s} == {1, 2} else 1)) for r, s in mine
            ]
            samples += [PairSample(s, r, Kind.LOST, float(bad and {r, s} == {1, 2})) for r, s in mine]
            judge.hear([NodeReport(node, samples=pack_samples(samples))], float(now))
        found = judge.judge(float(now))
        closer.append({(1, 2), (2, 1)} <= set(judge.probes))
    assert all(closer[52:])
    (verdict,) = found
    assert verdict.nodes == (1, 2)
    assert "is lost" in verdict.reason


def test_a_collective_that_waits_for_a_lossy_link_is_that_links_fault() -> None:
    """TCP waits twice as long after each time that the same is lost. No rank is named, and no other link."""
    ring = list(range(NODES))
    judge = Judge(Layout(ring, {5: ring}), epoch=1, now=0.0)
    for now in range(1, 60):
        step = min(now, 50)
        for node in ring:
            group = GroupProgress(5, entered=step + 1, completed=step, op=1)
            digest = RankDigest(node, step=step, waits=5, step_s=1.0, groups=(group,))
            mine = [pair for pair in PAIRS if pair[0] == node]
            samples = [PairSample(r, s, Kind.PROBE_NEAR, 1e-3) for r, s in mine]
            samples += [PairSample(s, r, Kind.LOST, float(now >= 30 and {r, s} == {1, 2})) for r, s in mine]
            judge.hear([NodeReport(node, pack([digest]), pack_samples(samples))], float(now))
        found = judge.judge(float(now))
    (verdict,) = found
    assert verdict.syndrome is Syndrome.COMMUNICATION_HANG
    assert (verdict.ranks, verdict.nodes, verdict.links) == ((), (1, 2), ((1, 2), (2, 1)))
    assert "of what nodes 1 and 2 send each other some is lost" in verdict.reason
