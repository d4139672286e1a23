"""The files of the segment directory: used again, of exactly the right size, within the budget, and one daemon's alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.daemon_edges.segment_life import (
    PARITY,
    ROWS,
    SIZE,
    SLOT,
    TABLE,
    V1,
    V2,
    Life,
    capture,
    files,
    make_parity,
    table_of,
)  # fmt: skip
from tests.payload import bytes_of, flip

from ckptd.ckpt.errors import AccessError, MemoryBudgetError
from ckptd.ckpt.groups import map_of
from ckptd.ckpt.inventory import Parity
from ckptd.ckpt.model import PIECE
from ckptd.ckpt.pieces import sums_of
from ckptd.daemon.events import FoundParity, SlotId
from ckptd.daemon.segments import Segments


def test_a_dropped_slot_keeps_its_file(segments: Segments) -> None:
    """The record goes before the bytes change, and the same pages are filled again."""
    first = segments.file_for(SLOT, SIZE)
    capture(segments, SLOT, V1)
    segments.drop(SLOT)
    assert segments.image(V1, 3) is None
    assert files(segments, ".json") == []
    assert segments.file_for(SLOT, SIZE) == first
    capture(segments, SLOT, V2)
    assert segments.file_for(SLOT, SIZE) == first
    assert len(files(segments, ".safetensors")) == 1


def test_another_size_makes_another_file(segments: Segments) -> None:
    """When the layout changes, the old file goes and the new one has exactly the new size."""
    capture(segments, SLOT, V1)
    segments.drop(SLOT)
    path = segments.file_for(SLOT, SIZE + 1)
    assert path.stat().st_size == SIZE + 1
    assert files(segments, ".safetensors") == [path.name]
    assert segments.usage() == {"payload": SIZE + 1, "parity": 0}


def test_reserved_files_are_taken_first(segments: Segments) -> None:
    """`reserve` makes what is missing and no more; slots then take those files; a new size replaces the spare ones."""
    made = segments.reserve(3, SIZE, 3)
    reserved = set(files(segments, ".safetensors"))
    assert {path.name for path in made} == {Path(name).name for name in reserved}
    assert sorted(segments.reserve(3, SIZE, 3)) == sorted(made)
    assert set(files(segments, ".safetensors")) == reserved
    assert len(reserved) == 3
    taken = {segments.file_for(SlotId(3, index), SIZE).name for index in range(2)}
    assert taken < reserved
    segments.reserve(3, SIZE, 3)
    assert set(files(segments, ".safetensors")) == reserved
    other = segments.file_for(SlotId(4, 0), SIZE).name
    assert other not in reserved
    segments.reserve(3, SIZE + 1, 3)
    now = set(files(segments, ".safetensors"))
    assert now & reserved == taken  # slots keep theirs until they are filled again
    assert segments.usage()["payload"] == 3 * SIZE + 3 * (SIZE + 1)


def test_files_that_somebody_removed(segments: Segments) -> None:
    """Where /dev/shm was tidied up by others, slots and parities get new files, and what is mapped is still served."""
    image = capture(segments, SLOT, V1)
    make_parity(segments)
    segments.drop_parity(PARITY)
    segments.reserve(3, SIZE, 2)
    for path in segments.directory.iterdir():
        path.unlink()
    held = segments.image(V1, 3, image.digest)
    assert held is not None
    assert held.view == bytes_of(V1, 3, SIZE)
    for index in (0, 1):
        assert segments.file_for(SlotId(3, index), SIZE).stat().st_size == SIZE
    capture(segments, SLOT, V2)
    make_parity(segments)


def test_the_budget_is_kept(folder: Path) -> None:
    """No file is made beyond the budget; the message has the numbers; what was given up makes room again."""
    segments = Segments(folder, memory_bytes=3 * PIECE)
    path = segments.file_for(SLOT, 2 * PIECE)
    with pytest.raises(
        MemoryBudgetError, match=f"take {2 * PIECE} bytes and {2 * PIECE} more are needed, the budget is"
    ):
        segments.file_for(SlotId(3, 0), 2 * PIECE)
    with pytest.raises(MemoryBudgetError):
        segments.new_parity(2 * PIECE)
    with pytest.raises(MemoryBudgetError):
        segments.reserve(3, 2 * PIECE, 2)
    segments.new_parity(PIECE)
    with pytest.raises(MemoryBudgetError):
        segments.file_for(SLOT, 3 * PIECE)
    assert not path.exists()
    segments.file_for(SLOT, PIECE)
    segments.close(clean=True)
    assert not folder.exists()


def test_a_parity_file_is_used_again(segments: Segments) -> None:
    """A parity that was dropped or abandoned gives its file to the next one of its length; other lengths are removed."""
    make_parity(segments)
    (name,) = files(segments, ".bin")
    segments.drop_parity(PARITY)
    segments.drop_parity(PARITY)
    assert segments.parity(PARITY) is None
    assert segments.new_parity(2 * PIECE)[0] == name
    segments.abandon_parity(name, 2 * PIECE)
    assert segments.new_parity(2 * PIECE)[0] == name
    segments.abandon_parity(name, 2 * PIECE)
    longer = Parity(V2, table_of(V2).name, 0, 2, 1)
    make_parity(segments, longer, pieces=3)
    make_parity(segments, Parity(V2, table_of(V2).name, 0, 3, 0), pieces=3)
    segments.drop_parity(longer)
    assert name not in files(segments, ".bin")
    assert segments.usage() == {"payload": 0, "parity": 6 * PIECE}


def test_a_parity_made_anew_replaces_the_damaged_one(life: Life, segments: Segments) -> None:
    """Good bytes are served at once, also after a restart, and the damaged file is the one that is used again."""
    make_parity(segments)
    (damaged,) = files(segments, ".bin")
    flip(segments.directory / damaged, 5)
    data = make_parity(segments)
    kept = segments.parity(PARITY)
    assert kept is not None
    assert segments.check(kept) == []
    assert kept.view == data
    assert len(segments.parity_entries()) == 1
    assert len(files(segments, ".bin")) == 2
    assert segments.new_parity(2 * PIECE)[0] == damaged
    later = life.again()
    assert later.scan()[1] == (FoundParity(PARITY, TABLE),)


def test_parities_of_two_maps_are_kept_side_by_side(life: Life, segments: Segments) -> None:
    """The same stripe and row of a version under another map is another parity, with a record of its own."""
    moved = replace(TABLE, map=map_of(2, range(5), parity=2, size=5))
    other = replace(PARITY, table=moved.name)
    first = make_parity(segments)
    name, view = segments.new_parity(PIECE)
    view[:] = bytes(PIECE)
    segments.record_parity(name, other, moved, ROWS, sums_of(view))
    later = life.again()
    assert set(later.scan()[1]) == {FoundParity(PARITY, TABLE), FoundParity(other, moved)}
    later.drop_parity(other)
    kept = later.parity(PARITY)
    assert kept is not None
    assert kept.view == first
    assert life.again().scan()[1] == (FoundParity(PARITY, TABLE),)


def test_a_parity_that_could_not_be_recorded_is_not_lost_memory(
    segments: Segments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the record can't be written, the parity is not kept and its file can be used again."""
    name, view = segments.new_parity(PIECE)

    def full(path: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            segments.record_parity(name, PARITY, TABLE, ROWS, sums_of(view))
    assert segments.parity(PARITY) is None
    segments.abandon_parity(name, PIECE)
    assert segments.new_parity(PIECE)[0] == name


def test_usage_while_files_come_and_go(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is removed while the bytes are added up is not counted, and no error."""
    capture(segments, SLOT, V1)
    make_parity(segments)
    listed = [*segments.directory.iterdir(), segments.directory / "rank-00009.00000000.safetensors"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    assert segments.usage() == {"payload": SIZE, "parity": 2 * PIECE}


def test_images_brought_for_a_restore(life: Life, segments: Segments) -> None:
    """They lie in a private directory of their version, are replaced when asked for again, and go with `release`."""
    path = segments.restored.directory_of(V1) / "rank-00000.safetensors"
    segments.restored.make(path, SIZE)[:] = bytes_of(V1, 0, SIZE)
    assert path.read_bytes() == bytes_of(V1, 0, SIZE)
    segments.restored.make(path, 10)
    assert path.read_bytes() == bytes(10)
    segments.restored.release(V2)
    assert path.exists()
    segments.restored.release(V1)
    segments.restored.release(V1)
    assert not path.parent.exists()
    segments.restored.make(segments.restored.directory_of(V1) / "rank-00000.safetensors", SIZE)
    later = life.again()
    later.scan()
    assert not (later.directory / "restore").exists()  # a restore that was cut off is asked for anew


def test_two_daemons_on_one_directory(life: Life, segments: Segments) -> None:
    """The second one is refused by name and takes nothing; after the first one's end it may have it."""
    capture(segments, SLOT, V1)
    with pytest.raises(AccessError, match="in use by another daemon; stop it or choose another segment directory"):
        Segments(segments.directory)
    life.again()
