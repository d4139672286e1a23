"""The segment directory: what is recorded is found again, and what does not match its record is not."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon_edges.segment_life import PARITY, SIZE, SLOT, TABLE, V1, V2, Life, capture, files, make_parity
from tests.payload import bytes_of, flip

from ckptd.ckpt.model import PIECE
from ckptd.daemon.events import Damaged, FoundParity, FoundSlot, ParityDamaged, SlotId
from ckptd.daemon.segments import Segments


def test_what_is_recorded_is_found_again(life: Life, segments: Segments) -> None:
    """After a restart every slot and parity is there with its bytes, sums and table, and the directory is private."""
    image = capture(segments, SLOT, V1)
    parity = make_parity(segments)
    segments.remember(7, V2)
    later = life.again()
    assert later.scan() == ((FoundSlot(SLOT, V1, 4, image, "captured"),), (FoundParity(PARITY, TABLE),))
    assert later.remembered() == (7, V2)
    held = later.image(V1, 3, image.digest)
    kept = later.parity(PARITY)
    assert held is not None
    assert kept is not None
    assert held.view == bytes_of(V1, 3, SIZE)
    assert kept.view == parity
    assert later.check(held) == later.check(kept) == []
    assert later.slot_path(V1, 3) == later.file_for(SLOT, SIZE)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in later.directory.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(later.directory.stat().st_mode) == 0o700


def test_the_origin_of_an_image_is_known_at_once(segments: Segments) -> None:
    """Who gathers right after a rebuild is told where the image came from, before any report has gone out."""
    capture(segments, SLOT, V1)
    assert segments.origin(V1, 3) == "captured"
    segments.record(SLOT, V2, 4, "parity")
    assert (segments.origin(V1, 3), segments.origin(V2, 3)) == (None, "parity")


def test_only_the_asked_digest_is_served(segments: Segments) -> None:
    """An image of the same rank and version with other bytes is not what the reader wants."""
    image = capture(segments, SLOT, V1)
    assert segments.image(V1, 3, image.digest) is not None
    assert segments.image(V1, 3, "00" * 16) is None
    assert segments.image(V1, 2) is None
    assert segments.image(V2, 3) is None
    assert segments.slot_path(V2, 3) is None


def test_an_empty_directory(segments: Segments) -> None:
    """A first start finds nothing and remembers nothing."""
    assert segments.scan() == ((), ())
    assert segments.remembered() == (0, None)
    assert segments.usage() == {"payload": 0, "parity": 0}


@pytest.mark.parametrize("offset", [0, PIECE, SIZE - 1])
def test_a_flipped_bit_is_found_at_the_start(life: Life, segments: Segments, offset: int) -> None:
    """A slot whose bytes no longer match its record holds nothing."""
    capture(segments, SLOT, V1)
    path = segments.file_for(SLOT, SIZE)
    flip(path, offset)
    later = life.again()
    assert later.scan() == ((), ())
    assert files(later, ".json") == []
    assert not path.exists()


def test_a_flipped_bit_in_a_parity_is_found_at_the_start(life: Life, segments: Segments) -> None:
    """A parity whose bytes no longer match its record holds nothing; its file is used again."""
    make_parity(segments)
    (name,) = files(segments, ".bin")
    flip(segments.directory / name, PIECE)
    later = life.again()
    assert later.scan() == ((), ())
    assert later.new_parity(2 * PIECE)[0] == name


def test_damage_is_found_and_told_while_it_runs(segments: Segments) -> None:
    """`check` names the damaged pieces and whose they are; bytes that were given up meanwhile are nobody's damage."""
    told: list[Damaged | ParityDamaged] = []
    segments.on_damage = told.append
    capture(segments, SLOT, V1)
    make_parity(segments)
    held, kept = segments.image(V1, 3), segments.parity(PARITY)
    assert held is not None
    assert kept is not None
    assert (segments.check(held), segments.check(kept), told) == ([], [], [])
    flip(segments.file_for(SLOT, SIZE), 2 * PIECE + 99)
    flip(segments.directory / files(segments, ".bin")[0], 0)
    assert segments.check(held, 0, 2) == []
    assert segments.check(held, 1, 2) == segments.check(held) == [2]
    assert segments.check(kept) == [0]
    assert told == [Damaged(SLOT, V1, (2,)), Damaged(SLOT, V1, (2,)), ParityDamaged(PARITY)]
    segments.drop(SLOT)
    segments.drop_parity(PARITY)
    assert segments.check(held) is None
    assert segments.check(kept) is None
    assert len(told) == 3


def lose_half(path: Path) -> None:
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def change(**fields: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def drop_field(path: Path) -> None:
    content = json.loads(path.read_text())
    del content["size"]
    path.write_text(json.dumps(content))


def nest(path: Path) -> None:
    path.write_text("[" * 100_000)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


COMMON = [
    lose_half,
    nest,
    drop_field,
    make_folder,
    lambda path: path.write_bytes(b"\xff\x00"),
    lambda path: path.write_text("[]"),
    change(file="../../../etc/passwd"),
    change(file="rank-00003.00000000.safetensors"),
    change(file=None),
    change(size=SIZE + 1),
    change(size=-1),
    change(size=True),
    change(size=float("inf")),
    change(size=1e400),
    change(sums=[1, 2, 3]),
    change(sums=None),
]
SLOT_ONLY = [
    change(digest="00" * 16),
    change(digest=None),
    change(origin="guessed"),
    change(origin=[]),
    change(epoch=-1),
    change(step="1"),
    change(step=1 << 60),
    change(world=-1),
    change(world=None),
]
PARITY_ONLY = [
    change(table=None),
    change(table={}),
    change(group=-1),
    change(stripe="2"),
    change(row=None),
    change(row=0),
]


@pytest.mark.parametrize("spoil", COMMON + SLOT_ONLY)
def test_a_bad_slot_record_is_dropped(life: Life, segments: Segments, spoil: Callable[[Path], object]) -> None:
    """A torn, foreign or impossible record is no image, never an end of the daemon; the others are still found."""
    capture(segments, SLOT, V1)
    good = capture(segments, SlotId(3, 0), V2)
    spoil(segments.directory / "rank-00003.slot-1.json")
    later = life.again()
    assert later.scan() == ((FoundSlot(SlotId(3, 0), V2, 4, good, "captured"),), ())


@pytest.mark.parametrize("spoil", COMMON + PARITY_ONLY)
def test_a_bad_parity_record_is_dropped(life: Life, segments: Segments, spoil: Callable[[Path], object]) -> None:
    """The same for the records of parities."""
    make_parity(segments)
    image = capture(segments, SLOT, V1)
    spoil(segments.directory / f"parity-000-002-01.e1.s1.{TABLE.name[:8]}.json")
    later = life.again()
    assert later.scan() == ((FoundSlot(SLOT, V1, 4, image, "captured"),), ())


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"epoch": -1, "sealed": null}', '{"epoch": 1, "sealed": 5}', '{"epoch": 1}', "[" * 9999],
)
def test_bad_remembered_numbers(segments: Segments, content: str) -> None:
    """What is remembered is read whole or not at all."""
    (segments.directory / "daemon.json").write_text(content)
    assert segments.remembered() == (0, None)


def test_foreign_files_are_left_alone(life: Life, segments: Segments) -> None:
    """Files of other names are neither read nor removed nor counted."""
    names = ["notes.txt", "rank-3.slot-1.json.bak", "rank-00003.zzzzzzzz.safetensors", "parity.bin", ".hidden.json"]
    for name in names:
        (segments.directory / name).write_text("{")
    later = life.again()
    assert later.scan() == ((), ())
    assert all((later.directory / name).exists() for name in names)
    assert later.usage() == {"payload": 0, "parity": 0}


def test_large_ranks_are_found_too(life: Life, segments: Segments) -> None:
    """A rank of six digits has records and files like any other."""
    image = capture(segments, SlotId(123_456, 0), V1)
    later = life.again()
    assert [found.image for found in later.scan()[0]] == [image]


def test_a_crash_before_the_record_leaves_nothing(life: Life, segments: Segments) -> None:
    """A file that was being filled, and a record that was being written, are no image. The file is not used again.

    Who was filling it may do so yet: a trainer that hangs writes to nobody's memory when it goes on.
    """
    path = segments.file_for(SLOT, SIZE)
    path.write_bytes(bytes_of(V1, 3, SIZE))
    (segments.directory / "rank-00003.slot-1.tmp").write_text("{")
    later = life.again()
    assert later.scan() == ((), ())
    assert later.file_for(SlotId(3, 2), SIZE) != path
    capture(later, SLOT, V1)
