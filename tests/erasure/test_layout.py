"""The stripe layout, alone and with the code on it: who holds what, and what comes back after a loss."""

import doctest
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptd.erasure.layout
from ckptd.erasure import Code, Layout, TooFewSymbols

SMALL = [Layout(k=k, m=m) for k in range(1, 9) for m in range(5)]
UP_TO_SIX = [Layout(k=k, m=m) for m in range(5) for k in range(1, 7 - m)]
layouts = st.builds(Layout, k=st.integers(1, 20), m=st.integers(0, 5))
few = settings(max_examples=30, deadline=None)


def test_the_picture_in_the_docstring_is_what_the_code_does() -> None:
    """The documented k=2, m=1 layout is the real one."""
    result = doctest.testmod(ckptd.erasure.layout)
    assert (result.failed, result.attempted) == (0, 1)


@pytest.mark.parametrize("group", SMALL, ids=str)
def test_parity_of_row_i_of_stripe_j_rotates(group: Layout) -> None:
    """Row i of stripe j lives on position (j + i) mod n, data symbol i on (j + m + i) mod n."""
    for stripe in range(group.n):
        assert group.parity_positions(stripe) == tuple((stripe + row) % group.n for row in range(group.m))
        assert group.data_positions(stripe) == tuple((stripe + group.m + i) % group.n for i in range(group.k))


@few
@given(layouts)
def test_every_position_has_a_part_in_every_stripe(group: Layout) -> None:
    """Data nodes and parity owners of a stripe together are all n members, each once, numbered as the code does."""
    for stripe in range(group.n):
        holders = group.data_positions(stripe) + group.parity_positions(stripe)
        assert sorted(holders) == list(range(group.n))
        assert [group.symbol_of(position, stripe) for position in holders] == list(range(group.n))


@few
@given(layouts)
def test_every_position_is_data_k_times_and_owner_m_times(group: Layout) -> None:
    """No hot spot: every member contributes k segments and owns m parities, so parity takes m/k of its payload."""
    for position in range(group.n):
        owned = group.owned(position)
        assert len(owned) == group.m
        assert list(owned) == sorted(owned)
        assert all(group.parity_positions(stripe)[row] == position for stripe, row in owned)
        assert sum(position in group.data_positions(stripe) for stripe in range(group.n)) == group.k


@few
@given(layouts)
def test_segments_are_handed_out_in_stripe_order(group: Layout) -> None:
    """A position's segments are 0, 1, .. k-1 over its stripes as a data node; None where it owns a parity."""
    for position in range(group.n):
        expected = iter(range(group.k))
        for stripe in range(group.n):
            data = position in group.data_positions(stripe)
            assert group.segment_of(position, stripe) == (next(expected) if data else None)


@few
@given(layouts)
def test_stripe_of_inverts_segment_of(group: Layout) -> None:
    """Every segment of every position is found again in the stripe that it went to."""
    for position in range(group.n):
        for segment in range(group.k):
            assert group.segment_of(position, group.stripe_of(position, segment)) == segment


@few
@given(layouts, st.data())
def test_the_longest_payload_decides_the_segment(group: Layout, data: st.DataObject) -> None:
    """k segments hold the longest payload, k segments of one unit less would not; nothing needs nothing."""
    payloads = data.draw(st.lists(st.integers(0, 10**7), min_size=group.n, max_size=group.n))
    c = group.segment_units(payloads)
    assert group.k * c >= max(payloads)
    assert group.k * (c - 1) < max(payloads) or c == 0
    assert group.segment_units([0] * group.n) == 0


@few
@given(layouts, st.integers(1, 9))
def test_locate_counts_through_the_segments(group: Layout, c: int) -> None:
    """Units of a payload are numbered through its segments in order."""
    places = [group.locate(unit, c) for unit in range(group.k * c)]
    assert places == [(segment, offset) for segment in range(group.k) for offset in range(c)]


@pytest.mark.parametrize(("k", "m"), [(0, 1), (-1, 2), (1, -1), (200, 57), (257, 0)])
def test_impossible_groups_are_refused(k: int, m: int) -> None:
    """A group that the code can't serve is refused with both numbers and what was expected."""
    with pytest.raises(ValueError, match=rf"k={k} and m={m}: expected k >= 1, m >= 0 and k \+ m <= 256"):
        Layout(k=k, m=m)


@pytest.mark.parametrize(("k", "m"), [(1, 0), (256, 0), (255, 1), (1, 255)])
def test_the_limits_themselves_are_taken(k: int, m: int) -> None:
    """The smallest and the largest groups are consistent at their corners."""
    group = Layout(k=k, m=m)
    last = group.n - 1
    assert {group.symbol_of(position, last) for position in range(group.n)} == set(range(group.n))
    assert group.stripe_of(last, 0) in range(group.n)


def test_numbers_out_of_range_are_refused() -> None:
    """A wrong position, stripe, segment, unit or payload is an error that says what was expected."""
    group = Layout(k=2, m=1)
    with pytest.raises(ValueError, match="position 3: expected 0 <= position < 3 in a group of k=2, m=1"):
        group.owned(3)
    with pytest.raises(ValueError, match="position -1"):
        group.symbol_of(-1, 0)
    with pytest.raises(ValueError, match="stripe 3"):
        group.segment_of(0, 3)
    with pytest.raises(ValueError, match="stripe -1"):
        group.parity_positions(-1)
    with pytest.raises(ValueError, match="stripe 5"):
        group.data_positions(5)
    with pytest.raises(ValueError, match="segment 2: expected 0 <= segment < 2"):
        group.stripe_of(0, 2)
    with pytest.raises(ValueError, match="unit 8: expected 0 <= unit < 8"):
        group.locate(8, 4)
    with pytest.raises(ValueError, match="unit 0"):
        group.locate(0, 0)
    with pytest.raises(ValueError, match="found 2, expected one for each of n=3 members"):
        group.segment_units([1, 2])
    with pytest.raises(ValueError, match="found -1 units, expected 0 or more"):
        group.segment_units([1, -1, 2])


# A group of nodes in memory: what ckptd does with layout and code together, without the network.


@dataclass
class Group:
    layout: Layout
    unit: int
    payloads: list[bytes]
    parities: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """By (stripe, row)."""

    def __post_init__(self) -> None:
        self.code = Code(k=self.layout.k, m=self.layout.m)
        units = [len(payload) // self.unit for payload in self.payloads]
        self.c = self.layout.segment_units(units) * self.unit
        for position in range(self.layout.n):
            for stripe, row in self.layout.owned(position):
                self.parities[stripe, row] = self.encode(stripe, row, self.payloads)

    def segment(self, payload: bytes, number: int) -> bytes:
        return payload[number * self.c : (number + 1) * self.c].ljust(self.c, b"\0")

    def data(self, payload: bytes, position: int, stripe: int) -> bytes:
        number = self.layout.segment_of(position, stripe)
        assert number is not None
        return self.segment(payload, number)

    def encode(self, stripe: int, row: int, payloads: list[bytes]) -> bytes:
        sources = [self.data(payloads[position], position, stripe) for position in self.layout.data_positions(stripe)]
        out = bytearray(self.c)
        self.code.encode(sources, [row], [out])
        return bytes(out)

    def survivors(self, stripe: int, lost: Collection[int]) -> dict[int, bytes]:
        symbols = {}
        for position in set(range(self.layout.n)) - set(lost):
            symbol = self.layout.symbol_of(position, stripe)
            if symbol < self.layout.k:
                symbols[symbol] = self.data(self.payloads[position], position, stripe)
            else:
                symbols[symbol] = self.parities[stripe, symbol - self.layout.k]
        return symbols

    def rebuild(self, position: int, lost: Collection[int]) -> bytes:
        """The payload of a lost position, from the survivors alone."""
        payload = bytearray(self.layout.k * self.c)
        for segment in range(self.layout.k):
            stripe = self.layout.stripe_of(position, segment)
            out = memoryview(payload)[segment * self.c : (segment + 1) * self.c]
            self.code.decode(self.survivors(stripe, lost), [self.layout.symbol_of(position, stripe)], [out])
        return bytes(payload)


def group_of(layout: Layout, rng: Random) -> Group:
    """Payloads of 0 to 2k+1 units of an odd or even length, the first of them not empty."""
    unit = rng.choice([1, 3, 7, 8, 17])
    units = [rng.randint(index == 0, 2 * layout.k + 1) for index in range(layout.n)]
    return Group(layout, unit, [rng.randbytes(unit * count) for count in units])


def check_recovery(group: Group, lost: Collection[int]) -> None:
    """Everything that the lost positions held is rebuilt, bit for bit."""
    rebuilt = list(group.payloads)
    for position in lost:
        padded = group.rebuild(position, lost)
        payload = group.payloads[position]
        assert padded == payload.ljust(group.layout.k * group.c, b"\0")
        rebuilt[position] = padded[: len(payload)]
    for position in lost:
        for stripe, row in group.layout.owned(position):
            assert group.encode(stripe, row, rebuilt) == group.parities[stripe, row]


def patterns(n: int, sizes: range) -> Iterator[tuple[int, ...]]:
    for size in sizes:
        yield from combinations(range(n), size)


@pytest.mark.parametrize("layout", UP_TO_SIX, ids=str)
def test_every_loss_of_up_to_m_members_is_rebuilt(layout: Layout) -> None:
    """Every loss pattern of every group up to n=6: payloads and parities come back bit for bit."""
    group = group_of(layout, Random(100 * layout.k + layout.m))
    for lost in patterns(layout.n, range(layout.m + 1)):
        check_recovery(group, lost)


@pytest.mark.parametrize("layout", UP_TO_SIX, ids=str)
def test_every_loss_of_more_than_m_members_is_refused(layout: Layout) -> None:
    """More losses than parities never yield bytes: the error says how many symbols there are and how many it takes."""
    group = group_of(layout, Random(layout.n))
    for lost in patterns(layout.n, range(layout.m + 1, layout.n + 1)):
        for position in lost:
            with pytest.raises(TooFewSymbols) as caught:
                group.rebuild(position, lost)
            assert (caught.value.present, caught.value.needed) == (layout.n - len(lost), layout.k)


@few
@given(st.builds(Layout, k=st.integers(1, 16), m=st.integers(0, 4)), st.data())
def test_random_losses_of_larger_groups_are_rebuilt(layout: Layout, data: st.DataObject) -> None:
    """Up to 16 + 4 members, any sizes, any loss of up to m."""
    group = group_of(layout, data.draw(st.randoms(use_true_random=False)))
    check_recovery(group, data.draw(st.sets(st.integers(0, layout.n - 1), max_size=layout.m)))
