"""Shared memory: reserved in full or refused by name, private, and never half made."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cluster import shm_dir
from tests.mounts import mounted

from ckptd.ckpt import shm
from ckptd.ckpt.errors import AccessError, CorruptionError, MemoryBudgetError

MIB = 1024 * 1024


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MB, as containers have it by default."""
    with mounted(tmp_path / "shm", "tmpfs", "-o", "size=64m") as where:
        yield where


def test_files_have_their_size_and_nobody_elses_eyes(tmp_path: Path) -> None:
    """A made file has exactly the size asked for, all of it allocated, and mode 0600."""
    for size in (0, 1, 4096, 300_000):
        path = tmp_path / f"file-{size}"
        shm.make_file(path, size)
        status = path.stat()
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (size, 0o600)
        assert status.st_blocks * 512 >= size


def test_a_touched_window_takes_no_faults_when_it_is_written() -> None:
    """Touching part of a reserved file faults in that part and changes no byte of it."""
    with shm_dir() as folder:
        shm.reserve_file(folder / "file", 8 * MIB)
        with shm.map_file(folder / "file", 8 * MIB, write=True) as pages, memoryview(pages) as view:
            view[2 * MIB] = 7
            with view[2 * MIB : 6 * MIB] as window:
                shm.touch(window)
                source = b"x" * (4 * MIB - 1)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                window[1:] = source
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
                assert window[0] == 7
    assert faults < 100, "1024 pages were touched"


def test_touching_memory_that_is_no_mapping_is_harmless() -> None:
    """A view that does not begin at a page is left as it is."""
    buffer = bytearray(b"x" * MIB)
    shm.touch(memoryview(buffer)[1:])
    shm.touch(memoryview(buffer)[:0])
    assert buffer == b"x" * MIB


def test_a_file_is_never_made_over_another(tmp_path: Path) -> None:
    """An existing file is neither overwritten nor removed."""
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        shm.make_file(path, 10)
    assert path.read_bytes() == b"mine"


def test_a_tmpfs_without_room_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has both numbers and what to do, and no file is left."""
    space = SimpleNamespace(f_bavail=10, f_blocks=100, f_frsize=MIB)
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    with pytest.raises(
        MemoryBudgetError, match=f"{10 * MIB} bytes free of {100 * MIB}, {20 * MIB} are needed.*--shm-size"
    ):
        shm.make_file(tmp_path / "file", 20 * MIB)
    with pytest.raises(MemoryBudgetError):
        shm.make_file(tmp_path / "file", 7 * MIB)  # some room is left to others
    assert not list(tmp_path.iterdir())
    shm.make_file(tmp_path / "file", 5 * MIB)


def test_a_tmpfs_that_fills_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the space is gone although it was promised, the error is the same and no file is left."""

    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryBudgetError, match="are needed"):
        shm.make_file(tmp_path / "file", 4096)
    assert not list(tmp_path.iterdir())


def test_the_64_mb_of_a_container(small_tmpfs: Path) -> None:
    """On a real tmpfs of 64 MB: what fits is made, what does not is refused clearly, and the room comes back."""
    with pytest.raises(MemoryBudgetError, match="--shm-size"):
        shm.make_file(small_tmpfs / "large", 64 * MIB)
    shm.make_file(small_tmpfs / "first", 40 * MIB)
    with pytest.raises(MemoryBudgetError, match=f"{24 * MIB} bytes free of {64 * MIB}, {30 * MIB} are needed"):
        shm.make_file(small_tmpfs / "second", 30 * MIB)
    assert [path.name for path in small_tmpfs.iterdir()] == ["first"]
    with shm.map_file(small_tmpfs / "first", 40 * MIB, write=True) as pages:
        pages[-1] = 1  # no SIGBUS: every page is there
    (small_tmpfs / "first").unlink()
    shm.make_file(small_tmpfs / "second", 30 * MIB)


def test_a_full_tmpfs_that_looked_empty(small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own ENOSPC leaves nothing behind either."""
    monkeypatch.setattr(shm, "_HEADROOM", -1 << 40)
    with pytest.raises(MemoryBudgetError, match="are needed"):
        shm.make_file(small_tmpfs / "file", 80 * MIB)
    assert not list(small_tmpfs.iterdir())
    space = os.statvfs(small_tmpfs)
    assert space.f_bavail == space.f_blocks


def test_mappings_are_shared_and_checked(tmp_path: Path) -> None:
    """What one side writes the other sees; a read-only mapping can't be written; another size is refused."""
    path = tmp_path / "file"
    shm.make_file(path, 5000)
    with shm.map_file(path, 5000, write=True) as writer, shm.map_file(path, 5000, write=False) as reader:
        writer[4999] = 7
        assert reader[4999] == 7
        with pytest.raises(TypeError):
            reader[0] = 1
    for size in (4999, 5001, 0, -1):
        with pytest.raises(CorruptionError, match=r"has 5000 bytes, expected .* treated as lost"):
            shm.map_file(path, size, write=False)


def test_a_private_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mode is 0700 even if it was there with another one; somebody else's is refused; so is what can't be made."""
    path = tmp_path / "a" / "b"
    for _ in range(2):
        assert shm.private_dir(path) == path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        path.chmod(0o755)
    (tmp_path / "file").touch()
    with pytest.raises(AccessError, match="Not a directory"):
        shm.private_dir(tmp_path / "file" / "below")
    mine = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    with pytest.raises(AccessError, match=f"belongs to user {mine}.*choose another"):
        shm.private_dir(path)
