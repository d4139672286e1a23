"""Which links are measured, and what is said while some of them are measured more often than others."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ckptd.daemon.watch.delays import Delays, slow_links
from ckptd.daemon.watch.hang import links_of
from ckptd.daemon.watch.judge import PROBES_MAX, TURNS, Judge
from ckptd.daemon.watch.layout import Layout
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.observations import Kind, NodeReport, PairSample, pack_samples

NODES = 12


def looked_at(judge: Judge, seconds: int) -> list[tuple[tuple[int, int], ...]]:
    return [(judge.judge(float(now)), judge.probes)[1] for now in range(1, 1 + seconds)]


def test_the_links_of_a_healthy_job_are_measured_in_turns() -> None:
    """Whatever the work reads: what a slow one costs may be less than steps differ by."""
    ring = list(range(NODES))
    judge = Judge(Layout(ring, {5: ring}), epoch=1, now=0.0)
    looks = looked_at(judge, 2 * TURNS)
    assert looks[:TURNS] == looks[TURNS:]
    asked = [pair for look in looks[:TURNS] for pair in look]
    assert sorted(asked) == sorted(links_of(np.arange(NODES), [np.arange(NODES)]))
    assert len(asked) == 2 * NODES


def test_a_node_is_asked_for_a_bounded_number_of_links_and_for_its_neighbours_first() -> None:
    """Each node is the neighbour of two in one group, and together with seven others in another."""
    nodes = list(range(24))
    groups = {9: nodes, **{part: nodes[part::3] for part in range(3)}}
    judge = Judge(Layout(nodes, groups), epoch=1, now=0.0)
    looks = looked_at(judge, TURNS)
    for look in looks:
        assert max(Counter(receiver for receiver, _ in look).values()) <= PROBES_MAX // TURNS
    asked = {pair for look in looks for pair in look}
    assert {(node, (node + 1) % 24) for node in nodes} | {(node, (node - 1) % 24) for node in nodes} <= asked


def test_a_look_that_comes_early_takes_no_turn() -> None:
    judge = Judge(Layout([0, 1, 2], {5: [0, 1, 2]}), epoch=1, now=0.0)
    judge.judge(1.0)
    assert judge.probes
    judge.judge(1.1)
    assert not judge.probes


@pytest.mark.parametrize("side", ["receives", "sends"])
def test_a_slow_side_is_not_taken_for_the_links_that_show_it_first(side: str) -> None:
    """Node 3 is slow from second 50 on. The links of its group of four are measured each second, the others every other."""
    limits, noise = Limits(), np.random.default_rng(7)
    delays = Delays(NODES, limits)
    said = []
    for now in range(1, 100):
        reports = []
        for receiver in range(NODES):
            samples = [
                PairSample(receiver, sender, Kind.PROBE_NEAR, float(noise.uniform(0.9, 1.1)) * (5.0 if slow else 1.0))
                for sender in range(NODES)
                if sender != receiver and (sender // 4 == receiver // 4 or (now + sender) % 2)
                for slow in [now >= 50 and (receiver if side == "receives" else sender) == 3]
            ]
            reports.append(NodeReport(receiver, samples=pack_samples(samples)))
        delays.hear(reports, float(now))
        said.append(slow_links(delays.cells(float(now)), NODES, limits))
    assert not any(verdict.links for verdicts in said for verdict in verdicts)
    assert not any(said[:60])
    assert [verdict.nodes for verdict in said[-1]] == [(3,)]
    assert f"whatever node 3 {side}" in said[-1][0].reason


def test_what_seems_slow_is_looked_at_closer() -> None:
    """A link that is slow lately is asked for at every look, before anybody is blamed."""
    ring = list(range(NODES))
    judge = Judge(Layout(ring, {5: ring}), epoch=1, now=0.0)
    noise = np.random.default_rng(7)
    for now in range(1, 60):
        reports = [
            NodeReport(receiver, samples=pack_samples([PairSample(receiver, sender, Kind.PROBE_NEAR, cost)]))
            for receiver in ring
            for sender in [(receiver + 1) % NODES]
            for cost in [float(noise.uniform(0.9, 1.1)) * (4.0 if (receiver, now > 50) == (6, True) else 1.0)]
        ]
        judge.hear(reports, float(now))
        found = judge.judge(float(now))
    assert not found
    assert (6, 7) in judge.probes
    judge.judge(60.0)
    assert (6, 7) in judge.probes
