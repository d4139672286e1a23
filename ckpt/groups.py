"""Which nodes protect each other. (Placement across failure domains will grow here.)"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ckptd.ckpt.model import Table
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


@lru_cache(maxsize=64)
def groups_of(nodes: int, parity: int, size: int) -> tuple[Group, ...]:
    """Split nodes 0..nodes-1 into groups of nearly equal size, none larger than `size`.

    A group smaller than parity + 1 gets as much parity as it can: a group of one has none.
    """
    count = -(-nodes // size)
    bounds = [nodes * index // count for index in range(count + 1)]
    groups = []
    for index in range(count):
        members = tuple(range(bounds[index], bounds[index + 1]))
        m = min(parity, len(members) - 1)
        groups.append(Group(index, members, Layout(len(members) - m, m), Code(len(members) - m, m)))
    return tuple(groups)
