"""The contract of `Transport`, on every one that there is: the right bytes, or an error that says whose fault it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.contract.wires import DATA, IMAGE, PARITY, PIECES, SIZE, SUMS, WIRES, V, Wire

from ckptd.ckpt.errors import CorruptionError, PeerError
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.daemon.transport import DamagedThere, Endpoint, NotHeld, Range


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    with WIRES[request.param]() as made:
        yield made


def slice_of(first: int, count: int) -> bytes:
    return DATA[first * PIECE : (first + count) * PIECE]


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, PIECES), (1, 1), (2, 4), (PIECES - 1, 1), (3, PIECES - 3)])
@pytest.mark.parametrize("what", [IMAGE, PARITY])
def test_any_range_arrives(wire: Wire, first: int, count: int, what: Image | Parity) -> None:
    """Every range of pieces of an image and of a parity arrives to the byte, the short last piece too."""
    assert wire.read(first, count, what) == slice_of(first, count)


def test_only_the_range_is_written(wire: Wire) -> None:
    """Nothing beyond the bytes of the range is touched, though there would be room."""
    into = bytearray(b"\xaa" * (SIZE + PIECE))
    assert wire.transport.read(wire.holder, Range(V, IMAGE, 0, PIECES), memoryview(into)[:SIZE]) == SIZE
    assert into == DATA + b"\xaa" * PIECE


@pytest.mark.parametrize(
    "wanted",
    [
        Range(Version(3, 8), IMAGE, 0, 1),
        Range(Version(2, 7), IMAGE, 0, 1),
        Range(V, Image(1, SIZE, IMAGE.digest), 0, 1),
        Range(V, Image(0, SIZE, "00" * 16), 0, 1),
        Range(V, replace(PARITY, row=1), 0, 1),
        Range(V, replace(PARITY, table="00" * 16), 0, 1),
        Range(V, PARITY, PIECES, 1),
        Range(V, PARITY, PIECES - 1, 2),
        Range(V, PARITY, 2**32 - 1, 1),
    ],
)
def test_what_is_not_held_is_said(wire: Wire, wanted: Range) -> None:
    """Another version, rank, digest or parity, and pieces beyond the end, are refused; the next read goes on."""
    with pytest.raises(NotHeld, match=rf"{re.escape(str(wire.holder))} does not hold pieces"):
        wire.transport.read(wire.holder, wanted, memoryview(bytearray(2 * PIECE)))
    assert wire.read() == DATA


def test_damage_at_the_holder(wire: Wire) -> None:
    """It is reported to the holder and named; every other piece of the range has arrived."""
    for piece in (1, 2, 6):
        wire.held.damage(piece)
    into = bytearray(SIZE)
    with pytest.raises(
        DamagedThere, match=rf"node 1 .*: piece 1, 2, 6 of pieces 0\.\.{PIECES - 1} .*where it is held"
    ) as e:
        wire.transport.read(wire.holder, Range(V, IMAGE, 0, PIECES), memoryview(into))
    assert e.value.pieces == (1, 2, 6)
    assert sorted(wire.held.reported) == [1, 2, 6]
    for piece in {0, 3, 4, 5, 7}:
        assert into[piece * PIECE : (piece + 1) * PIECE] == slice_of(piece, 1)
    assert wire.read(3, 3) == slice_of(3, 3)


@pytest.mark.parametrize("flips", [1, 2])
def test_bits_that_flip_on_the_way(wire: Wire, flips: int) -> None:
    """What arrives damaged but is whole where it is held is read again, and nobody counts it as lost."""
    wire.faults.flips = flips
    assert wire.read() == DATA
    assert wire.held.reported == []


def test_bits_that_flip_again_and_again(wire: Wire) -> None:
    """A piece that never arrives whole ends the read: neither the holder's fault nor an endless loop."""
    wire.faults.flips = 1_000_000
    with pytest.raises(CorruptionError, match=r"node 1 .*: piece 4 of .* again and again") as e:
        wire.read(4, 1)
    assert not isinstance(e.value, DamagedThere)
    assert wire.held.reported == []
    assert wire.faults.moved <= 4 * PIECE


@pytest.mark.parametrize("after", [0, 1000, 2 * PIECE, 3 * PIECE, 5 * PIECE + 4321])
def test_a_break_is_resumed(wire: Wire, after: int) -> None:
    """After a broken connection only what had not arrived is transferred again."""
    wire.faults.cuts, wire.faults.cut_after = 1, after
    assert wire.read() == DATA
    assert wire.faults.moved <= SIZE + after % PIECE


def test_breaks_without_end(wire: Wire) -> None:
    """A path that brings a piece each time is used to the end; one that brings nothing is given up."""
    wire.faults.cuts, wire.faults.cut_after = 100, PIECE + 5
    assert wire.read() == DATA
    wire.faults.cuts, wire.faults.cut_after = 100, PIECE - 5
    with pytest.raises(PeerError, match=r"node 1 .* closed in the middle"):
        wire.read()
    assert wire.faults.cuts == 98


def test_a_slot_that_is_used_again(wire: Wire) -> None:
    """Bytes that were given up while they were read end the read with `NotHeld`, whatever stands there now."""
    wire.held.given_up = True
    wire.held.data[:] = bytes(len(wire.held.data))
    with pytest.raises(NotHeld, match="not any more"):
        wire.read()
    assert wire.held.reported == []


def test_sums_are_listed(wire: Wire) -> None:
    """The sums of an image come without its bytes, whatever has become of these; no damage is reported for it."""
    wire.held.damage(3)
    assert wire.transport.sums(wire.holder, V, IMAGE) == SUMS
    assert (wire.held.reported, wire.faults.moved) == ([], 0)


def test_who_protects_an_image_lists_its_sums(wire: Wire) -> None:
    """And serves none of its pieces, which it does not hold."""
    wire.held.protects = True
    assert wire.transport.sums(wire.holder, V, IMAGE) == SUMS
    with pytest.raises(NotHeld):
        wire.transport.sums(wire.holder, V, replace(IMAGE, digest="0" * 32))
    with pytest.raises(NotHeld):
        wire.transport.read(wire.holder, Range(V, IMAGE, 0, 1), memoryview(bytearray(PIECE)))


@pytest.mark.parametrize(
    ("version", "image"),
    [(Version(3, 8), IMAGE), (V, Image(1, SIZE, IMAGE.digest)), (V, Image(0, SIZE, "00" * 16))],
)
def test_sums_that_are_not_held(wire: Wire, version: Version, image: Image) -> None:
    """Of another version, rank or digest there is no list; reads go on."""
    with pytest.raises(NotHeld, match=re.escape(str(wire.holder))):
        wire.transport.sums(wire.holder, version, image)
    assert wire.read() == DATA


def test_false_sums_are_found_out(wire: Wire) -> None:
    """A list that is not the one that the image's digest is of is refused, with the holder's name."""
    wire.held.stretch.sums[2] ^= 1
    with pytest.raises(CorruptionError, match=r"node 1 .* lists other sums than those of rank 0"):
        wire.transport.sums(wire.holder, V, IMAGE)


def test_many_at_a_time(wire: Wire) -> None:
    """Many threads get the right bytes at the same time."""
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda first: wire.read(first % PIECES, 1) == slice_of(first % PIECES, 1), range(60)))


def test_another_node_is_not_believed(wire: Wire) -> None:
    """Who answers for another node than the one that was meant is refused."""
    stranger = Endpoint(2, wire.holder.host, wire.holder.port)
    with pytest.raises(PeerError, match="node 2"):
        wire.transport.read(stranger, Range(V, IMAGE, 0, 1), memoryview(bytearray(PIECE)))


def test_after_the_end(wire: Wire) -> None:
    """A closed transport reads no more; closing twice is nothing."""
    wire.transport.close()
    wire.transport.close()
    with pytest.raises(PeerError):
        wire.read()
    with pytest.raises(PeerError):
        wire.transport.sums(wire.holder, V, IMAGE)
