"""The only place that writes files meant to survive: temporary name, write, sync, rename, sync the directory.

Large images go past the page cache (O_DIRECT) where the file system allows it: faster here, a tenth of the CPU, and the
trainers keep their cache. What is not promised: a disk that lies about syncing.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from ckptd.ckpt.errors import StorageError

_BLOCK = 4096
CHUNK = 8 * 1024 * 1024
"""Bytes that are read or written at once: a whole number of pieces, so that they can be summed one by one."""
_NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
"""What a file system that has no O_DIRECT says, or one that would have the bytes aligned otherwise."""
UNFINISHED = ".tmp"
"""How the names of files end that are being written, or were when their writer died."""


def write_durably(path: Path, data: memoryview | bytes, progress: Callable[[int], None] | None = None) -> None:
    """Write `data` under a temporary name beside `path`, sync it, and rename it over `path`. Raises StorageError.

    After it returns the content is on the disk; the name is once the directory is synced too (`sync_dir`). `progress` is
    told how many bytes more were written.
    """
    # Two may write the same file (a node that was taken for dead, and its stand-in): neither cuts the other's short.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        if not _write_direct(temporary, memoryview(data), progress):
            _write_buffered(temporary, memoryview(data), progress)
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}; check space and permissions of the storage"
        ) from error


def _write_direct(path: Path, data: memoryview, progress: Callable[[int], None] | None) -> bool:
    """Write with O_DIRECT; False where the file system or the buffer's alignment does not allow it. All progress is taken
    back then."""
    if len(data) < CHUNK or not hasattr(os, "O_DIRECT"):
        return False
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _NOT_DIRECT:
            return False
        raise
    told = 0

    def tell(count: int) -> None:
        nonlocal told
        told += count
        if progress:
            progress(count)

    try:
        body = len(data) // _BLOCK * _BLOCK
        _write_all(descriptor, data[:body], tell)
        if body < len(data):
            last = mmap.mmap(-1, _BLOCK)  # the tail goes out as one padded block; the length is cut afterwards
            last[: len(data) - body] = data[body:]
            _write_all(descriptor, memoryview(last), None)
            tell(len(data) - body)
            os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    except OSError as error:
        tell(-told)
        if error.errno in _NOT_DIRECT:
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def _write_buffered(path: Path, data: memoryview, progress: Callable[[int], None] | None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(descriptor, data, progress)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview, progress: Callable[[int], None] | None) -> None:
    while data:
        written = os.write(descriptor, data[:CHUNK])
        data = data[written:]
        if progress:
            progress(written)


@contextlib.contextmanager
def filled_in_place(path: Path, size: int) -> Iterator[Path]:
    """A file of `size` bytes under a temporary name, to be filled through a mapping; synced and renamed over `path`.

    Its blocks are there from the start, so that the mapping never runs out of disk. It is gone when the block fails.
    Raises StorageError.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            yield temporary
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}; check space and permissions of the storage"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_dir(path: Path) -> None:
    """Make a directory, with those above it, and their names durable. Raises StorageError."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {path}: {error.strerror}; check the storage root") from error
    for directory in reversed(missing):
        sync_dir(directory.parent)


def sync_dir(path: Path) -> None:
    """Make the names in a directory durable. Raises StorageError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot sync {path}: {error.strerror}") from error


class Fill(Protocol):
    """Fills a buffer with what a file has from `start` on. From any thread. Raises StorageError."""

    def __call__(self, into: memoryview, start: int, /) -> None: ...


@contextlib.contextmanager
def reading(path: Path, size: int) -> Iterator[Fill]:
    """A file that must have exactly `size` bytes, to be read in any order. Raises StorageError."""
    try:
        with path.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise StorageError(f"{path} has {found} bytes, expected {size}; it is damaged or not ours")
            yield partial(_fill, file.fileno(), path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _fill(descriptor: int, path: Path, into: memoryview, start: int) -> None:
    while into:
        got = os.preadv(descriptor, [into], start)
        if not got:
            raise StorageError(f"{path} ended early")
        into, start = into[got:], start + got


def chunks(path: Path, size: int) -> Iterator[memoryview]:
    """The content of a file of exactly `size` bytes, 8 MiB at a time; each is valid until the next. Raises StorageError."""
    buffer = memoryview(bytearray(min(size, CHUNK)))
    with reading(path, size) as fill:
        for start in range(0, size, CHUNK):
            chunk = buffer[: min(size - start, CHUNK)]
            fill(chunk, start)
            yield chunk


def read_small(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes. Raises StorageError."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise StorageError(f"{path} is longer than {limit} bytes; it is not ours")
    return data
