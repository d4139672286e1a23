"""Writing files that must survive: whole or not at all, synced before they get their name."""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.mounts import mounted

from ckptd.ckpt import disk
from ckptd.ckpt.errors import StorageError

SIZES = [0, 1, 4095, 4096, 100_000, disk.CHUNK - 1, disk.CHUNK, disk.CHUNK + 1, disk.CHUNK + 4096]


def aligned(size: int) -> memoryview:
    """A buffer that begins on a page, as slots do, with something in it."""
    pages = mmap.mmap(-1, max(size, 1))
    pages[:size] = (bytes(range(251)) * (size // 251 + 1))[:size]
    return memoryview(pages)[:size]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(tmp_path: Path, size: int) -> None:
    """Every size around blocks and chunks comes back to the byte; no temporary name is left."""
    data = aligned(size)
    disk.write_durably(tmp_path / "file", data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600
    assert b"".join(map(bytes, disk.chunks(tmp_path / "file", size))) == data


def test_an_unaligned_buffer_is_written_all_the_same(tmp_path: Path) -> None:
    """Where the disk refuses a direct write it falls back to an ordinary one, and starts from the beginning."""
    data = aligned(disk.CHUNK + 4096)[1:]
    disk.write_durably(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("refuses", ["open", "write"])
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str, code: int
) -> None:
    """Wherever it says so, at once or after a chunk was taken, all is written the ordinary way and told of once."""
    data, told, direct = aligned(2 * disk.CHUNK + 10), list[int](), set[int]()
    real_open, real_write = os.open, os.write

    def open_file(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT and refuses == "open":
            raise OSError(code, os.strerror(code))
        descriptor = real_open(path, flags & ~os.O_DIRECT, *mode)
        (direct.add if flags & os.O_DIRECT else direct.discard)(descriptor)
        return descriptor

    def write(descriptor: int, block: memoryview) -> int:
        if descriptor in direct and told:
            raise OSError(code, os.strerror(code))
        return real_write(descriptor, block)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "write", write)
    disk.write_durably(tmp_path / "file", data, told.append)
    assert (tmp_path / "file").read_bytes() == data
    assert sum(told) == len(data)


def test_a_real_file_system_without_direct_writes(tmp_path: Path) -> None:
    """ramfs is one: large files are whole there too, and nothing else is left."""
    with mounted(tmp_path / "ramfs", "ramfs") as folder:
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
        (folder / "probe").unlink(missing_ok=True)
        data, told = aligned(disk.CHUNK + 10), list[int]()
        disk.write_durably(folder / "file", data, told.append)
        disk.sync_dir(folder)
        assert (folder / "file").read_bytes() == data
        assert sum(told) == len(data)
        assert [path.name for path in folder.iterdir()] == ["file"]


def test_large_files_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system takes it: the flag is asked for."""
    flags, real = list[int](), os.open

    def open_file(path: Path, flag: int, *mode: int) -> int:
        flags.append(flag)
        return real(path, flag, *mode)

    monkeypatch.setattr(os, "open", open_file)
    disk.write_durably(tmp_path / "large", aligned(disk.CHUNK))
    disk.write_durably(tmp_path / "small", aligned(10))
    assert flags[0] & os.O_DIRECT
    assert not flags[-1] & os.O_DIRECT


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    """A shorter content leaves nothing of the longer one, also over what an earlier crash left under the temporary name."""
    (tmp_path / "file.tmp").write_bytes(b"x" * 10_000)
    disk.write_durably(tmp_path / "file", b"long content")
    disk.write_durably(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def failing(monkeypatch: pytest.MonkeyPatch, name: str, when: Callable[[int], bool]) -> None:
    """Make the calls to os.`name` for which `when` (of the call's number) holds fail as a full disk does."""
    real, calls = getattr(os, name), [0]

    def call(*arguments: object) -> object:
        calls[0] += 1
        if when(calls[0]):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("name", ["write", "fsync", "open"])
@pytest.mark.parametrize("size", [10, disk.CHUNK + 10])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    """Whichever call fails, the error is ours and says what to do, the old content stands, and nothing else is left."""
    data = aligned(size)
    (tmp_path / "file").write_bytes(b"old")
    for number in (1, 2):  # the second write is that of the padded tail
        with monkeypatch.context() as patch:
            failing(patch, name, lambda call, number=number: call >= number)  # type: ignore[misc]
            if number == 2 and (name != "write" or size < disk.CHUNK):
                break
            with pytest.raises(StorageError, match=r"cannot write .*file: No space left on device; check space"):
                disk.write_durably(tmp_path / "file", data)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def plain(name: str) -> str:
    """A temporary name without what makes it unique."""
    return re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", name)


def test_two_writers_of_one_file_do_not_cut_each_other_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was taken for dead still writes while its stand-in does: whoever comes last, the file is whole."""
    rename, data = Path.rename, bytes(range(256)) * 40

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        disk.write_durably(target, data)  # the other one, from the beginning to the end
        assert target.read_bytes() == data
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    disk.write_durably(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


def test_synced_before_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is synced under the temporary name; only then it gets the final one."""
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        calls.append("fsync " + plain(Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename {plain(path.name)} {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    for size in (10, disk.CHUNK + 10):
        calls.clear()
        disk.write_durably(tmp_path / "file", aligned(size))
        disk.sync_dir(tmp_path)
        assert calls == ["fsync file.tmp", "rename file.tmp file", f"fsync {tmp_path.name}"]


def test_reading_what_is_not_as_expected(tmp_path: Path) -> None:
    """A missing file, a shorter, a longer one and a directory are each refused by name."""
    path = tmp_path / "file"
    with pytest.raises(StorageError, match="file: No such file"):
        list(disk.chunks(path, 3))
    path.write_bytes(b"four")
    for size in (3, 5):
        with pytest.raises(StorageError, match=f"has 4 bytes, expected {size}"):
            list(disk.chunks(path, size))
    with pytest.raises(StorageError, match="cannot read"):
        list(disk.chunks(tmp_path, 3))
    with disk.reading(path, 4) as fill, pytest.raises(StorageError, match="file ended early"):
        fill(memoryview(bytearray(3)), 2)
    with pytest.raises(StorageError, match="cannot sync"):
        disk.sync_dir(tmp_path / "gone")
    with pytest.raises(StorageError, match="cannot read"):
        disk.read_small(tmp_path / "gone", 10)
    assert disk.read_small(path, 4) == b"four"
    with pytest.raises(StorageError, match="longer than 3 bytes"):
        disk.read_small(path, 3)
