"""Boxes: which part of a whole tensor somebody holds, what two parts have in common, and whether parts make up the whole.

A box is a range of indices along every dimension. A tensor without dimensions has one box, which holds its one element.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

MAX_CUT_DIMS = 8
"""Along how many dimensions a tensor may be cut; the work of `tile` doubles with each."""


@dataclass(frozen=True, slots=True)
class Box:
    """The elements from `offsets` to `offsets + shape` of a larger tensor, per dimension."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @staticmethod
    def whole(shape: tuple[int, ...]) -> Box:
        """All of a tensor of this shape."""
        return Box((0,) * len(shape), shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def rows(self, start: int, count: int) -> Box:
        """Indices `start` to `start + count` along dimension 0, counted from this box's first."""
        assert self.shape, "a tensor without dimensions has no rows"
        assert 0 <= start <= start + count <= self.shape[0], (self, start, count)
        return Box((self.offsets[0] + start, *self.offsets[1:]), (count, *self.shape[1:]))

    def meet(self, other: Box) -> Box | None:
        """The elements that both hold; None where there are none."""
        firsts = tuple(map(max, self.offsets, other.offsets))
        ends = [
            min(a + n, b + m) for a, n, b, m in zip(self.offsets, self.shape, other.offsets, other.shape, strict=True)
        ]
        shape = tuple(end - first for first, end in zip(firsts, ends, strict=True))
        return Box(firsts, shape) if all(count > 0 for count in shape) else None

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Where this box lies in a tensor that holds exactly `outer`."""
        return tuple(
            slice(first - base, first - base + count)
            for first, count, base in zip(self.offsets, self.shape, outer.offsets, strict=True)
        )


def stretches(part: Box, outer: Box, gap: int) -> list[tuple[int, int]]:
    """Where the elements of `part` lie among those of `outer`, which holds it, counted in row-major order.

    Ascending ranges (first, after the last) that hold all of them. Two that are `gap` elements apart or less may be one,
    with what lies between them.
    """
    if not part.size:
        return []
    starts, length, stride = [0], 1, 1
    for offset, count, base, extent in reversed(
        list(zip(part.offsets, part.shape, outer.offsets, outer.shape, strict=True))
    ):
        first = (offset - base) * stride
        if len(starts) == 1 and (count == 1 or stride - length <= gap):
            starts, length = [first + starts[0]], stride * (count - 1) + length
        else:
            starts = [first + index * stride + start for index in range(count) for start in starts]
        stride *= extent
    return [(start, start + length) for start in starts]


def tile(whole: tuple[int, ...], boxes: Sequence[Box]) -> bool:
    """Whether the boxes, which lie within a tensor of this shape, hold each of its elements exactly once.

    Linear in their number, and exact: a sum of boxes is told by the signed count of their corners, as a function that is
    zero far out is told by its differences. Dimensions that no box cuts have the same two ends in all of them and are left
    out. False also where boxes are cut along more than `MAX_CUT_DIMS` dimensions.
    """
    filled = [box for box in boxes if box.size]
    if not math.prod(whole):
        return True
    cut = [dim for dim, length in enumerate(whole) if any(box.shape[dim] != length for box in filled)]
    if not cut:
        return len(filled) == 1
    if len(cut) > MAX_CUT_DIMS:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    for box, sign in [*((box, 1) for box in filled), (Box.whole(whole), -1)]:
        ends = [((box.offsets[dim], 1), (box.offsets[dim] + box.shape[dim], -1)) for dim in cut]
        for corner in product(*ends):
            corners[tuple(at for at, _ in corner)] += sign * math.prod(side for _, side in corner)
    return not any(corners.values())


@dataclass(frozen=True, slots=True)
class Cut:
    """One sharding of a dimension among `parts` holders, of whom this one is number `index`.

    `runs` > 1: what is left of the dimension is first cut into so many runs, and each of them among the holders, as
    tensor-parallel and then fully sharded parameters are (torch's _StridedShard with that split factor).
    """

    dim: int
    parts: int
    index: int
    runs: int = 1


def shard(whole: tuple[int, ...], cuts: Sequence[Cut]) -> Box | None:
    """What one holder has of a tensor of this shape, after these cuts in this order; it may be empty.

    Each cut makes parts of ceil(n / parts) indices, of which the last may be shorter or empty, as torch.chunk does. None
    where it is not one box, but scattered indices.
    """
    ranges = [[(0, length)] for length in whole]
    for cut in cuts:
        assert 0 <= cut.dim < len(whole), (cut, whole)
        length = sum(end - first for first, end in ranges[cut.dim])
        taken = []
        for run in range(cut.runs):
            begin, end = _chunk(length, cut.runs, run)
            first, last = _chunk(end - begin, cut.parts, cut.index)
            taken += _slice(ranges[cut.dim], begin + first, begin + last)
        ranges[cut.dim] = _joined(taken)
    if any(len(found) > 1 for found in ranges):
        return None
    bounds = [found[0] if found else (0, 0) for found in ranges]
    return Box(tuple(first for first, _ in bounds), tuple(end - first for first, end in bounds))


def _chunk(length: int, parts: int, index: int) -> tuple[int, int]:
    size = -(-length // parts)
    return min(length, size * index), min(length, size * (index + 1))


def _slice(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> list[tuple[int, int]]:
    """The indices numbered `begin` to `end` of those in `ranges`."""
    found, before = [], 0
    for first, last in ranges:
        low, high = max(begin - before, 0), min(end - before, last - first)
        if low < high:
            found.append((first + low, first + high))
        before += last - first
    return found


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return found
