"""Parts of tensors: what they have in common, whether they make up the whole, and where torch's shards lie."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from ckptd.ckpt.boxes import MAX_CUT_DIMS, Box, Cut, shard, stretches, tile

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
WHOLE = (4, 3)


def boxes_in(whole: tuple[int, ...]) -> st.SearchStrategy[Box]:
    sides = [st.tuples(st.integers(0, n), st.integers(0, n)).map(sorted) for n in whole]
    return st.tuples(*sides).map(lambda s: Box(tuple(a for a, _ in s), tuple(b - a for a, b in s)))


def counts_of(whole: tuple[int, ...], boxes: list[Box]) -> Any:
    """How many boxes hold each element, the slow way."""
    found = np.zeros(whole, dtype=int)
    for box in boxes:
        found[box.within(Box.whole(whole))] += 1
    return found


@calm
@given(st.lists(boxes_in(WHOLE), max_size=5))
def test_tiling_is_holding_every_element_once(boxes: list[Box]) -> None:
    """`tile` agrees with counting, for any boxes, with or without those that are missing."""
    assert tile(WHOLE, boxes) == bool((counts_of(WHOLE, boxes) == 1).all())
    left = [Box(at, (1, 1)) for at, count in np.ndenumerate(counts_of(WHOLE, boxes)) if count == 0]
    assert tile(WHOLE, boxes + left) == bool((counts_of(WHOLE, boxes) <= 1).all())


def test_the_edges_of_tiling() -> None:
    """An empty tensor needs nobody, one without dimensions needs one holder, and cuts along too many are refused."""
    assert tile((0, 3), [])
    assert tile((), [Box((), ())])
    assert not tile((), [])
    assert not tile((), [Box((), ())] * 2)
    many = MAX_CUT_DIMS + 1
    halves = [Box(at, (1,) * many) for at in product((0, 1), repeat=many)]
    assert not tile((2,) * many, halves)
    assert tile((2,) * MAX_CUT_DIMS, [Box(at, (1,) * MAX_CUT_DIMS) for at in product((0, 1), repeat=MAX_CUT_DIMS)])


@calm
@given(boxes_in(WHOLE), boxes_in(WHOLE))
def test_meeting_boxes(one: Box, other: Box) -> None:
    """What two boxes have in common is what counting finds in both, from either side."""
    both = counts_of(WHOLE, [one]) * counts_of(WHOLE, [other])
    common = one.meet(other)
    assert common == other.meet(one)
    assert (both == counts_of(WHOLE, [common] if common else [])).all()


LAYOUTS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    "one": ((4,), [Shard(0)]),
    "columns": ((3,), [Shard(1)]),
    "replicated": ((2,), [Replicate()]),
    "hybrid": ((2, 2), [Replicate(), Shard(0)]),
    "grid": ((2, 3), [Shard(0), Shard(1)]),
    "twice": ((2, 2), [Shard(0), Shard(0)]),
    "tensor parallel rows": ((2, 2), [_StridedShard(0, split_factor=2), Shard(0)]),
    "three": ((2, 2, 2), [Replicate(), _StridedShard(0, split_factor=2), Shard(0)]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [0, 1, 3, 5, 8, 16, 17])
def test_shards_lie_where_torch_puts_them(layout: str, length: int) -> None:
    """Shape and offset are torch's for every coordinate, uneven and empty parts included, and they make up the whole."""
    mesh, placements = LAYOUTS[layout]
    whole = (length, 4)
    held = []
    for at in product(*(range(size) for size in mesh)):
        cuts = [
            Cut(p.dim, size, index, getattr(p, "split_factor", 1))
            for p, size, index in zip(placements, mesh, at, strict=True)
            if not isinstance(p, Replicate)
        ]
        box = shard(whole, cuts)
        shape, offsets = _compute_local_shape_and_global_offset(whole, mesh, list(at), placements)
        assert box is not None
        assert box.shape == shape
        assert box.offsets == offsets or not box.size
        if all(index == 0 for p, index in zip(placements, at, strict=True) if isinstance(p, Replicate)):
            held.append(box)
    assert tile(whole, held)


def test_scattered_indices_are_no_box() -> None:
    """A strided shard that nothing cuts again holds several runs: None."""
    assert shard((8,), [Cut(0, 2, 0, runs=2)]) is None
    assert shard((8,), [Cut(0, 2, 1, runs=2), Cut(0, 2, 0)]) == Box((2,), (2,))


def test_a_part_may_be_cut_at_rows() -> None:
    """Replicas of one part split it between them, wherever it lies."""
    box = Box((4, 2), (3, 5))
    assert [box.rows(0, 2), box.rows(2, 1)] == [Box((4, 2), (2, 5)), Box((6, 2), (1, 5))]
    assert torch.zeros(3, 5)[box.rows(2, 1).within(box)].shape == (1, 5)


@calm
@given(boxes_in((3, 2, 4)), boxes_in((3, 2, 4)), st.integers(0, 9))
def test_stretches_hold_a_part_and_little_else(outer: Box, other: Box, gap: int) -> None:
    """In ascending order; every element of the part lies in one; none begins or ends with another, and what is let in comes
    in runs of `gap` at most."""
    part = outer.meet(other)
    if part is None:
        return
    inside = np.zeros(outer.shape, dtype=bool)
    inside[part.within(outer)] = True
    flat, found = inside.reshape(-1), stretches(part, outer, gap)
    covered = np.zeros_like(flat)
    for first, last in found:
        assert not covered[first:].any()
        covered[first:last] = True
        assert flat[first]
        assert flat[last - 1]
        runs = "".join("x" if held else "." for held in flat[first:last]).split("x")
        assert max(map(len, runs)) <= gap
    assert covered[flat].all()


def test_stretches_of_whole_rows_are_one() -> None:
    """What is whole in memory is asked for at once, and columns of a wide matrix row by row."""
    outer = Box((10, 0), (100, 1000))
    assert stretches(Box((20, 0), (5, 1000)), outer, 0) == [(10_000, 15_000)]
    assert stretches(Box((20, 100), (3, 50)), outer, 10) == [(10_100, 10_150), (11_100, 11_150), (12_100, 12_150)]
    assert stretches(Box((20, 100), (3, 50)), outer, 950) == [(10_100, 12_150)]
    assert stretches(Box((), ()), Box((), ()), 0) == [(0, 1)]
    assert stretches(Box((20, 0), (0, 1000)), outer, 0) == []
