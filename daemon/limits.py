"""What bounds the memory of this daemon: its tmpfs, the machine, and the cgroups that it runs in, as of now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ckptd.ckpt.budget import Limit

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_FILE_MAX = 1 << 16


def limits(directory: Path) -> tuple[Limit, ...]:
    """The file system of `directory` (or of the nearest one above it that exists), every cgroup with a limit, the machine.

    What the kernel does not tell is left out. Raises OSError where the directory can't be looked at.
    """
    nearest = next(folder for folder in (directory, *directory.parents) if folder.exists())
    space = os.statvfs(nearest)
    tmpfs = Limit("tmpfs", str(nearest), space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)
    return (tmpfs, *cgroups(_PROC / "self/cgroup", _CGROUPS), *machine(_PROC / "meminfo"))


def machine(meminfo: Path) -> Iterator[Limit]:
    """The whole machine. Free is what can be had without swapping."""
    found = dict(line.split(":", 1) for line in _text(meminfo).splitlines() if ":" in line)
    total, free = (_number(found.get(name, "").removesuffix("kB")) for name in ("MemTotal", "MemAvailable"))
    if total is not None and free is not None:
        yield Limit("machine", "the machine", free * 1024, total * 1024)


def cgroups(membership: Path, root: Path) -> Iterator[Limit]:
    """The limits of this process's memory cgroup and of those above it: version 2, or version 1's memory controller."""
    for line in _text(membership).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, where = rest.partition(":")
        path = PurePosixPath(where)
        if ".." in path.parts:  # a cgroup outside of this process's namespace
            continue
        if number == "0" and not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _along(root, path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _along(root / "memory", path, names)


def _along(root: Path, path: PurePosixPath, names: tuple[str, str, str]) -> Iterator[Limit]:
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    below = path.relative_to("/") if path.is_absolute() else path
    for folder in (below, *below.parents):
        limit, used = _number(_text(root / folder / names[0])), _number(_text(root / folder / names[1]))
        if limit is None or used is None or limit >= machine_bytes:  # "max", or version 1's way to say so
            continue
        stat = dict(line.split(" ", 1) for line in _text(root / folder / "memory.stat").splitlines() if " " in line)
        # Files that were read once make way before anybody is killed.
        free = limit - used + (_number(stat.get(names[2], "")) or 0)
        yield Limit("cgroup", f"cgroup /{'' if str(folder) == '.' else folder}", max(0, free), limit)


def _text(path: Path) -> str:
    """What the kernel says in a file; empty where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_FILE_MAX).decode(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else None
