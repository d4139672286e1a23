"""The only place that makes and maps shared memory: named files on a tmpfs, reserved in full before they are used.

Named files outlive a crash of either side. `posix_fallocate` turns a full tmpfs into a clean error where a sparse file
would end in SIGBUS; pages are faulted in once, because the first touch costs several times the copy itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
from pathlib import Path

from ckptd.ckpt.errors import AccessError, CorruptionError, MemoryBudgetError

_POPULATE_READ, _POPULATE_WRITE = 22, 23  # MADV_POPULATE_..., Linux 5.14; the mmap module has no name for them
_STRIDE = 64 * 1024 * 1024
"""Touched at a time, so that a stop of the daemon need not wait for gigabytes."""
_ZEROS = memoryview(bytes(256 * 1024))
_libc = ctypes.CDLL(None)
_HEADROOM = 4 * 1024 * 1024
"""Left free on the tmpfs for records and whatever else the machine keeps there."""


def private_dir(path: Path) -> Path:
    """Make a directory that only this user can enter. Raises AccessError when it is somebody else's or can't be made."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = path.stat().st_uid
        if owner == os.getuid():
            path.chmod(0o700)
            return path
    except OSError as error:
        raise AccessError(f"cannot make {path}: {error.strerror}; choose another directory") from error
    raise AccessError(f"{path} belongs to user {owner}, you are {os.getuid()}; choose another directory")


def make_file(path: Path, size: int) -> None:
    """As `reserve_file`, with zeros written to all of it: whoever maps it finds its pages ready.

    The kernel clears a reserved page when it is first used. Writing takes a sixth less than to touch a mapping.
    """
    reserve_file(path, size)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        for start in range(0, size, len(_ZEROS)):
            os.pwrite(descriptor, _ZEROS[: size - start], start)
    finally:
        os.close(descriptor)


def reserve_file(path: Path, size: int) -> None:
    """Make a file of exactly `size` bytes, all of them reserved, mode 0600. Who writes to it should `touch` it first.

    Raises MemoryBudgetError when the file system cannot hold it; nothing is left behind then.
    """
    empty_file(path, 0)
    try:
        reserve_part(path, 0, max(size, 1))
    except MemoryBudgetError:
        path.unlink(missing_ok=True)
        raise
    os.truncate(path, size)


def empty_file(path: Path, size: int) -> None:
    """Make a file of `size` bytes, mode 0600, that takes no memory yet: call `reserve_part` before writing to it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def reserve_part(path: Path, first: int, size: int) -> None:
    """Reserve `size` (> 0) bytes of a file from byte `first` on. Raises MemoryBudgetError."""
    space = os.statvfs(path.parent)
    free = space.f_bavail * space.f_frsize
    if size + _HEADROOM > free:
        raise MemoryBudgetError(too_small(path.parent, size, free, space.f_blocks * space.f_frsize))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.posix_fallocate(descriptor, first, size)
    except OSError as error:
        raise MemoryBudgetError(too_small(path.parent, size, free, space.f_blocks * space.f_frsize)) from error
    finally:
        os.close(descriptor)


def too_small(directory: Path, wanted: int, free: int, total: int) -> str:
    """The message about a tmpfs that can't hold what is wanted."""
    return (
        f"{directory} has {free} bytes free of {total}, {wanted} are needed; "
        "enlarge the tmpfs (containers: --shm-size, or an emptyDir of medium Memory) or set CKPTD_SEGMENT_DIR elsewhere"
    )


def touch(view: memoryview) -> None:
    """Fault in the pages of a writable view that begins at a page. Other threads go on meanwhile.

    Doing it again costs next to nothing. Kernels without the advice fault on first use.
    """
    _populate(view, _POPULATE_WRITE)


def foresee(view: memoryview) -> None:
    """The bytes of a view of a mapping, from a page on, will be read: have its pages mapped, if they are not.

    10 ms for 512 MiB, where the faults of a copy take 20. Not for a sparse file, which would be filled with pages.
    """
    _populate(view, _POPULATE_READ)


def _populate(view: memoryview, advice: int) -> None:
    # `mmap.madvise` and MAP_POPULATE would keep the interpreter's lock: 0.3 s a GB in which the daemon says nothing.
    for start in range(0, len(view), _STRIDE):
        size = min(_STRIDE, len(view) - start)
        where = ctypes.addressof(ctypes.c_char.from_buffer(view, start))
        if _libc.madvise(ctypes.c_void_p(where), ctypes.c_size_t(size), advice) != 0:
            return


def map_file(path: Path, size: int, *, write: bool) -> mmap.mmap:
    """Map a shared file whose size must be `size` (> 0). The mapping outlives the file's name.

    Raises CorruptionError when the size is another one: touching pages beyond the end would kill the process.
    """
    # No link is followed to somebody else's file, and a fifo in its place is not waited for.
    descriptor = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor).st_size
        if found != size or size <= 0:
            raise CorruptionError(f"{path} has {found} bytes, expected {size}; it is treated as lost")
        access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED, prot=access)
    finally:
        os.close(descriptor)


def exclusive(path: Path, otherwise: str = "choose another segment directory") -> int:
    """Hold a lock file and write this process's id into it; the descriptor that is returned keeps the lock.

    Raises AccessError when another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AccessError(f"{path.parent} is in use by another daemon; stop it or {otherwise}") from error
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    return descriptor
