"""Protection groups: who protects whom, as it follows from a map."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ckptd.ckpt.groups import group_of, groups_in, map_of, parities_of
from ckptd.ckpt.model import PIECE, GroupMap, Image, Payload, Table, Version


def table(map_: GroupMap, node: int, size: int = 7 * PIECE - 5) -> Table:
    """A version of one rank, which `node` captured."""
    return Table(Version(1, 1), 1, (Payload(node, (Image(0, size, "0" * 32),)),), map_)


@pytest.mark.parametrize(("nodes", "parity", "size"), [*itertools.product(range(1, 20), range(4), (2, 4, 8))])
def test_every_node_is_in_one_group_of_the_right_size(nodes: int, parity: int, size: int) -> None:
    """Groups cover all nodes once, none is too large, sizes differ by one at most, and each has what parity it can."""
    groups = groups_in(map_of(1, range(nodes), parity=parity, size=size))
    assert [node for group in groups for node in group.nodes] == list(range(nodes))
    sizes = [len(group.nodes) for group in groups]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    for index, group in enumerate(groups):
        assert group.index == index
        assert group.layout.m == group.code.m == min(parity, len(group.nodes) - 1)
        assert group.layout.n == len(group.nodes)


def test_the_longest_payload_decides_the_segment() -> None:
    """A segment is the longest payload over k, in pieces, rounded up; a node without ranks counts as empty."""
    map_ = map_of(1, range(4), parity=1, size=8)
    (group,) = groups_in(map_)
    assert group.units(table(map_, 2)) == 3
    assert groups_in(map_of(1, range(1), parity=1, size=8))[0].owned(0) == ()


def test_a_map_names_the_domains_that_it_was_made_for() -> None:
    """Nodes of a domain are spread over the groups; what is unknown, and who is no member, is not in it."""
    domains = {0: "a", 1: "a", 2: "b", 3: "b", 4: "", 9: "a"}
    map_ = map_of(7, range(5), domains, parity=1, size=4)
    assert (map_.number, map_.parity, map_.nodes) == (7, 1, frozenset(range(5)))
    assert map_.domains == ((0, "a"), (1, "a"), (2, "b"), (3, "b"))
    assert all(len({domains[node] or node for node in group}) == len(group) for group in map_.groups)


def test_nodes_that_have_left_are_in_no_group() -> None:
    map_ = map_of(2, [0, 2, 3], parity=1, size=8)
    assert group_of(map_, 1) is None
    assert group_of(map_, 2) == groups_in(map_)[0]
    assert group_of(GroupMap(), 0) is None


def test_parities_are_owed_where_there_is_something_to_protect() -> None:
    """Every stripe's rows are owed once, under the table's name; nothing where the group holds no rank, or has left."""
    map_ = map_of(1, range(8), parity=2, size=4)
    made = table(map_, 1)
    owed = [parity for node in range(8) for parity in parities_of(made, node)]
    assert {(parity.version, parity.table, parity.group) for parity in owed} == {(made.version, made.name, 0)}
    assert sorted((parity.stripe, parity.row) for parity in owed) == [(s, r) for s in range(4) for r in range(2)]
    assert parities_of(made, 5) == ()
    assert parities_of(made, 8) == ()
    assert parities_of(table(map_, 1, size=0), 1) == ()
    assert parities_of(table(GroupMap(), 1), 1) == ()


def test_a_table_is_called_by_all_that_is_in_it() -> None:
    """Another version, world, image or map is another name; the same content is the same name wherever it is made."""
    one = table(map_of(1, range(4), parity=1, size=8), 1)
    others = [
        replace(one, version=Version(1, 2)),
        replace(one, world=2),
        table(one.map, 2),
        replace(one, map=replace(one.map, number=2)),
        replace(one, map=replace(one.map, domains=((0, "a"),))),
    ]
    assert one.name == table(map_of(1, range(4), parity=1, size=8), 1).name
    assert len({item.name for item in [one, *others]}) == 6
