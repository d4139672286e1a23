"""What every place promises: a step is seen whole or not at all, and what is damaged is refused by name."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import fsspec
import pytest

from ckptd.ckpt import manifest
from ckptd.ckpt.bucket import Bucket
from ckptd.ckpt.directory import Directory
from ckptd.ckpt.errors import CorruptionError, StorageError
from ckptd.ckpt.model import PIECE, Image, Version
from ckptd.ckpt.objects import Objects
from ckptd.ckpt.pieces import digest_of, sums_of
from ckptd.ckpt.storage import Storage

JOB = "job"
V4, V12 = Version(2, 4), Version(2, 12)
SIZES = (5 * PIECE + 100, 70_000)


class Kept(Protocol):
    """A place, and what is really in it."""

    storage: Storage

    def names(self) -> set[str]: ...
    def change(self, name: str, content: bytes | None) -> None: ...
    def content(self, name: str) -> bytes: ...


class InDirectory:
    def __init__(self, root: Path) -> None:
        self.storage, self._root = Storage(Directory(root, JOB), JOB), root / JOB

    def names(self) -> set[str]:
        return {str(path.relative_to(self._root)) for path in self._root.rglob("*") if path.is_file()}

    def change(self, name: str, content: bytes | None) -> None:
        path = self._root / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def content(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


class InMemory:
    def __init__(self, root: Path) -> None:
        self._fs, self._root = fsspec.filesystem("memory"), f"/bucket{root}/{JOB}"
        self.storage = Storage(Objects(Bucket(f"memory://bucket{root}"), JOB, part=2 * PIECE), JOB)

    def names(self) -> set[str]:
        return {name.removeprefix(f"{self._root}/") for name in self._fs.find(self._root)}

    def change(self, name: str, content: bytes | None) -> None:
        if content is None:
            self._fs.rm(f"{self._root}/{name}")
        else:
            self._fs.pipe_file(f"{self._root}/{name}", content)

    def content(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))


@pytest.fixture(params=[InDirectory, InMemory])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    made: Kept = request.param(tmp_path)
    yield made
    made.storage.close()


def payload(version: Version) -> list[bytes]:
    return [random.Random(f"{version} {rank}").randbytes(size) for rank, size in enumerate(SIZES)]


def image_of(version: Version, rank: int) -> Image:
    data = payload(version)[rank]
    return Image(rank, len(data), digest_of(sums_of(data), len(data)))


def write(storage: Storage, version: Version, *ranks: int) -> list[Image]:
    images = [image_of(version, rank) for rank in ranks or range(len(SIZES))]
    for image in images:
        storage.write(version, image, memoryview(payload(version)[image.rank]))
    return images


def persist(storage: Storage, version: Version) -> None:
    storage.publish(version, write(storage, version))


def offered(storage: Storage) -> list[Version]:
    steps, problems = storage.steps()
    assert not problems
    return [step.manifest.version for step in steps]


def file_of(version: Version, rank: int) -> str:
    return f"{manifest.dir_name(version)}/{manifest.file_name(rank)}"


def test_what_is_committed_is_read(kept: Kept) -> None:
    """Every byte comes back, whole or a few pieces at a time; what is told of the progress adds up."""
    written: list[int] = []
    for rank, data in enumerate(payload(V12)):
        kept.storage.write(V12, image_of(V12, rank), memoryview(data), written.append)
    kept.storage.publish(V12, [image_of(V12, rank) for rank in range(len(SIZES))])
    persist(kept.storage, V4)
    assert sum(written) == sum(SIZES)
    assert offered(kept.storage) == [V12, V4]
    (step, _), _ = kept.storage.steps()
    assert step.where == f"{kept.storage.where}/{manifest.dir_name(V12)}"
    for rank, data in enumerate(payload(V12)):
        into, read = memoryview(bytearray(len(data))), list[int]()
        kept.storage.read(step, rank, into, read.append)
        kept.storage.check(step, rank)
        assert into == data
        assert sum(read) == len(data)


def test_pieces_are_read_alone(kept: Kept) -> None:
    """And no other byte is written to; each is checked by itself, and damage elsewhere does not matter."""
    persist(kept.storage, V12)
    (step,), _ = kept.storage.steps()
    good = payload(V12)[0]
    damaged = bytearray(good)
    damaged[2 * PIECE] ^= 1
    kept.change(file_of(V12, 0), bytes(damaged))
    into, wanted = memoryview(bytearray(SIZES[0])), [0, 3, 4, 5]
    kept.storage.read_some(step, 0, wanted, into)
    for piece in range(6):
        part = slice(piece * PIECE, (piece + 1) * PIECE)
        assert into[part] == (good[part] if piece in wanted else bytes(len(good[part])))
    with pytest.raises(CorruptionError, match=r"rank-00000\.safetensors.*can't be restored from storage"):
        kept.storage.read_some(step, 0, [1, 2], into)


@pytest.mark.parametrize("content", [None, b"", bytes(8 * 6)])
def test_pieces_need_their_sums(kept: Kept, content: bytes | None) -> None:
    """Where none stand beside an image, or others than its own, only the whole of it can be read and checked."""
    persist(kept.storage, V12)
    (step,), _ = kept.storage.steps()
    kept.change(f"{manifest.dir_name(V12)}/{manifest.sums_name(0)}", content)
    into = memoryview(bytearray(SIZES[0]))
    with pytest.raises(
        StorageError, match=r"rank-00000\.safetensors has no sums of its pieces beside it; read all of it"
    ):
        kept.storage.read_some(step, 0, [0], into)
    assert not any(into)
    kept.storage.read(step, 0, into)
    assert into == payload(V12)[0]


def test_nothing_is_seen_before_it_is_committed(kept: Kept) -> None:
    """An image missing: no manifest, no step. The rest comes, and it is there; publishing again changes nothing."""
    assert kept.storage.steps() == ([], [])
    images = [image_of(V12, rank) for rank in range(len(SIZES))]
    write(kept.storage, V12, 0)
    assert offered(kept.storage) == []
    with pytest.raises(
        StorageError, match=r"rank-00001\.safetensors has None bytes, expected 70000; the step is not publ"
    ):
        kept.storage.publish(V12, images)
    assert offered(kept.storage) == []
    write(kept.storage, V12, 1)
    kept.storage.publish(V12, images)
    before = {name: kept.content(name) for name in kept.names()}
    kept.storage.publish(V12, images)
    assert {name: kept.content(name) for name in kept.names()} == before
    assert offered(kept.storage) == [V12]


def test_two_writers_of_one_image(kept: Kept) -> None:
    """A node that was taken for dead writes together with its stand-in: the image is whole."""
    barrier = threading.Barrier(2)

    def run() -> None:
        barrier.wait(5.0)
        write(kept.storage, V12)

    writers = [threading.Thread(target=run) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20.0)
    kept.storage.publish(V12, [image_of(V12, rank) for rank in range(len(SIZES))])
    (step,), _ = kept.storage.steps()
    for rank in range(len(SIZES)):
        kept.storage.check(step, rank)


def test_what_an_earlier_life_left_is_not_published(kept: Kept) -> None:
    """Another image under the same version that was never committed is overwritten, whatever vouches for it."""
    left = bytearray(payload(V12)[0])
    left[0] ^= 1
    sums = sums_of(left)
    kept.storage.write(V12, Image(0, len(left), digest_of(sums, len(left))), memoryview(left))
    persist(kept.storage, V12)
    (step,), _ = kept.storage.steps()
    kept.storage.check(step, 0)


def test_a_removed_step_is_gone(kept: Kept) -> None:
    """Only this one, and nothing of it is left; once more is harmless."""
    persist(kept.storage, V4)
    stay = kept.names()
    persist(kept.storage, V12)
    for _ in range(2):
        kept.storage.remove(V12)
    assert offered(kept.storage) == [V4]
    assert kept.names() == stay


def test_what_older_steps_left_is_swept(kept: Kept) -> None:
    """Publishing removes what older versions left unfinished; newer ones and published ones stay."""
    persist(kept.storage, Version(1, 2))
    write(kept.storage, V4, 0)
    write(kept.storage, Version(2, 13), 1)
    persist(kept.storage, V12)
    kept.storage.publish(Version(2, 13), [*write(kept.storage, Version(2, 13), 0), image_of(Version(2, 13), 1)])
    assert offered(kept.storage) == [Version(2, 13), V12, Version(1, 2)]
    assert not [name for name in kept.names() if manifest.dir_name(V4) in name]


def test_what_is_not_ours_is_left_alone(kept: Kept) -> None:
    """Other names beside and below the steps are no steps, and stay."""
    foreign = ["notes.txt", "step-12/manifest.json", "step-000000000012.e0002.old/rank-00000.safetensors"]
    for name in foreign:
        kept.change(name, b"theirs")
    persist(kept.storage, V12)
    assert offered(kept.storage) == [V12]
    kept.storage.remove(V12)
    assert kept.names() == set(foreign)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"format": 2}'])
def test_a_bad_manifest_is_a_problem_of_one_step(kept: Kept, content: bytes) -> None:
    """It is named, and the others are offered."""
    persist(kept.storage, V4)
    persist(kept.storage, V12)
    kept.change(f"{manifest.dir_name(V12)}/manifest.json", content)
    steps, problems = kept.storage.steps()
    assert [step.manifest.version for step in steps] == [V4]
    assert len(problems) == 1
    assert manifest.dir_name(V12) in problems[0]


def test_damage_is_refused_by_name(kept: Kept) -> None:
    """A flipped bit, a lost byte, a lost image: read or checked, the error says which file, and nothing is half accepted."""
    persist(kept.storage, V12)
    (step,), _ = kept.storage.steps()
    name, good = file_of(V12, 0), kept.content(file_of(V12, 0))
    flipped = bytearray(good)
    flipped[3 * PIECE + 5] ^= 1
    for content in (bytes(flipped), good[:-1], None):
        kept.change(name, content)
        with pytest.raises((CorruptionError, StorageError), match=r"rank-00000\.safetensors"):
            kept.storage.read(step, 0, memoryview(bytearray(SIZES[0])))
        with pytest.raises((CorruptionError, StorageError), match=r"rank-00000\.safetensors"):
            kept.storage.check(step, 0)
    kept.storage.check(step, 1)


def test_damaged_bytes_are_never_written(kept: Kept) -> None:
    """What no longer matches its digest does not reach the place."""
    data = bytearray(payload(V12)[0])
    data[5] ^= 1
    with pytest.raises(CorruptionError, match="rank 0 of step 12"):
        kept.storage.write(V12, image_of(V12, 0), memoryview(data))
    assert kept.names() == set()
