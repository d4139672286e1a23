"""Files that are lent to stage in: nobody else's while they are held, then a slot's with what stands in them, or spare."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.daemon_edges.segment_life import SIZE, SLOT, V1, capture, files
from tests.payload import bytes_of

from ckptd.ckpt.errors import MemoryBudgetError
from ckptd.daemon.events import SlotId
from ckptd.daemon.lent import LENT_MAX
from ckptd.daemon.segments import Segments

RANK = SLOT.rank


@pytest.fixture
def segments(tmp_path: Path) -> Iterator[Segments]:
    made = Segments(tmp_path / "segments")
    yield made
    made.close(clean=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """As a trainer holds a file that it was lent."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def test_a_lent_file_becomes_the_slots(segments: Segments) -> None:
    """With the bytes that stand in it; the file that the slot had is the next that is lent."""
    old = segments.file_for(SLOT, SIZE)
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        path.write_bytes(bytes_of(V1, RANK, SIZE))
        assert segments.file_for(SLOT, SIZE, lent=path.name) == path
        image = segments.record(SLOT, V1, 4)
        found = segments.image(V1, RANK, image.digest)
        assert found is not None
        assert found.view == bytes_of(V1, RANK, SIZE)
        assert segments.lent.lend(RANK, SIZE) == old
    assert len(files(segments, ".safetensors")) == 2


def test_a_slots_file_of_another_size_goes(segments: Segments) -> None:
    """When a lent file takes its place, nobody would ask for it any more."""
    old = segments.file_for(SLOT, SIZE + 1)
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        assert segments.file_for(SLOT, SIZE, lent=path.name) == path
    assert not old.exists()


def test_a_slot_without_a_file_takes_a_lent_one(segments: Segments) -> None:
    """As the second slot of a rank does."""
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        assert segments.file_for(SlotId(RANK, 1), SIZE, lent=path.name) == path
    assert files(segments, ".safetensors") == [path.name]


def test_the_files_of_the_slots_are_left_to_them(segments: Segments) -> None:
    """Of three slots, one is in use: the two spare files are theirs, and one is made to be lent."""
    path = segments.file_for(SLOT, SIZE)
    reserved = {path, *segments.reserve(RANK, SIZE, 3)}
    lent = segments.lend(RANK, SIZE, 3)
    assert len(reserved) == 3
    assert lent not in reserved
    with held(lent):
        assert segments.file_for(SLOT, SIZE, lent=lent.name) == lent
        assert segments.lend(RANK, SIZE, 3) in reserved  # what the slot had, or another spare one: one is too many now
    assert len(files(segments, ".safetensors")) == 4


def test_a_file_that_comes_back_late_is_not_kept(segments: Segments) -> None:
    """A failed save was slow to let go, and another file was made meanwhile: the rank has one beside its slots again."""
    slow = segments.lend(RANK, SIZE, 1)
    with held(slow):
        path = segments.lend(RANK, SIZE, 1)
        with held(path):
            assert segments.file_for(SLOT, SIZE, lent=path.name) == path
        third = segments.lend(RANK, SIZE, 1)
    with held(third):
        assert len(files(segments, ".safetensors")) == 3
        assert segments.file_for(SLOT, SIZE, lent=third.name) == third
        segments.lend(RANK, SIZE, 1)
    assert len(files(segments, ".safetensors")) == 2


def test_what_is_held_is_given_to_nobody_else(segments: Segments) -> None:
    """Neither to a slot, nor to a rebuild, nor lent again, whatever its holder does or does not do."""
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        others = [segments.lent.lend(RANK, SIZE), segments.file_for(SLOT, SIZE), *segments.reserve(RANK, SIZE, 3)]
        assert path not in others
        assert path.exists()


@pytest.mark.parametrize("give", ["lend", "reserve"])
def test_what_nobody_holds_any_more_is_used_again_under_another_name(segments: Segments, give: str) -> None:
    """Whoever was lent it and comes late finds it gone; its memory is what is lent, or reserved, next."""
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        inode = path.stat().st_ino
    (after,) = [segments.lent.lend(RANK, SIZE)] if give == "lend" else segments.reserve(RANK, SIZE, 1)
    assert after.stat().st_ino == inode
    assert not path.exists()
    assert segments.file_for(SLOT, SIZE, lent=path.name) != path
    assert len(files(segments, ".safetensors")) == (2 if give == "lend" else 1)


def test_what_is_given_back_goes_where_the_layout_has_changed(segments: Segments) -> None:
    """A file of the old size is of no use; one that is still held is let be until it is not."""
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        segments.reserve(RANK, SIZE + 1, 1)
        assert path.exists()
    segments.reserve(RANK, SIZE + 1, 1)
    assert not path.exists()
    assert len(files(segments, ".safetensors")) == 1


def test_a_rank_holds_no_more_than_two(segments: Segments) -> None:
    """One that lets go of nothing does not fill the memory; others are lent theirs."""
    paths = [segments.lent.lend(RANK, SIZE)]
    with held(paths[0]):
        paths.append(segments.lent.lend(RANK, SIZE))
        with held(paths[1]):
            assert len(paths) == LENT_MAX
            with pytest.raises(MemoryBudgetError, match="still holds 2 files"):
                segments.lent.lend(RANK, SIZE)
            segments.lent.lend(RANK + 1, SIZE)
        segments.lent.lend(RANK, SIZE)


@pytest.mark.parametrize("name", ["", "lock", "../lock", "rank-00003.00000000.safetensors"])
def test_a_name_that_was_not_lent_is_nobodys(segments: Segments, name: str) -> None:
    """What a trainer names is looked up and never opened; nor is another rank's file given, or one of another size."""
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        assert segments.file_for(SLOT, SIZE, lent=name).name not in (name, path.name)
        assert segments.file_for(SlotId(RANK + 1, 0), SIZE, lent=path.name) != path
        assert segments.file_for(SlotId(RANK, 1), SIZE + 1, lent=path.name) != path
        assert segments.file_for(SlotId(RANK, 2), SIZE, lent=path.name) == path
        assert segments.file_for(SlotId(RANK, 3), SIZE, lent=path.name) != path


def test_a_file_that_somebody_removed(segments: Segments) -> None:
    """The slot gets another one."""
    path = segments.lent.lend(RANK, SIZE)
    path.unlink()
    assert segments.file_for(SLOT, SIZE, lent=path.name) != path
    capture(segments, SLOT, V1)


def test_a_restart_removes_what_was_lent(tmp_path: Path) -> None:
    """Its holder may still write to it; with the name it is no slot's any more."""
    segments = Segments(tmp_path / "segments")
    path = segments.lent.lend(RANK, SIZE)
    with held(path):
        segments.close(clean=False)
        later = Segments(tmp_path / "segments")
        later.scan()
        assert not path.exists()
        assert later.file_for(SLOT, SIZE, lent=path.name) != path
        later.close(clean=True)


def test_the_budget_counts_what_is_lent(tmp_path: Path) -> None:
    """A file is not made beyond it."""
    segments = Segments(tmp_path / "budgeted", memory_bytes=2 * SIZE)
    for index in range(2):
        segments.file_for(SlotId(RANK, index), SIZE)
    with pytest.raises(MemoryBudgetError, match="the budget is"):
        segments.lent.lend(RANK, SIZE)
    segments.close(clean=True)
