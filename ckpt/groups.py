"""Protection groups as they follow from a group map: their stripes, their code, and which parities a node owes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import GroupMap, Table
from ckptd.ckpt.placement import parity_of, place
from ckptd.erasure import Code, Layout


@dataclass(frozen=True, slots=True)
class Group:
    """A protection group: its nodes in order (a node's position is its index here) and its stripe layout."""

    index: int
    nodes: tuple[int, ...]
    layout: Layout
    code: Code

    def units(self, table: Table) -> int:
        """The length of a segment at one version, in pieces."""
        return self.layout.segment_units([table.payload(node).pieces for node in self.nodes])

    def owned(self, node: int) -> tuple[tuple[int, int], ...]:
        """The (stripe, row) pairs whose parity `node` keeps."""
        return self.layout.owned(self.nodes.index(node)) if self.layout.m else ()


@lru_cache(maxsize=256)
def groups_in(map_: GroupMap) -> tuple[Group, ...]:
    """The groups of a map. A group smaller than parity + 1 has as much parity as it can: a group of one has none."""
    groups = []
    for index, nodes in enumerate(map_.groups):
        m = parity_of(len(nodes), map_.parity)
        groups.append(Group(index, nodes, Layout(len(nodes) - m, m), Code(len(nodes) - m, m)))
    return tuple(groups)


def group_of(map_: GroupMap, node: int) -> Group | None:
    """The group that a node is in; None for one that has left."""
    return next((group for group in groups_in(map_) if node in group.nodes), None)


def map_of(
    number: int, members: Sequence[int], domains: Mapping[int, str] | None = None, *, parity: int, size: int
) -> GroupMap:
    """The map for these nodes. It depends on the arguments alone: every node would make the same."""
    known = tuple(sorted((node, domain) for node, domain in (domains or {}).items() if domain and node in members))
    return GroupMap(number, parity, _placed(tuple(members), known, parity, size), known)


@lru_cache(maxsize=256)
def _placed(
    members: tuple[int, ...], domains: tuple[tuple[int, str], ...], parity: int, size: int
) -> tuple[tuple[int, ...], ...]:
    return place(members, dict(domains), parity=parity, size=size)


@lru_cache(maxsize=4096)
def parities_of(table: Table, node: int) -> tuple[Parity, ...]:
    """The parities that a node owes under a table; none where its group has nothing to protect."""
    group = group_of(table.map, node)
    if group is None or not group.units(table):
        return ()
    return tuple(Parity(table.version, table.name, group.index, stripe, row) for stripe, row in group.owned(node))
