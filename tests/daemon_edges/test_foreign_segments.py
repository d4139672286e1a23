"""A segment directory that is not, or not wholly, this daemon's: a clear error, and nothing is touched that isn't ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.payload import bytes_of

from ckptd.ckpt.errors import AccessError
from ckptd.ckpt.groups import map_of, parities_of
from ckptd.ckpt.model import PIECE, Payload, Table, Version
from ckptd.ckpt.pieces import sums_of
from ckptd.daemon.events import SlotId
from ckptd.daemon.records import Owner
from ckptd.daemon.segments import Segments

V1 = Version(1, 1)
MINE = Owner("mine", 1, 4)
MAP = map_of(1, range(4), parity=1, size=4)


def opened(folder: Path, owner: Owner = MINE) -> Segments:
    return Segments(folder, owner=owner)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with one image and one parity of the job "mine", left by its daemon."""
    segments = opened(tmp_path / "segments")
    slot, data = SlotId(0, 0), bytes_of(V1, 0)
    path = segments.file_for(slot, len(data))
    path.write_bytes(data)
    image = segments.record(slot, V1, 1)
    name, view = segments.new_parity(PIECE)
    view[:] = bytes(PIECE)
    table = Table(V1, 1, (Payload(1, (image,)),), MAP)
    (parity,) = parities_of(table, MINE.node)
    segments.record_parity(name, parity, table, ((1,),), sums_of(view))
    view.release()
    segments.close(clean=False)
    return tmp_path / "segments"


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every entry of a directory tree but the lock: its bytes, or where it leads."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and name != "lock":
            found[name] = path.read_bytes()
        elif name != "lock":
            found[name] = "other"
    return found


def test_what_is_ours_is_found_again(folder: Path) -> None:
    slots, parities = opened(folder).scan()
    assert [found.version for found in slots] == [V1]
    assert [found.parity.stripe for found in parities] == [1]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Owner("theirs", 1, 4), "belongs to job 'mine', node 1; this is job 'theirs', node 1"),
        (Owner("mine", 2, 4), "belongs to job 'mine', node 1; this is job 'mine', node 2"),
    ],
)
def test_another_job_or_node_is_refused(folder: Path, other: Owner, says: str) -> None:
    before = contents(folder)
    with pytest.raises(AccessError, match=says) as caught:
        opened(folder, other)
    assert "choose another segment directory" in str(caught.value)
    assert contents(folder) == before
    opened(folder).scan()  # the lock was let go


@pytest.mark.parametrize(
    "owner",
    [
        b"", b"{", b"[]", b"\xff", b'{"format": 2, "job": "mine"}', b'{"format": 2}', b'{"format": 2, "format": 2}',
        b'{"format": 1, "job": "mine", "node": 1, "nodes": 4}',
        b'{"format": 2, "job": "mine", "node": -1, "nodes": 4}',
        b'{"format": 2, "job": "mine", "node": true, "nodes": 4}',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_an_owner_that_cannot_be_read_is_refused(folder: Path, owner: bytes) -> None:
    """Another version of ckptd, or half a file: who knows what the rest means."""
    (folder / "owner.json").write_bytes(owner)
    before = contents(folder)
    with pytest.raises(AccessError, match=r"owner\.json can't be read"):
        opened(folder)
    assert contents(folder) == before


def test_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("do not delete")
    before = contents(tmp_path)
    with pytest.raises(AccessError, match=r"holds 'thesis\.tex', which is not ckptd's"):
        opened(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("nodes", "kept"), [(2, 0), (3, 0), (4, 1), (6, 1)])
def test_images_survive_another_node_count_and_parities_where_they_can(folder: Path, nodes: int, kept: int) -> None:
    """A parity whose map names nodes that the job no longer has is dropped; what a rank captured is what it was.

    With more nodes than before it stays good: it goes when the newest sealed version is protected under a map of all.
    """
    segments = opened(folder, Owner("mine", 1, nodes))
    slots, parities = segments.scan()
    assert len(slots) == 1
    assert len(parities) == kept
    assert len(list(folder.glob("parity-*.json"))) == kept
    assert json.loads((folder / "owner.json").read_text()) == {"format": 2, "job": "mine", "node": 1, "nodes": nodes}


def test_the_file_of_a_parity_that_was_dropped_is_used_again(folder: Path) -> None:
    (file,) = folder.glob("parity.*.bin")
    segments = opened(folder, Owner("mine", 1, 2))
    segments.scan()
    assert segments.new_parity(PIECE)[0] == file.name


def test_a_parity_that_another_node_should_keep_is_dropped(folder: Path) -> None:
    """A record that says so was not written by this node; a stripe and a row that do not exist are nobody's."""
    (record,) = folder.glob("parity-*.json")
    content = json.loads(record.read_text())
    for stripe, row in ((2, 0), (1, 1), (9, 0)):
        other = folder / record.name.replace("parity-000-001-00", f"parity-000-{stripe:03d}-{row:02d}")
        other.write_text(json.dumps(content | {"stripe": stripe, "row": row}))
    _, parities = opened(folder).scan()
    assert [found.parity.stripe for found in parities] == [1]
    assert list(folder.glob("parity-*.json")) == [record]


def _torn(folder: Path) -> None:
    record = next(folder.glob("*.slot-0.json"))
    record.write_bytes(record.read_bytes()[:-40])


def _climbing(folder: Path) -> None:
    record = next(folder.glob("*.slot-0.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"file": "../outside.safetensors"}))


def _absolute(folder: Path) -> None:
    record = next(folder.glob("parity-*.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"file": "/etc/passwd"}))


def _negative(folder: Path) -> None:
    record = next(folder.glob("*.slot-0.json"))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"size": -1}))


def _linked(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.rename(folder.parent / "outside.bin")
    file.symlink_to(folder.parent / "outside.bin")


def _fifo(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("spoil", [_torn, _climbing, _absolute, _negative, _linked, _fifo])
def test_a_record_that_lies_is_lost_and_nothing_outside_is_touched(folder: Path, spoil: Callable[[Path], None]) -> None:
    """Half written, a name that climbs out, a length below nothing, a link, a fifo: the image counts as lost."""
    outside = folder.parent / "outside.safetensors"
    outside.write_text("not yours")
    spoil(folder)
    before = {name: data for name, data in contents(folder.parent).items() if not name.startswith("segments/")}
    slots, parities = opened(folder).scan()
    assert len(slots) + len(parities) == 1
    assert {n: d for n, d in contents(folder.parent).items() if not n.startswith("segments/")} == before


def test_what_somebody_else_has_put_there_stays(folder: Path) -> None:
    """Also where it has one of our names but is no file, and when the directory is given up."""
    (folder / "notes.txt").write_text("mine")
    (folder / "rank-00009.slot-0.json").symlink_to("/etc/hostname")
    segments = opened(folder)
    segments.scan()
    segments.close(clean=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not list(folder.glob("*.safetensors"))
    assert not (folder / "owner.json").exists()


def test_a_clean_end_leaves_nothing(folder: Path) -> None:
    segments = opened(folder)
    segments.scan()
    segments.close(clean=True)
    assert not folder.exists()
