"""Who is where in a job, and which ranks form which process groups: learnt once per life, from the trainers' own tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ckptd.ckpt.errors import UsageError

Ints = npt.NDArray[np.int64]


class Layout:
    """The nodes of the ranks and the members of the groups, as arrays. Does not change.

    Memberships stand in one long list, ordered by group and then by rank: `rank[i]` is in the group `ids[group[i]]`, and
    group number g has the memberships `starts[g]` to `starts[g + 1]`.
    """

    def __init__(self, nodes: Sequence[int], groups: Mapping[int, Sequence[int]]) -> None:
        """`nodes[r]` is the node of rank r. Raises UsageError when a group has a member that is no rank of the job."""
        self.node_of: Ints = np.asarray(nodes, np.int64)
        self.world = len(nodes)
        self.nodes = int(self.node_of.max()) + 1 if self.world else 0
        self.ids: Ints = np.array(sorted(groups), np.int64)
        members = [sorted(set(groups[int(group)])) for group in self.ids]
        for group, ranks in zip(self.ids, members, strict=True):
            if not ranks or ranks[0] < 0 or ranks[-1] >= self.world:
                raise UsageError(
                    f"group {group} has the members {ranks[:8]}; expected ranks from 0 to {self.world - 1}: "
                    "is the table of groups of another job?"
                )
        sizes = np.array([len(ranks) for ranks in members], np.int64)
        self.starts: Ints = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.rank: Ints = np.array([rank for ranks in members for rank in ranks], np.int64)
        self.group: Ints = np.repeat(np.arange(len(members)), sizes)
        self._keys: Ints = self.group * max(1, self.world) + self.rank

    def members(self, place: int) -> Ints:
        """The ranks of the group at a place in `ids`, ascending."""
        return self.rank[self.starts[place] : self.starts[place + 1]]

    def find(self, groups: Ints, ranks: Ints) -> Ints:
        """The membership of each (group id, rank), two arrays of one shape; -1 where there is none."""
        if not len(self.ids):
            return np.full(np.shape(groups), -1, np.int64)
        places = np.minimum(np.searchsorted(self.ids, groups), len(self.ids) - 1)
        keys = places * max(1, self.world) + ranks
        found = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known: Ints = np.where((self.ids[places] == groups) & (self._keys[found] == keys), found, -1)
        return known
