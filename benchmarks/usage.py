"""CPU time and memory of the processes of a job, read from outside of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

_SHARED = ("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV")  # noqa: S108 - names of mappings, nothing is written there


def tree(pid: int | None = None) -> list[psutil.Process]:
    """A process (None: this one) and everything that it started; those that have ended are left out."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(others: Iterable[int] = ()) -> tuple[float, float]:
    """CPU seconds so far, user and system: of this process, and of all that it started, of `others` and of all of theirs."""
    own, rest = 0.0, 0.0
    for process in _all(None, *others):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            if process.pid == os.getpid():
                own += times.user + times.system
            else:
                rest += times.user + times.system
            rest += times.children_user + times.children_system
    return own, rest


def memory_bytes(pids: Iterable[int], folder: Path) -> int:
    """The memory of these processes and of all that they started: their own, what they share, and the files in `folder`.

    `folder` is on a tmpfs. Files on a disk, and their pages in the cache, are not counted.
    """
    total = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    for process in _all(*pids):
        with contextlib.suppress(OSError):
            total += mapped_bytes(Path(f"/proc/{process.pid}/smaps").read_text(), str(folder))
    return total


def mapped_bytes(smaps: str, folder: str) -> int:
    """What a /proc/PID/smaps says of anonymous and shared memory, each page by the number of processes that share it.

    Mappings of files below `folder` are left out: the caller counts the files.
    """
    total, name = 0, ""
    for line in smaps.splitlines():
        head, _, value = line.partition(":")
        if " " in head:  # the line that begins a mapping: its fields, and where it has one, its name
            fields = line.split(maxsplit=5)
            name = fields[5] if len(fields) > 5 else ""
        elif head == "Pss" and not name.startswith(folder) and _is_memory(name):
            total += int(value.split()[0]) << 10
    return total


def _is_memory(name: str) -> bool:
    return not name or name.startswith(("[heap]", "[stack", "[anon", *_SHARED))


def _all(*pids: int | None) -> Iterator[psutil.Process]:
    seen = set()
    for pid in pids:
        for process in tree(pid):
            if process.pid not in seen:
                seen.add(process.pid)
                yield process
