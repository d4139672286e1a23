"""A slow link is named once, whichever of its directions are slow."""

from __future__ import annotations

import numpy as np

from ckptd.daemon.watch.delays import Cells, slow_links
from ckptd.daemon.watch.limits import Limits
from ckptd.daemon.watch.verdicts import Verdict

NODES = 4


def verdicts(*hot: tuple[int, int]) -> list[Verdict]:
    """Of four nodes whose links all cost the usual, but for those that cost ten times as much."""
    pairs = [(receiver, sender) for receiver in range(NODES) for sender in range(NODES) if receiver != sender]
    ratio = np.array([10.0 if pair in hot else 1.0 for pair in pairs])
    receivers, senders = np.array(pairs).T
    return slow_links(Cells(receivers, senders, ratio, ratio, 1.5), NODES, Limits())


def test_both_directions_of_a_link_are_one_verdict() -> None:
    """Two would take turns in the one incident that they make."""
    (found,) = verdicts((1, 2), (2, 1))
    assert (found.nodes, found.links) == ((1, 2), ((1, 2), (2, 1)))
    assert "between nodes 1 and 2 takes 10.0 times the usual" in found.reason


def test_one_direction_is_said_with_its_way() -> None:
    (found,) = verdicts((1, 2))
    assert (found.nodes, found.links) == ((1, 2), ((1, 2),))
    assert "from node 2 to node 1 takes" in found.reason


def test_two_links_are_two_verdicts() -> None:
    assert [found.nodes for found in verdicts((0, 1), (1, 0), (3, 2))] == [(0, 1), (2, 3)]
