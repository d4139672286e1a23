"""Protection groups: who protects whom."""

from __future__ import annotations

import itertools

import pytest

from ckptd.ckpt.groups import groups_of
from ckptd.ckpt.model import PIECE, Image, Payload, Table, Version


@pytest.mark.parametrize(("nodes", "parity", "size"), [*itertools.product(range(1, 20), range(4), (2, 4, 8))])
def test_every_node_is_in_one_group_of_the_right_size(nodes: int, parity: int, size: int) -> None:
    """Groups cover all nodes once, none is too large, sizes differ by one at most, and each has what parity it can."""
    groups = groups_of(nodes, parity, size)
    assert [node for group in groups for node in group.nodes] == list(range(nodes))
    sizes = [len(group.nodes) for group in groups]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    for group in groups:
        assert group.layout.m == min(parity, len(group.nodes) - 1)
        assert group.layout.n == len(group.nodes)


def test_the_longest_payload_decides_the_segment() -> None:
    """A segment is the longest payload over k, in pieces, rounded up; a node without ranks counts as empty."""
    (group,) = groups_of(4, 1, 8)
    table = Table(Version(1, 1), 1, (Payload(2, (Image(0, 7 * PIECE - 5, "0" * 32),)),))
    assert group.units(table) == 3
    assert groups_of(1, 1, 8)[0].owned(0) == ()
