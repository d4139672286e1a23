"""What `ckptd doctor` looks at: each function here finds out one thing about this node and says so as a value.

Nothing is changed: what has to be written for a test is removed again, and no directory is made.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from ckptd.ckpt.client import Client
from ckptd.ckpt.config import Config
from ckptd.ckpt.errors import AccessError, CkptdError, DaemonUnavailable
from ckptd.ckpt.groups import group_of
from ckptd.erasure import Code, isal_here, serving
from ckptd.erasure.isal import Missing

_MEASURE_S = 0.1
_STRIPE = 4 << 20
_BLOCK = 4096
_ANSWER_S = 5.0
_DEFAULT_CODE = (4, 2)
"""Measured where this node's own group has no parity."""


@dataclass(frozen=True, slots=True)
class Codec:
    """The erasure code of a group, as it is computed here."""

    k: int
    m: int
    backend: str
    origin: str
    """The library underneath, with its path or release."""
    gb_per_s: float
    """GB of data a second that one thread encodes now, with whatever else runs."""
    isal_missing: str
    """Why ISA-L can't be used; empty where it is found."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory that is there or will be made, and the file system that it is on. Sizes in bytes."""

    path: Path
    exists: bool
    filesystem: str
    total: int
    free: int
    owner: int
    mode: int
    """Of the directory, or of the nearest one above it that exists; so is `owner`."""
    writable: bool


@dataclass(frozen=True, slots=True)
class Writing:
    """What came of writing and syncing one block."""

    direct: bool
    """Past the page cache (O_DIRECT)."""
    problem: str
    """Empty where it worked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of asking the daemon of a run directory."""

    state: Literal["well", "unwell", "silent", "refused"]
    """unwell: it says that something is wrong, or can't be understood. refused: somebody else's socket, not asked."""
    said: str
    groups: tuple[str, ...] = ()
    """What it says of its job's protection groups, a line each."""
    rule_kept: bool = True
    """Whether they keep the rule of the failure domains."""


def codec(config: Config) -> Codec:
    """Encode for a tenth of a second with the backend that this node's group uses."""
    group = group_of(config.whole_map, config.node)
    k, m = (group.code.k, group.code.m) if group and group.code.m else _DEFAULT_CODE
    backend, found = serving(k, m)[0], isal_here()
    missing = found.reason if isinstance(found, Missing) else ""
    return Codec(k, m, backend.name, backend.origin, _rate(Code(k=k, m=m)), missing)


def _rate(code: Code) -> float:
    length = max(_BLOCK, _STRIPE // code.k)
    data = [np.full(length, number, np.uint8) for number in range(code.k)]
    out = [np.empty(length, np.uint8) for _ in range(code.m)]
    code.encode(data, range(code.m), out)  # touches memory and makes tables
    taken: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        code.encode(data, range(code.m), out)
        taken.append(time.perf_counter() - started)
    return code.k * length / 1e9 / statistics.median(taken)


def place(path: Path) -> Place:
    """Look at a directory, or at the nearest one above it. Raises OSError where not even that can be looked at."""
    nearest = next(folder for folder in (path, *path.parents) if folder.exists())
    space, status = os.statvfs(nearest), nearest.stat()
    return Place(
        path=path,
        exists=nearest == path,
        filesystem=_filesystem(nearest),
        total=space.f_blocks * space.f_frsize,
        free=space.f_bavail * space.f_frsize,
        owner=status.st_uid,
        mode=status.st_mode & 0o7777,
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
    )


def _filesystem(path: Path) -> str:
    real = path.resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (real, *real.parents) if folder in mounts), "unknown")


def writing(directory: Path) -> Writing:
    """Write a block into a directory and sync it, as persisting does; the file is removed again."""
    path = directory / f".doctor-{secrets.token_hex(4)}.tmp"
    try:
        try:
            _write(path, os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _write(path, 0)
            return Writing(direct=False, problem="")
    except OSError as error:
        return Writing(direct=False, problem=error.strerror or str(error))
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return Writing(direct=True, problem="")


def _write(path: Path, flag: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | flag, 0o600)
    try:
        with mmap.mmap(-1, _BLOCK) as block:  # aligned, as O_DIRECT wants it
            os.write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def keeping(url: str) -> str:
    """Write a small object below an object store's URL, read it and remove it; what goes wrong, or ''."""
    from ckptd.ckpt.bucket import Bucket  # only where a URL asks for it

    try:
        with contextlib.closing(Bucket(url)) as bucket:
            key, content = bucket.key(f".doctor-{secrets.token_hex(4)}"), secrets.token_bytes(_BLOCK)
            bucket.put(key, content)
            found = bucket.small(key, _BLOCK)
            bucket.delete([key])
    except CkptdError as error:
        return str(error)
    return "" if found == content else f"{key} is not what was written"


def answer(config: Config) -> Answer:
    """Ask the daemon of the run directory how it is."""
    try:
        with contextlib.closing(Client(config.run_dir, config.job, timeout_s=_ANSWER_S)) as client:
            status = client.document("Status")
    except DaemonUnavailable as error:
        return Answer("silent", str(error))
    except AccessError as error:
        return Answer("refused", str(error))
    except CkptdError as error:
        return Answer("unwell", str(error))
    if not status.get("ok", True):
        return Answer("unwell", str(status.get("reason", "")))
    said = f"node {status.get('node')} of job {status.get('job')}"
    groups = status.get("groups", {})
    return Answer("well", said, tuple(groups.get("lines", ())), bool(groups.get("rule_kept", True)))
