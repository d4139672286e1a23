"""What of a parity is the same as in an older one, and how the rest is made with the least reading. Pure.

A parity's piece is a function of the k data pieces at its place, and a sum of products: if none of them differs between two
versions, it is the same; if a few differ, it differs by these differences, each times its coefficient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckptd.ckpt.groups import Group
from ckptd.ckpt.model import Image, Table
from ckptd.daemon.symbols import Stripe

Sums = NDArray[np.uint64]
"""The sums of an image's pieces, in order."""
Changes = NDArray[np.bool_]
"""k x c: whether the piece of a data symbol (row) at a place of its segment (column) may differ from the older version's."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces of a parity, `first` .. `first + count - 1`, that are made in the same way."""

    first: int
    count: int
    changed: tuple[int, ...] | None
    """None: all k data symbols are read and encoded. Else the older parity is taken, and these data symbols are read, as
    they were and as they are; their differences are added."""

    @property
    def is_copy(self) -> bool:
        """Whether nothing is read at all."""
        return self.changed == ()

    def lanes(self, k: int) -> int:
        """How many windows it takes: one for each symbol that is read, and one to add differences up in; at most k."""
        if self.changed is None:
            return k
        return 2 * len(self.changed) + 1 if self.changed else 0

    def reads(self, k: int) -> int:
        """How many symbols are read."""
        return k if self.changed is None else 2 * len(self.changed)


def alike(table: Table, group: Group, older: Table, older_group: Group) -> bool:
    """Whether a piece of a stripe's data has the same place in both: then what differs is told by the sums alone.

    It takes the same members in the same order, the same code, and images of the same ranks and sizes. The maps may differ
    in other groups.
    """
    return (
        (group.nodes, group.layout) == (older_group.nodes, older_group.layout)
        and all(_shape(table, node) == _shape(older, node) for node in group.nodes)
    )  # fmt: skip


def _shape(table: Table, node: int) -> list[tuple[int, int]]:
    return [(image.rank, image.size) for image in table.payload(node).images]


def images_of(stripe: Stripe) -> list[tuple[int, Image]]:
    """The images that a stripe's data lies in, each with the node that holds it."""
    units = stripe.group.units(stripe.table)
    return [
        (stripe.node_of(symbol), wanted.what)
        for symbol in range(stripe.group.layout.k)
        for _, wanted in stripe.ranges(symbol, 0, units)
        if isinstance(wanted.what, Image)
    ]


def changes(stripe: Stripe, older: Stripe, sums: Mapping[str, Sums]) -> Changes:
    """Which data pieces of a stripe differ between two tables that are `alike`. Padding never does.

    `sums` are those that are known, by the image's digest; what is not known counts as changed.
    """
    k, units = stripe.group.layout.k, stripe.group.units(stripe.table)
    found = np.zeros((k, units), np.bool_)
    for symbol in range(k):
        pairs = zip(stripe.ranges(symbol, 0, units), older.ranges(symbol, 0, units), strict=True)
        for (at, wanted), (_, before) in pairs:
            assert isinstance(wanted.what, Image), "data symbols are of images"
            assert isinstance(before.what, Image), "data symbols are of images"
            if wanted.what.digest == before.what.digest:
                continue
            now, then = sums.get(wanted.what.digest), sums.get(before.what.digest)
            part = slice(wanted.first, wanted.first + wanted.count)
            place = slice(at, at + wanted.count)
            found[symbol, place] = True if now is None or then is None else now[part] != then[part]
    return found


def runs(found: Changes, most: int) -> list[Run]:
    """How to make a parity of these data pieces with the least reading, in order; no run is of more than `most` pieces.

    Differences take both versions of a piece, so they are read where less than half of the k differ.
    """
    k, units = found.shape
    whole = 2 * found.sum(axis=0) >= k
    whole &= found.any(axis=0)
    # A column begins a run if it is made in another way than the one before.
    others = (found[:, 1:] != found[:, :-1]).any(axis=0) & ~(whole[1:] & whole[:-1])
    edges = np.flatnonzero(others) + 1
    planned = []
    for start, end in zip([0, *edges.tolist()], [*edges.tolist(), units], strict=True):
        changed = None if whole[start] else tuple(np.flatnonzero(found[:, start]).tolist())
        planned += [Run(first, min(most, end - first), changed) for first in range(start, end, most)]
    return planned


def batches(planned: Iterable[Run], most: int) -> Iterator[list[tuple[Run, int]]]:
    """Runs in order, such that `most` pieces of a symbol are read for a batch; each with its place among these pieces."""
    batch: list[tuple[Run, int]] = []
    filled = 0
    for run in planned:
        count = 0 if run.is_copy else run.count
        if filled + count > most:
            yield batch
            batch, filled = [], 0
        batch.append((run, filled))
        filled += count
    if batch:
        yield batch
