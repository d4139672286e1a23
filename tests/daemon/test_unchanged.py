"""Which pieces of a parity are copied, updated or encoded: the least reading, and never of what does not lie alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from ckptd.ckpt.groups import Group, groups_in, map_of
from ckptd.ckpt.inventory import Ledger
from ckptd.ckpt.model import PIECE, Image, Payload, Table, Version
from ckptd.daemon.symbols import Stripe
from ckptd.daemon.unchanged import Changes, Run, Sums, alike, batches, changes, runs

U, V = Version(1, 1), Version(1, 2)
MAP = map_of(1, range(4), parity=1, size=8)
LEDGER = Ledger(0, "b", 1)


def table_of(version: Version, sizes: list[int], digit: str = "a") -> Table:
    """One rank a node, with images of these sizes."""
    images = [Image(rank, size, digit * 31 + str(rank)) for rank, size in enumerate(sizes)]
    return Table(version, len(sizes), tuple(Payload(image.rank, (image,)) for image in images), MAP)


def group(table: Table) -> Group:
    return groups_in(table.map)[0]


def columns(*patterns: str) -> Changes:
    """Columns of 0 and 1, one letter a symbol."""
    found: Changes = np.array([[pattern[symbol] == "1" for pattern in patterns] for symbol in range(len(patterns[0]))])
    return found


SIZES = [5 * PIECE + 9, 6 * PIECE, 1, 3 * PIECE]


def test_the_same_images_lie_alike() -> None:
    """Whatever the digests and the version are."""
    now, then = table_of(V, SIZES), table_of(U, SIZES, "b")
    assert alike(now, group(now), then, group(then))


@pytest.mark.parametrize("rank", range(4))
def test_another_size_lies_otherwise(rank: int) -> None:
    """A byte more or less anywhere in the group, even within a piece, and nothing is taken over."""
    now, sizes = table_of(V, SIZES), list(SIZES)
    sizes[rank] += 1
    then = table_of(U, sizes)
    assert not alike(now, group(now), then, group(then))


def test_other_places_lie_otherwise() -> None:
    """Other members, another order of them, another code, a rank on another node: nothing is taken over."""
    now = table_of(V, SIZES)
    then = table_of(U, SIZES)
    payloads = (Payload(0, (*then.payloads[0].images, *then.payloads[1].images)), *then.payloads[2:])
    swapped = replace(MAP, groups=((1, 0, 2, 3),))
    fewer = map_of(2, range(3), parity=1, size=8)
    safer = map_of(2, range(4), parity=2, size=8)
    others = [replace(then, payloads=payloads), *(replace(then, map=map_) for map_ in (swapped, fewer, safer))]
    for other in others:
        assert not alike(now, group(now), other, group(other))


def test_another_map_of_the_same_group_lies_alike() -> None:
    """What changed in other groups, and the number of the map, do not matter."""
    now = table_of(V, SIZES)
    then = replace(table_of(U, SIZES), map=replace(MAP, number=7, groups=((4, 5), *MAP.groups)))
    assert alike(now, group(now), then, groups_in(then.map)[1])


def test_what_is_not_known_has_changed() -> None:
    """Pieces whose sums are not known of both versions count as changed, padding never does."""
    now, then = table_of(V, SIZES), table_of(U, SIZES, "b")
    stripe, older = (Stripe(LEDGER, table, group(table), 0) for table in (now, then))
    whole = changes(stripe, older, {})
    assert whole.shape == (3, 2)
    # Stripe 0: the parity is node 0's; nodes 1, 2 and 3 give their first segments, of 6, 1 and 3 pieces.
    assert whole.tolist() == [[True, True], [True, False], [True, True]]
    assert not changes(stripe, replace(older, table=now), {}).any()

    sums: dict[str, Sums] = {}
    for table in (now, then):
        for payload in table.payloads:
            (image,) = payload.images
            sums[image.digest] = np.arange(image.pieces, dtype=np.uint64)
    assert not changes(stripe, older, sums).any()
    sums[now.payloads[3].images[0].digest][1] = 99
    assert changes(stripe, older, sums).tolist() == [[False, False], [False, False], [False, True]]
    del sums[then.payloads[1].images[0].digest]
    assert changes(stripe, older, sums).tolist() == [[True, True], [False, False], [False, True]]


def test_runs_read_the_least() -> None:
    """None changed: copied. Less than half: both versions of these are read. Else all k, whichever have changed."""
    found = columns("00000", "00000", "10000", "10000", "01010", "11100", "11111", "00000")
    expected = [
        Run(0, 2, ()),
        Run(2, 2, (0,)),
        Run(4, 1, (1, 3)),
        Run(5, 2, None),
        Run(7, 1, ()),
    ]
    assert runs(found, 8) == expected
    assert [run.reads(5) for run in expected] == [0, 2, 4, 5, 0]
    assert [run.lanes(5) for run in expected] == [0, 3, 5, 5, 0]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_every_pattern_is_planned(k: int) -> None:
    """Each piece is in exactly one run, in order, in windows; no run reads more than k or takes more than k lanes."""
    patterns = ["".join(bits) for bits in product("01", repeat=k)]
    found = columns(*patterns, *reversed(patterns), *("0" * k for _ in range(9)))
    planned = runs(found, 4)
    assert [piece for run in planned for piece in range(run.first, run.first + run.count)] == list(
        range(found.shape[1])
    )
    for run in planned:
        assert 1 <= run.count <= 4
        assert run.lanes(k) <= k
        for piece in range(run.first, run.first + run.count):
            changed = tuple(np.flatnonzero(found[:, piece]).tolist())
            assert run.changed == (changed if 2 * len(changed) < k or not changed else None)


def test_batches_are_windows_of_what_is_read() -> None:
    """What is copied takes no room in a batch; what is read takes as many places as it has pieces."""
    planned = [Run(0, 4, ()), Run(4, 3, None), Run(7, 4, ()), Run(11, 1, (0,)), Run(12, 1, None), Run(13, 4, ())]
    assert list(batches(planned, 4)) == [
        [(planned[0], 0), (planned[1], 0), (planned[2], 3), (planned[3], 3)],
        [(planned[4], 0), (planned[5], 1)],
    ]
    assert list(batches([Run(0, 4, None), Run(4, 4, None)], 4)) == [[(Run(0, 4, None), 0)], [(Run(4, 4, None), 0)]]
