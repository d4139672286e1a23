"""The storage tier: what is offered is whole, what is not whole is never offered."""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.payload import flip

from ckptd.ckpt import directory, manifest
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.recovery import Stored
from ckptd.ckpt.storage import Storage

JOB = "job"
V12 = Version(2, 12)
SIZES = (2 * PIECE + 100, 70_000)


def image_of(rank: int, data: bytes) -> Image:
    return Image(rank, len(data), digest_of(sums_of(data), len(data)))


def payload(version: Version) -> list[bytes]:
    """What the two ranks of the tests hold at a version."""
    return [random.Random(f"{version} {rank}").randbytes(size) for rank, size in enumerate(SIZES)]


def folder(storage: Storage) -> Path:
    return Path(storage.where)


def write(storage: Storage, version: Version) -> list[Image]:
    """Write every rank's image, without publishing."""
    images = []
    for rank, data in enumerate(payload(version)):
        images.append(image_of(rank, data))
        storage.write(version, images[-1], memoryview(data))
    return images


def truncate(path: Path, by: int = 1) -> None:
    os.truncate(path, path.stat().st_size - by)


def persist(storage: Storage, version: Version) -> Path:
    storage.publish(version, write(storage, version))
    return folder(storage) / manifest.dir_name(version)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "root", JOB)


def test_what_is_published_is_offered_and_read(storage: Storage) -> None:
    """A published step is offered with its world, newest first, and every rank's bytes come back, with progress."""
    for version in (Version(1, 20), V12, Version(2, 4)):
        persist(storage, version)
    steps, problems = storage.steps()
    assert not problems
    assert [step.stored for step in steps] == [Stored(version, 2) for version in (V12, Version(2, 4), Version(1, 20))]
    for rank, data in enumerate(payload(V12)):
        into, seen = memoryview(bytearray(len(data))), list[int]()
        storage.read(steps[0], rank, into, seen.append)
        storage.check(steps[0], rank)
        assert into == data
        assert sum(seen) == len(data)


def test_nothing_is_offered_before_it_is_published(storage: Storage) -> None:
    """Images without a manifest, and even a directory with the final name but no manifest, are no step."""
    assert storage.steps() == ([], [])
    write(storage, V12)
    assert storage.steps() == ([], [])
    (folder(storage) / f".writing-{manifest.dir_name(V12)}").rename(folder(storage) / manifest.dir_name(V12))
    steps, problems = storage.steps()
    assert not steps
    assert "manifest.json: No such file" in problems[0]


def test_publishing_twice_is_harmless(storage: Storage) -> None:
    """Two collectors, or one that was restarted, may both publish."""
    images = write(storage, V12)
    storage.publish(V12, images)
    before = {path.name: path.read_bytes() for path in (folder(storage) / manifest.dir_name(V12)).iterdir()}
    storage.publish(V12, images)
    assert {path.name: path.read_bytes() for path in (folder(storage) / manifest.dir_name(V12)).iterdir()} == before


def test_what_a_dead_writer_left_is_not_published(storage: Storage) -> None:
    """The published folder holds the images with their sums and the manifest, and nothing under a temporary name."""
    images = write(storage, V12)
    writing = folder(storage) / f".writing-{manifest.dir_name(V12)}"
    (writing / f"{manifest.file_name(0)}.0123abcd.tmp").write_bytes(b"half an im")
    storage.publish(V12, images)
    found = sorted(path.name for path in (folder(storage) / manifest.dir_name(V12)).iterdir())
    names = [name(rank) for rank in range(len(SIZES)) for name in (manifest.file_name, manifest.sums_name)]
    assert found == sorted([manifest.MANIFEST, *names])


def test_the_order_of_ranks_does_not_matter(storage: Storage) -> None:
    """The manifest lists the ranks in order, however the nodes' payloads had them."""
    storage.publish(V12, write(storage, V12)[::-1])
    ((step,), _) = storage.steps()
    assert [image.rank for image in step.manifest.images] == [0, 1]


def test_a_missing_or_short_file_prevents_publishing(storage: Storage) -> None:
    """The manifest is not written while a file of another length, or none, stands where an image should."""
    images = write(storage, V12)
    path = folder(storage) / f".writing-{manifest.dir_name(V12)}" / "rank-00001.safetensors"
    spoils: list[tuple[Callable[[Path], None], str]] = [(truncate, "69999"), (Path.unlink, "None")]
    for spoil, found in spoils:
        spoil(path)
        with pytest.raises(StorageError, match=rf"rank-00001\.safetensors has {found} bytes, expected 70000"):
            storage.publish(V12, images)
        assert storage.steps() == ([], [])


def test_damaged_bytes_are_never_written(storage: Storage) -> None:
    """What no longer matches its digest does not reach the disk."""
    data = bytearray(payload(V12)[0])
    image = image_of(0, bytes(data))
    data[5] ^= 1
    with pytest.raises(CorruptionError, match="rank 0 of step 12"):
        storage.write(V12, image, memoryview(data))
    assert not folder(storage).exists()


def test_unfinished_older_steps_are_swept(storage: Storage) -> None:
    """Publishing removes what older versions left unfinished, and nothing else."""
    keep = [".writing-other", "notes.txt", f".writing-{manifest.dir_name(Version(2, 13))}"]
    folder(storage).mkdir(parents=True)
    for name in keep:
        (folder(storage) / name).mkdir()
    for version in (Version(1, 99), Version(2, 11)):
        write(storage, version)
    (folder(storage) / f".removing-{manifest.dir_name(Version(1, 5))}").mkdir()
    persist(storage, V12)
    assert sorted(path.name for path in folder(storage).iterdir()) == sorted([*keep, manifest.dir_name(V12)])


def test_synced_and_named_in_the_right_order(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's folder, images, their names, the manifest, its name, the step's own name: each is synced before the next."""
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        calls.append("fsync " + re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", name))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    persist(storage, V12)
    final, writing = manifest.dir_name(V12), f".writing-{manifest.dir_name(V12)}"
    of_files = []
    for names in (
        ["rank-00000.safetensors", "rank-00000.sums"],
        ["rank-00001.safetensors", "rank-00001.sums"],
        ["manifest.json"],
    ):
        of_files += [call for name in names for call in (f"fsync {name}.tmp", f"rename {name}")]
        of_files.append(f"fsync {writing}")
    made = [f"fsync {folder(storage).parent.parent.name}", "fsync root", f"fsync {JOB}"]
    assert calls == [*made, *of_files, f"rename {final}", f"fsync {JOB}", "fsync root"]


def torn(path: Path) -> None:
    truncate(path, 20)


def hostile(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def of_another_job(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": "other"}))


def a_bad_name(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": "../.."}))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [torn, hostile, of_another_job, a_bad_name, a_folder, Path.unlink])
def test_a_bad_manifest_is_skipped_and_named(storage: Storage, spoil: Callable[[Path], None]) -> None:
    """One damaged step is not offered and is named; the others still are."""
    persist(storage, Version(2, 4))
    spoil(persist(storage, V12) / manifest.MANIFEST)
    steps, problems = storage.steps()
    assert [step.manifest.version for step in steps] == [Version(2, 4)]
    assert len(problems) == 1
    assert manifest.dir_name(V12) in problems[0]


def test_a_damaged_file_is_refused_by_name(storage: Storage) -> None:
    """A flipped bit, a lost byte and a missing file are each found, whether one reads or only checks."""
    path = persist(storage, V12) / "rank-00000.safetensors"
    ((step,), _) = storage.steps()
    spoils: list[tuple[Callable[[], object], str]] = [
        (lambda: flip(path, SIZES[0] - 1), r"rank-00000\.safetensors does not match its manifest"),
        (lambda: truncate(path), rf"rank-00000\.safetensors has {SIZES[0] - 1} bytes, expected {SIZES[0]}"),
        (path.unlink, r"rank-00000\.safetensors: No such file"),
    ]
    for spoil, message in spoils:
        spoil()
        with pytest.raises((CorruptionError, StorageError), match=message):
            storage.read(step, 0, memoryview(bytearray(SIZES[0])))
        with pytest.raises((CorruptionError, StorageError), match=message):
            storage.check(step, 0)
    storage.check(step, 1)


def test_checking_needs_no_memory_for_the_file(storage: Storage) -> None:
    """A manifest that claims an absurd size is refused before anything is allocated."""
    path = persist(storage, V12) / manifest.MANIFEST
    content = json.loads(path.read_text())
    content["files"][1]["size"] = 2**45
    path.write_text(json.dumps(content))
    steps, (problem,) = storage.steps()
    assert not steps
    assert f"rank-00001.safetensors has 70000 bytes, expected {2**45}" in problem


def test_a_file_is_checked_while_it_is_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts at a time: as many are summed together as are read, and what was damaged in any of them is found."""
    monkeypatch.setattr(directory, "PART", PIECE)
    size = 8 * PIECE + 100
    data = random.Random(3).randbytes(size)
    image = image_of(0, data)
    storage.write(V12, image, memoryview(data))
    storage.publish(V12, [image])
    together, real = threading.Barrier(directory.READERS), sums_of

    def summed(part: memoryview) -> list[int]:
        if len(part) == PIECE:
            together.wait(10.0)
        return real(part)

    monkeypatch.setattr(directory, "sums_of", summed)
    ((step,), _), into, told = storage.steps(), memoryview(bytearray(size)), list[int]()
    storage.read(step, 0, into, told.append)
    assert into == data
    assert sum(told) == size
    flip(folder(storage) / manifest.dir_name(V12) / "rank-00000.safetensors", 6 * PIECE)
    with pytest.raises(CorruptionError, match=r"rank-00000\.safetensors does not match its manifest"):
        storage.read(step, 0, into)


@pytest.mark.parametrize("left", ["manifest.json", "rank-00000.safetensors"])
def test_a_step_that_is_removed_in_part(storage: Storage, left: str) -> None:
    """Somebody's `rm -r` was interrupted: it is not offered, whatever of it is left, and the one before is."""
    persist(storage, Version(2, 4))
    path = persist(storage, V12)
    for file in path.iterdir():
        if file.name != left:
            file.unlink()
    steps, (problem,) = storage.steps()
    assert [step.manifest.version for step in steps] == [Version(2, 4)]
    assert manifest.dir_name(V12) in problem


def test_a_storage_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of an unreadable root are a problem that is named, and writing to it an error of ours."""
    (tmp_path / "file").touch()
    storage = Storage(tmp_path / "file", JOB)
    data = payload(V12)[1]
    with pytest.raises(StorageError, match=r"cannot make .*Not a directory; check the storage root"):
        storage.write(V12, image_of(1, data), memoryview(data))
    assert storage.steps()[0] == []

    def unreadable(path: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", unreadable)
    steps, problems = storage.steps()
    assert not steps
    assert problems == [f"cannot read {folder(storage)}: Permission denied"]
